"""Figures of a training: the history of its epochs as a table and a plot, and pictures of unlabeled patches."""

import csv
import os
from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from nnunetv2_micd.utils.figures import default_style, label_color
from nnunetv2_micd.utils.files import atomic

Row = Mapping[str, float]

SHARES = (
    *("agreement", "confident", "certain", "a_is_better", "reliability", "pseudo_labeled"),
    *("position_weight", "position_usable", "case_weight", "case_usable"),
)
"""Figures between 0 and 1 that methods report: shares of voxels, patches or steps, and mean weights."""

PATCHES_SHOWN = 3
LEGEND_COLUMNS = 6


def write_csv(rows: Sequence[Row], path: str) -> None:
    """Write one line for each epoch, with a column for each figure that any epoch has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot_history(rows: Sequence[Row], path: str) -> None:
    """Draw the losses, the weight and share of the unsupervised ones, and shares of voxels over the epochs."""
    with default_style():
        _draw_history(rows).savefig(path, dpi=100)


def _draw_history(rows: Sequence[Row]) -> Figure:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "epoch"))
    shares = [name for name in names if name in SHARES or name.startswith(("foreground", "mean_fg"))]
    weights = [name for name in names if name in ("b", "unsupervised_share")]
    losses = [name for name in names if name not in (*shares, *weights, "skipped_steps")]
    figure = Figure(figsize=(10, 12), layout="constrained")
    panels = {"loss": losses, "weight b(t) and share of the loss": weights, "share of voxels, Dice": shares}
    for axes, (title, group) in zip(figure.subplots(3, 1, sharex=True), panels.items(), strict=True):
        for name in group:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=name)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if group:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("epoch")
    return figure


def save_patches(
    panels: Mapping[str, Tensor], path: str, title: str = "", cases: Sequence[str] = (), names: Mapping[int, str] = {}
) -> None:
    """Draw the middle slice of some patches, a row each.

    Args:
        panels: Panels ``(B, *patch)`` of two or three spatial axes by title. Floats are drawn as images, integers as
            labels, bools as marks.
        path: File of the picture, a PNG; its folder is made.
        title: Title of the picture.
        cases: Name of the image of each patch.
        names: Name of each label, for the legend.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with default_style():
        figure = _draw_patches(panels, cases)
        figure.suptitle(title, fontsize=10)
        shown = {
            label for panel in panels.values() if not panel.is_floating_point() for label in panel.unique().tolist()
        }
        handles = [Patch(color=label_color(label), label=name) for label, name in names.items() if label in shown]
        if handles:
            figure.set_figheight(figure.get_figheight() + 0.25 * (1 + len(handles) // LEGEND_COLUMNS))
            figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=9)
        figure.savefig(path, dpi=100)


def _draw_patches(panels: Mapping[str, Tensor], cases: Sequence[str]) -> Figure:
    rows = min(PATCHES_SHOWN, *(len(panel) for panel in panels.values()))
    figure = Figure(figsize=(2.5 * len(panels), 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, len(panels), squeeze=False)
    for column, (title, panel) in enumerate(panels.items()):
        axes[0, column].set_title(title, fontsize=9)
        highest = 0 if panel.is_floating_point() else max(1, int(panel.max()))
        colors = ListedColormap(["black", *map(label_color, range(1, highest + 1))])
        for row in range(rows):
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_visible(False)
            if column == 0 and row < len(cases):
                axes[row, column].set_ylabel(cases[row], fontsize=8)
            picture = _middle_slice(panel[row]).cpu()
            if panel.is_floating_point():
                axes[row, column].imshow(picture.float().numpy(), cmap="gray")
            else:
                marks = panel.dtype == torch.bool
                axes[row, column].imshow(
                    picture.numpy(), cmap="Reds" if marks else colors, vmin=0, vmax=highest, interpolation="nearest"
                )
    return figure


def _middle_slice(patch: Tensor) -> Tensor:
    return patch[len(patch) // 2] if patch.ndim == 3 else patch
