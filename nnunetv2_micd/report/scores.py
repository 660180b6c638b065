"""The scores of one segmented case: pure functions on arrays.

The surface metrics come from MONAI. It is maintained, runs with the PyTorch that nnU-Net needs anyway, and takes the
spacing of the image. Its normalized surface Dice weights each piece of surface by its area, as the authors' code does
(DeepMind's surface-distance, which has had no release for years). The tests compare it with that code and with a
computation by brute force. The Dice needs no library.

MONAI leaves three things open, which are settled here: empty masks, see :data:`RULE_FOR_EMPTY_MASKS`, regions, and
ignored voxels.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage

Outcome = Literal["scored", "missed", "false alarm", "absent"]

METRICS = ("dice", "nsd", "hd95", "asd")
"""The fields of :class:`Score` that are numbers."""

PERFECT = {"dice": 1.0, "nsd": 1.0, "hd95": 0.0, "asd": 0.0}
"""Value of each metric for a prediction that equals the truth."""

ROUNDING = 1e-5
"""Relative error of a spacing in the header of an image, which keeps 32 bits of it."""

RULE_FOR_EMPTY_MASKS = (
    "A class that is neither in the truth nor in the prediction of a case is not scored there, but counted as absent. "
    "Where only one of the two is empty (missed: the prediction; false alarm: the truth), Dice and surface Dice are 0 "
    "and both distances are the diagonal of the image in mm, of photographs in pixels."
)


@dataclass(frozen=True)
class Score:
    """The scores of one class in one case; all are NaN if the class is absent.

    Attributes:
        dice: Overlap, 0 to 1.
        nsd: Normalized surface Dice: share of both surfaces that lies within the tolerance of the other, 0 to 1.
        hd95: 95th percentile of the distances between the surfaces in mm, the larger of the two directions.
        asd: Mean of the distances between the surfaces in mm, of both directions together.
        outcome: Says if truth or prediction is empty.
    """

    dice: float
    nsd: float
    hd95: float
    asd: float
    outcome: Outcome = "scored"


def score_case(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    classes: Mapping[str, int | tuple[int, ...]],
    ignore_label: int | None = None,
    tolerance: float = 1.0,
) -> dict[str, Score]:
    """Score each class of a case.

    Args:
        truth: Label map of two or three spatial axes. A first axis of length one, which nnU-Net's readers give to
            two-dimensional images, is left out.
        prediction: Label map of the same shape.
        spacing: Spacing in mm, in the order of the axes.
        classes: Label of each class by its name, or the labels whose union is a region.
        ignore_label: Label of the voxels in the truth that are left out of truth and prediction.
        tolerance: Tolerance of the normalized surface Dice in mm.

    Raises:
        ValueError: The shapes differ, the spacing does not fit them, or the tolerance is not positive.

    Examples:
        >>> truth, prediction = np.zeros((2, 8, 8, 8), int)
        >>> truth[2:6, 2:6, 2:6] = prediction[2:6, 2:6, 3:7] = 1
        >>> score_case(truth, prediction, spacing=(1, 1, 1), classes={"organ": 1})["organ"].dice
        0.75
    """
    if truth.shape != prediction.shape or len(spacing) != truth.ndim:
        raise ValueError(
            f"Truth {truth.shape}, prediction {prediction.shape} and spacing {tuple(spacing)} do not fit together"
        )
    check_tolerance(tolerance)
    if truth.ndim == 3 and len(truth) == 1:
        truth, prediction, spacing = truth[0], prediction[0], spacing[1:]
    if ignore_label is not None:
        prediction = np.where(truth == ignore_label, 0, prediction)
    return {
        name: _score_masks(np.isin(truth, labels), np.isin(prediction, labels), spacing, tolerance)
        for name, labels in classes.items()
    }


def check_tolerance(tolerance: float) -> None:
    """Raise a ``ValueError`` unless the tolerance is a positive number."""
    if not 0 < tolerance < np.inf:
        raise ValueError(f"The tolerance must be a positive number of millimeters, not {tolerance}")


def _score_masks(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float) -> Score:
    in_truth, in_prediction = bool(truth.any()), bool(prediction.any())
    if not in_truth and not in_prediction:
        return Score(np.nan, np.nan, np.nan, np.nan, "absent")
    if not in_truth or not in_prediction:
        diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
        return Score(0.0, 0.0, diagonal, diagonal, "missed" if in_truth else "false alarm")
    dice = float(2 * np.count_nonzero(truth & prediction) / (np.count_nonzero(truth) + np.count_nonzero(prediction)))
    # Crop to the union: empty margins do not change the scores but cost memory.
    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
    return Score(dice, *_surface_scores(truth[box], prediction[box], spacing, tolerance))


def _surface_scores(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float, float]:
    metrics = _monai_metrics()
    # Otherwise one voxel of a "1 mm" image may be further than 1 mm.
    tolerance *= 1 + ROUNDING
    masks: Any = {
        "y_pred": torch.from_numpy(np.ascontiguousarray(prediction))[None, None],
        "y": torch.from_numpy(np.ascontiguousarray(truth))[None, None],
        "include_background": True,  # otherwise MONAI takes the only channel for the background
        "spacing": [float(length) for length in spacing],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns about its own calls
        nsd = metrics.compute_surface_dice(**masks, class_thresholds=[tolerance], use_subvoxels=True)
        hd95 = metrics.compute_hausdorff_distance(**masks, percentile=95)
        asd = metrics.compute_average_surface_distance(**masks, symmetric=True)
    return float(nsd), float(hd95), float(asd)


def _monai_metrics() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from parts of MONAI that are not used here
            import monai.metrics
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{error.name} is not installed, which the report needs; in the clone, run: pip install ".[benchmark]"'
        ) from None
    return monai.metrics
