"""How a trainer looks in the plots of a report: its color, marker and name, the same in all of them."""

from collections.abc import Sequence
from itertools import cycle
from textwrap import fill
from typing import Any

from nnunetv2_micd.report.runs import display_name, is_baseline, is_control, is_method
from nnunetv2_micd.training.registry import STOCK

COLORS = (
    *("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f3fbf"),
    *("#999900", "#b22222", "#f032e6", "#000075", "#7ccd00", "#00c5c5", "#ff8fa3"),
)
"""Colors of methods. The first six are Okabe and Ito's, which color-blind readers can distinguish."""
CONTROL_COLORS = ("#7a7a7a", "#b0b0b0")
BASELINE_COLOR = "#1a1a1a"
MARKERS = "osD^vPX*<>p"
"""Eleven, as eleven and the number of colors have no common factor: so no color has the same marker twice for long."""
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
"""Settings of Matplotlib for all plots."""


def choose_colors(trainers: Sequence[str]) -> dict[str, str]:
    """Return a color for each trainer: dark for the baseline, gray for controls, the same in all plots.

    Colors repeat if there are many methods, but never together with the marker of `choose_markers`.
    """
    return _deal(trainers, [BASELINE_COLOR], CONTROL_COLORS, COLORS)


def choose_markers(trainers: Sequence[str]) -> dict[str, str]:
    """Return a marker for each trainer, the same in all plots."""
    return _deal(trainers, MARKERS[:1], MARKERS, MARKERS)


def _deal(
    trainers: Sequence[str], of_baseline: Sequence[str], of_controls: Sequence[str], of_methods: Sequence[str]
) -> dict[str, str]:
    """Return an item for each trainer from those for its kind, in turn."""
    dealt: dict[str, str] = {}
    for is_kind, items in ((is_baseline, of_baseline), (is_control, of_controls), (is_method, of_methods)):
        dealt |= dict(zip(filter(is_kind, trainers), cycle(items), strict=False))
    return dealt


def choose_look(trainer: str, trainers: Sequence[str]) -> dict[str, Any]:
    """Return arguments for Matplotlib's error bars."""
    look = {"color": choose_colors(trainers)[trainer], "marker": choose_markers(trainers)[trainer], "capsize": 3}
    return look | ({"linewidth": 2.8, "elinewidth": 1.2, "zorder": 3} if trainer == STOCK else {"linewidth": 1.2})


def wrap_name(trainer: str, width: int = 30) -> str:
    """Return the name of a trainer in lines that are not too long for a legend or an axis."""
    return fill(display_name(trainer), width)
