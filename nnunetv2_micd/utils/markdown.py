"""Text and tables in Markdown."""

import re
from collections.abc import Sequence


def escape(text: str) -> str:
    """Return text as one line in which names, which may come from anybody, make neither headings, HTML nor links.

    Examples:
        >>> escape("p < 0.05 for <b>")
        'p < 0.05 for &lt;b>'
    """
    line = " ".join(text.split())
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"([\\\[`])", r"\\\1", line))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown whose columns are aligned, so that it can be read as plain text as well.

    Examples:
        >>> print(markdown_table(["method", "Dice %"], [["MICD", "81.2"]]))
        | method | Dice % |
        | ------ | ------ |
        | MICD   | 81.2   |
    """
    lines = [[escape(cell).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
