"""A bar that counts the steps of an epoch, on a terminal only so that log files stay readable."""

from tqdm import tqdm


class StepBar:
    """A bar of one epoch after the other.

    Args:
        is_hidden: Whether to show none, as in all processes of a training but the first.

    Examples:
        >>> bar = StepBar(is_hidden=True)
        >>> bar.start("epoch 0 of 10", steps=250)
        >>> bar.step()
        >>> bar.end()
    """

    def __init__(self, is_hidden: bool):
        self._is_hidden = is_hidden
        self._bar: tqdm | None = None

    def start(self, title: str, steps: int) -> None:
        """Show the bar of an epoch."""
        disable = True if self._is_hidden else None  # None hides it where the output is no terminal
        self._bar = tqdm(total=steps, desc=title, unit="step", leave=False, disable=disable)

    def step(self) -> None:
        """Count a step; nothing happens outside of an epoch."""
        if self._bar is not None:
            self._bar.update()

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
