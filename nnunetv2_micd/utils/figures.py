"""The style of the figures that this package draws."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style


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
