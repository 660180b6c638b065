"""The figure of example slices: the image, the truth and the prediction of each method."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from nnunetv2_micd.benchmark.records import ALL_LABELS
from nnunetv2_micd.data.dataset import has_colors
from nnunetv2_micd.data.folders import raw_folder
from nnunetv2_micd.data.raw_images import group_images
from nnunetv2_micd.report.runs import FinishedRun, display_name, find_classes
from nnunetv2_micd.utils.figures import label_color, to_picture

QUANTILES = (0.1, 0.5, 0.9)
"""Quantiles of the baseline's Dice over the cases. The cases at these are shown, to avoid cherry-picking."""
MARGIN = 0.35
"""Margin around the labels as a share of their size."""
MAX_COLUMNS = 7
OPACITY = 0.55
"""Opacity of a label over the image."""


@dataclass(frozen=True)
class ExampleCases:
    """The cases and runs to show.

    Attributes:
        runs: One run for each method, all with the same budget and seed.
        dice: Dice of each case (row) and trainer (column), the mean over the classes.
    """

    runs: list[FinishedRun]
    dice: pd.DataFrame

    @property
    def caption(self) -> str:
        """Description of the figure and of the choice of cases."""
        run = self.runs[0]
        levels = ", ".join(f"{100 * quantile:.0f} %" for quantile in QUANTILES)
        return (
            f"Labeled: {len(run.settings.labeled)}, seed {run.settings.seed}. Cases at the {levels} quantiles of the "
            f"Dice of {display_name(run.trainer)}, in the slice with most foreground across the widest spacing, cut "
            "out around the truth and all predictions. White lines: the truth. Numbers: the Dice of the whole case, "
            "mean of the classes. Gray areas: the ignore label."
        )


def choose_examples(runs: Sequence[FinishedRun], by_case: pd.DataFrame) -> ExampleCases | None:
    """Choose the smallest budget, its seed with the most methods, and cases by the Dice of the first method.

    Args:
        runs: The runs, sorted by budget, the baseline first.
        by_case: Scores of each run and case, see `aggregate.mean_over_classes`.
    """
    with_budget = [run for run in runs if run.settings.budget != ALL_LABELS] or list(runs)
    budget = with_budget[0].settings.budget
    same_budget = [run for run in with_budget if run.settings.budget == budget]
    seeds = [run.settings.seed for run in same_budget]
    seed = max(sorted(set(seeds)), key=seeds.count)
    chosen = [run for run in same_budget if run.settings.seed == seed]
    first = chosen[0].trainer
    rows = by_case[(by_case["budget"] == budget) & (by_case["seed"] == seed)]
    dice = rows.pivot(index="case", columns="trainer", values="dice")
    dice = dice.dropna(subset=first).sort_values(first, kind="stable")
    positions = dict.fromkeys(round(quantile * (len(dice) - 1)) for quantile in QUANTILES)
    return ExampleCases(chosen, dice.iloc[list(positions)]) if len(dice) else None


def draw_examples(examples: ExampleCases) -> Figure:
    """Draw for each case the image, the truth and the prediction of each method, in one row or several."""
    rows = math.ceil((2 + len(examples.runs)) / MAX_COLUMNS)  # for one case
    columns = math.ceil((2 + len(examples.runs)) / rows)
    figure = Figure(figsize=(1.8 * columns, 2.3 * rows * len(examples.dice) + 0.3), layout="constrained")
    axes = figure.subplots(rows * len(examples.dice), columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for block, case in enumerate(examples.dice.index):
        panels = axes[rows * block : rows * (block + 1)].ravel()
        image, maps, aspect = read_case(examples.runs, case)
        scores = [_percent(examples.dice.loc[case, run.trainer]) for run in examples.runs]
        names = [
            f"{fill(display_name(run.trainer), 24)}\n{score}" for run, score in zip(examples.runs, scores, strict=True)
        ]
        for number, (title, labels) in enumerate(zip([case, "truth", *names], [None, *maps], strict=True)):
            panels[number].imshow(image, cmap="gray", aspect=aspect)
            panels[number].set_title(title, fontsize=9)
            if labels is not None:
                _draw_labels(panels[number], labels, examples.runs[0], aspect)
            if number > 1:
                _draw_outlines(panels[number], maps[0], examples.runs[0])
    figure.legend(handles=_class_legend(examples.runs[0]), loc="outside upper center", ncols=columns)
    return figure


def _class_legend(run: FinishedRun) -> list[Patch]:
    """Return for each label the patch and name for a legend; a label that is in several regions has all their names."""
    names: dict[int, list[str]] = {}
    for name, labels in find_classes(run).items():
        for label in labels:
            names.setdefault(label, []).append(name)
    return [Patch(color=label_color(label), alpha=OPACITY, label=", ".join(names[label])) for label in sorted(names)]


def _percent(dice: float) -> str:
    return "not scored" if np.isnan(dice) else f"{100 * dice:.1f} %"


def _draw_labels(panel: Axes, labels: np.ndarray, run: FinishedRun, aspect: float) -> None:
    """Draw a label map over the image; the color of a label is the same in all panels."""
    ignore = run.ignore_label
    highest = max(run.plans_manager.get_label_manager(run.dataset_json).all_labels)
    colors = [label_color(label) for label in range(1, max(2, highest + 1))]
    panel.imshow(
        np.ma.masked_where((labels == 0) | (labels == ignore), labels),
        cmap=ListedColormap(colors),
        vmin=1,
        vmax=max(2, highest),
        alpha=OPACITY,
        aspect=aspect,
        interpolation="nearest",
    )
    if ignore is not None:
        ignored = np.ma.masked_where(labels != ignore, labels)
        panel.imshow(ignored, cmap=ListedColormap(["0.6"]), alpha=OPACITY, aspect=aspect, interpolation="nearest")


def _draw_outlines(panel: Axes, truth: np.ndarray, run: FinishedRun) -> None:
    for label in set(np.unique(truth)) - {0, run.ignore_label}:
        panel.contour(truth == label, [0.5], colors="white", linewidths=0.8)


def read_case(runs: Sequence[FinishedRun], case: str) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Return a slice of the image, the same slice of truth and predictions, and the aspect ratio of its pixels."""
    truth, _, spacing = runs[0].read_pair(case)
    # nnU-Net gives two-dimensional images a first axis of length one, with a spacing that means nothing.
    across = 0 if len(truth) == 1 else int(np.argmax(spacing))
    others = tuple(axis for axis in range(3) if axis != across)
    in_slices = np.count_nonzero(truth, axis=others)
    if not in_slices.any():
        in_slices = sum(np.count_nonzero(volume, axis=others) for volume in _read_predictions(runs, case))
    position = int(np.argmax(in_slices))
    # One volume at a time, as there may be many runs and volumes of gigabytes.
    maps = [np.take(volume, position, axis=across) for volume in chain([truth], _read_predictions(runs, case))]
    image = _read_image(runs[0], case)
    image = np.zeros((1, *truth.shape)) if image is None or image.shape[1:] != truth.shape else image
    picture = to_picture(np.take(image, position, axis=1 + across), has_colors=len(image) == 3)
    box = _box_around(np.any([labels > 0 for labels in maps], axis=0))  # what is wrong may be far from the truth
    rest = [length for axis, length in enumerate(spacing) if axis != across]
    return picture[box], [labels[box] for labels in maps], rest[0] / rest[1]


def _read_predictions(runs: Sequence[FinishedRun], case: str) -> Iterator[np.ndarray]:
    return (run.read_segmentation(run.prediction_file(case))[0] for run in runs)


def _box_around(mask: np.ndarray) -> tuple[slice, ...]:
    """Return a square box in voxels around the foreground, or the whole mask if there is none."""
    boxes = ndimage.find_objects((mask > 0).astype(np.uint8))
    if not boxes:
        return tuple(slice(0, length) for length in mask.shape)
    side = max(extent.stop - extent.start for extent in boxes[0])
    half = int(np.ceil((0.5 + MARGIN) * side)) + 2
    centers = [(extent.start + extent.stop) // 2 for extent in boxes[0]]
    return tuple(
        slice(max(0, center - half), min(length, center + half))
        for center, length in zip(centers, mask.shape, strict=True)
    )


def _read_image(run: FinishedRun, case: str) -> np.ndarray | None:
    """Return the colors of an image or else its first channel, or None if it is not found or cannot be read."""
    ending = run.dataset_json["file_ending"]
    try:
        # A dataset.json with this key names the images of each case instead of leaving that to their file names.
        if "dataset" in run.dataset_json and run.settings.test_images is None:
            folder = Path(raw_folder(run.settings.dataset))
            files = [str(folder / name) for name in run.dataset_json["dataset"][case]["images"]]
        else:
            folder = Path(run.settings.test_images or Path(raw_folder(run.settings.dataset), "imagesTr"))
            files = group_images(str(folder), ending)[case]
        image = np.asarray(run.plans_manager.image_reader_writer_class().read_images(files)[0])
        return image if has_colors(run.plans_manager, run.dataset_json) else image[:1]
    except (OSError, ValueError, KeyError, RuntimeError):
        return None
