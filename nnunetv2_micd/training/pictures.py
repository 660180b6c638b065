"""A picture of unlabeled patches and of what the networks see in them."""

import os
from collections.abc import Mapping

import matplotlib.style
import torch
from matplotlib.figure import Figure
from torch import Tensor

PATCHES_SHOWN = 3


def save_patches(panels: Mapping[str, Tensor], path: str) -> None:
    """Draw the middle slice of some patches, a row each.

    Args:
        panels: title to ``(B, *patch)`` of two or three spatial axes: floats are drawn as images, integers as
            labels, bools as marks.
        path: of the PNG; its folder is made.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with matplotlib.style.context("default"):  # nnU-Net's own plot leaves huge fonts behind
        _draw(panels).savefig(path, dpi=100)


def _draw(panels: Mapping[str, Tensor]) -> Figure:
    rows = min(PATCHES_SHOWN, *(len(panel) for panel in panels.values()))
    figure = Figure(figsize=(2.5 * len(panels), 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, len(panels), squeeze=False)
    for column, (title, panel) in enumerate(panels.items()):
        axes[0, column].set_title(title, fontsize=9)
        highest_label = max(1, int(panel.max())) if not panel.is_floating_point() else None
        for row in range(rows):
            axes[row, column].set_axis_off()
            picture = _middle_slice(panel[row]).cpu()
            if panel.is_floating_point():
                axes[row, column].imshow(picture.float().numpy(), cmap="gray")
            else:
                colors = "Reds" if panel.dtype == torch.bool else "nipy_spectral"
                axes[row, column].imshow(
                    picture.numpy(), cmap=colors, vmin=0, vmax=highest_label, interpolation="nearest"
                )
    return figure


def _middle_slice(patch: Tensor) -> Tensor:
    return patch[len(patch) // 2] if patch.ndim == 3 else patch
