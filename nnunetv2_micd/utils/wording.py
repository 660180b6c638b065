"""Words for messages."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural.

    Args:
        number: The number.
        noun: The noun in the singular, alone or after an adjective; its plural ends in "s".

    Examples:
        >>> counted(1, "labeled case"), counted(2, "run"), counted(0, "image")
        ('1 labeled case', '2 runs', '0 images')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
