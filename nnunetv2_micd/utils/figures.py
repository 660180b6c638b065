"""The style of the figures that this package draws."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

LABEL_COLORS = (
    *("#e6550d", "#3182bd", "#31a354", "#fdd835", "#9467bd", "#17becf", "#e377c2", "#8c564b"),
    *("#bcbd22", "#1b2a8a", "#f7b6d2", "#006d5b", "#aec7e8", "#b22222", "#76ff03", "#c49c94"),
)
LEGEND_COLUMNS = 6


@contextmanager
def default_style() -> Iterator[None]:
    """Use Matplotlib's own style in a block, and draw all text as it is: names of users may hold dollar signs.

    nnU-Net's plot of a training leaves huge fonts behind. Matplotlib looks up some settings only when a legend is made
    or a figure is saved, so the block has to contain these as well.

    Examples:
        >>> with default_style():  # doctest: +SKIP
        ...     figure.legend()
        ...     figure.savefig("figure.png")
    """
    with matplotlib.style.context(["default", {"text.parse_math": False}]):
        yield


def to_picture(channels: np.ndarray, has_colors: bool) -> np.ndarray:
    """Return what Matplotlib draws of an image: its first channel, or its colors between 0 and 1.

    Args:
        channels: Image ``(channels, rows, columns)``.
        has_colors: Whether the first three channels are red, green and blue, see ``Dataset.has_colors``.

    Examples:
        >>> to_picture(np.zeros((3, 4, 5)), has_colors=True).shape
        (4, 5, 3)
    """
    if not has_colors:
        return channels[0]
    low, high = channels.min(), channels.max()
    return np.moveaxis((channels - low) / max(high - low, 1e-8), 0, -1)


def label_color(label: int) -> str:
    """Return the color of a label above 0, the same in all figures.

    Examples:
        >>> label_color(1) == label_color(1 + len(LABEL_COLORS))
        True
    """
    return LABEL_COLORS[(label - 1) % len(LABEL_COLORS)]


def outline(axes: Axes, labels: np.ndarray) -> None:
    """Outline the labels of a slice ``(rows, columns)`` in their colors."""
    for label in sorted(set(np.unique(labels)) - {0}):
        axes.contour(labels == label, [0.5], colors=[label_color(int(label))], linewidths=1.4)


def label_legend(figure: Figure, names: Mapping[int, str], maps: Iterable[np.ndarray]) -> None:
    """Add a legend below a figure with the labels that occur in its label maps; none if no label does."""
    shown = {label for labels in maps for label in np.unique(labels).tolist()}
    handles = [
        Line2D([], [], color=label_color(label), label=name) for label, name in sorted(names.items()) if label in shown
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)), fontsize=9)
