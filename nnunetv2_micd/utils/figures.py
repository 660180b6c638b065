"""The style of the figures that this package draws."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style

LABEL_COLORS = (
    *("#e6550d", "#3182bd", "#31a354", "#fdd835", "#9467bd", "#17becf", "#e377c2", "#8c564b"),
    *("#bcbd22", "#1b2a8a", "#f7b6d2", "#006d5b", "#aec7e8", "#b22222", "#76ff03", "#c49c94"),
)


@contextmanager
def default_style() -> Iterator[None]:
    """Use Matplotlib's own style in a block.

    nnU-Net's plot of a training leaves huge fonts behind. Matplotlib looks up some settings only when a legend is made
    or a figure is saved, so the block has to contain these as well.

    Examples:
        >>> with default_style():  # doctest: +SKIP
        ...     figure.legend()
        ...     figure.savefig("figure.png")
    """
    with matplotlib.style.context("default"):
        yield


def label_color(label: int) -> str:
    """Return the color of a label above 0, the same in all figures.

    Examples:
        >>> label_color(1) == label_color(1 + len(LABEL_COLORS))
        True
    """
    return LABEL_COLORS[(label - 1) % len(LABEL_COLORS)]
