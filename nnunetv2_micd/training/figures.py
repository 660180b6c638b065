"""Figures of a training: the history of its epochs as a table and a plot, and pictures of unlabeled patches."""

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_micd.training.terms import DICE, WEIGHTS, describe, is_share
from nnunetv2_micd.utils.figures import default_style, label_color, to_picture
from nnunetv2_micd.utils.files import atomic
from nnunetv2_micd.utils.wording import counted

Row = Mapping[str, float]

PATCHES_SHOWN = 3
LEGEND_COLUMNS = 6


def write_csv(rows: Sequence[Row], path: str) -> None:
    """Write one line for each epoch, with a column for each figure that any epoch has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot_history(rows: Sequence[Row], path: str, reference: Sequence[float] = ()) -> None:
    """Draw the online Dice, shares of voxels, the losses and their weight over the epochs, and say what is good.

    Args:
        rows: Figures of each epoch.
        path: File of the picture, a PNG.
        reference: Online Dice of nnU-Net on the same labels for each epoch; empty if it is not known.
    """
    with default_style(), atomic(path) as temporary:
        _draw_history(rows, reference).savefig(temporary, dpi=100, format="png")


def _draw_history(rows: Sequence[Row], reference: Sequence[float]) -> Figure:
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("epoch", "skipped_steps")))
    shares = [name for name in names if is_share(name)]
    losses = [name for name in names if name not in (DICE, *WEIGHTS, *shares)]
    agreement = "agreement should rise, " if any("agreement" in name for name in shares) else ""
    panels = {
        "Online Dice: should rise and stay up" + (", and in the end lie above nnU-Net's" if reference else ""): [DICE],
        f"Unlabeled images: {agreement}foreground should neither vanish nor keep growing": shares,
        "Losses: should fall; unsupervised ones may first rise": losses,
        "Weight of the unsupervised losses, and their share": [name for name in names if name in WEIGHTS],
    }
    if not any(row.get("unsupervised_share", 1) for row in rows):  # a method whose loss of all images is one
        del panels["Weight of the unsupervised losses, and their share"]
    panels = {title: group for title, group in panels.items() if group}
    figure = Figure(figsize=(13, 3.5 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, group) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(alpha=0.3)
        for name in group:
            known = [row for row in rows if name in row]
            _plot(axes, [row["epoch"] for row in known], [row[name] for row in known], describe(name))
        if reference and group == [DICE]:
            axes.plot(
                range(len(reference)), reference, color="gray", linestyle="--", label="nnU-Net on the same labels"
            )
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    all_axes[-1].set_xlabel("epoch")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _plot(axes: Axes, epochs: Sequence[float], values: Sequence[float], label: str) -> None:
    axes.plot(epochs, values, marker="." if len(epochs) < 30 else "", label=label)


def image_panel(images: Tensor, has_colors: bool) -> Tensor:
    """Return images as a panel of a picture: the first channel, or the colors ``(B, *patch, 3)`` as bytes.

    Args:
        images: Images ``(B, channels, *patch)``.
        has_colors: Whether the channels are red, green and blue.
    """
    if not has_colors:
        return images[:, 0]
    pictures = [to_picture(image.float().cpu().numpy(), has_colors) for image in images]
    return torch.from_numpy(np.stack(pictures) * 255).byte()


def label_names(labels: LabelManager) -> dict[int, str]:
    """Return what the values of a label map stand for; of regions it holds to how many of them a voxel belongs."""
    if labels.has_regions:
        return {number: f"in {counted(number, 'region')}" for number in range(1, labels.num_segmentation_heads + 1)}
    return {int(value): name for name, value in labels.label_dict.items() if value not in (0, labels.ignore_label)}


def save_patches(
    panels: Mapping[str, Tensor], path: str, title: str = "", cases: Sequence[str] = (), names: Mapping[int, str] = {}
) -> None:
    """Draw the middle slice of some patches, a row each.

    Args:
        panels: Panels ``(B, *patch)`` of two or three spatial axes by title. Floats are drawn as images, bytes as
            colors, see :func:`image_panel`, other integers as labels, bools as marks.
        path: File of the picture, a PNG; its folder is made.
        title: Title of the picture.
        cases: Name of the image of each patch.
        names: Name of each label, for the legend.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with default_style(), atomic(path) as temporary:
        figure = _draw_patches(panels, cases)
        figure.suptitle(title, fontsize=10)
        shown = {label for panel in panels.values() if not _is_image(panel) for label in panel.unique().tolist()}
        handles = [Patch(color=label_color(label), label=name) for label, name in names.items() if label in shown]
        if handles:
            figure.set_figheight(figure.get_figheight() + 0.25 * (1 + len(handles) // LEGEND_COLUMNS))
            figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=9)
        figure.savefig(temporary, dpi=100, format="png")


def _draw_patches(panels: Mapping[str, Tensor], cases: Sequence[str]) -> Figure:
    rows = min(PATCHES_SHOWN, *(len(panel) for panel in panels.values()))
    height, width = _middle_slice(next(iter(panels.values()))[0]).shape[:2]
    size = (2.5 * len(panels), (2.5 * min(height / width, 2) + 0.1) * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, len(panels), squeeze=False)
    for column, (title, panel) in enumerate(panels.items()):
        axes[0, column].set_title(title, fontsize=9)
        highest = 0 if _is_image(panel) else max(1, int(panel.max()))
        colors = ListedColormap(["black", *map(label_color, range(1, highest + 1))])
        for row in range(rows):
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_visible(False)
            if column == 0 and row < len(cases):
                axes[row, column].set_ylabel(cases[row], fontsize=8)
            picture = _middle_slice(panel[row]).cpu()
            if _is_image(panel):  # Matplotlib draws colors, which have an axis more, as they are
                axes[row, column].imshow(picture.numpy(), cmap="gray")
            else:
                marks = panel.dtype == torch.bool
                axes[row, column].imshow(
                    picture.numpy(), cmap="Reds" if marks else colors, vmin=0, vmax=highest, interpolation="nearest"
                )
    return figure


def _is_image(panel: Tensor) -> bool:
    return panel.is_floating_point() or panel.dtype == torch.uint8


def _middle_slice(patch: Tensor) -> Tensor:
    is_volume = patch.ndim == 3 and patch.dtype != torch.uint8
    picture = patch[len(patch) // 2] if is_volume else patch
    return picture.float() if picture.is_floating_point() else picture
