"""The scores against hand-computed values, brute force and DeepMind's code."""

import builtins
import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from nnunetv2_micd.report.scores import Score, score_case

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.5, 0.7), (0.8, 2.5, 1.0)]


def blobs(seed: int, shape: tuple[int, ...] = (12, 16, 14)) -> tuple[np.ndarray, np.ndarray]:
    """Two random masks that overlap in part, touch the border of the image and have several components."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 2, mode="wrap")
    other = smooth + 0.5 * ndimage.gaussian_filter(generator.normal(size=shape), 2)
    return smooth > np.quantile(smooth, 0.8), other > np.quantile(other, 0.75)


def score(truth: np.ndarray, prediction: np.ndarray, spacing: Any = (1, 1, 1), tolerance: float = 1.0) -> Score:
    scores = score_case(truth.astype(np.uint8), prediction.astype(np.uint8), spacing, {"it": 1}, None, tolerance)
    return scores["it"]


def surface_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels of the mask with a neighbor outside of it, across a face, in mm."""
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)
    return np.argwhere(padded & ~inside) * np.asarray(spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_distances_agree_with_brute_force(seed: int, spacing: tuple[float, ...]) -> None:
    truth, prediction = blobs(seed)
    distances = cdist(surface_points(truth, spacing), surface_points(prediction, spacing))
    to_prediction, to_truth = distances.min(1), distances.min(0)

    result = score(truth, prediction, spacing)

    assert result.hd95 == pytest.approx(max(np.quantile(to_prediction, 0.95), np.quantile(to_truth, 0.95)), rel=1e-5)
    assert result.asd == pytest.approx(np.concatenate([to_prediction, to_truth]).mean(), rel=1e-5)
    assert result.dice == pytest.approx(2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()))
    assert result.outcome == "scored"


@pytest.mark.parametrize("tolerance", [0.6, 1.0, 2.2])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_surface_dice_agrees_with_deepmind(seed: int, spacing: tuple[float, ...], tolerance: float) -> None:
    surface_distance = pytest.importorskip("surface_distance.metrics")
    truth, prediction = blobs(seed)
    distances = surface_distance.compute_surface_distances(truth, prediction, spacing)

    expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)

    assert score(truth, prediction, spacing, tolerance).nsd == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("place", [(0, 0, 0), (3, 4, 5), (5, 6, 7)])
def test_single_voxels_have_the_distance_between_them(place: tuple[int, ...]) -> None:
    truth, prediction = np.zeros((2, 6, 7, 8), bool)
    truth[place] = prediction[3, 4, 4] = True
    spacing = (3.0, 1.0, 0.5)
    expected = math.dist(np.multiply(place, spacing), np.multiply((3, 4, 4), spacing))

    result = score(truth, prediction, spacing, tolerance=0.6)

    assert (result.hd95, result.asd) == (pytest.approx(expected), pytest.approx(expected))
    assert result.dice == 0
    assert (result.nsd > 0) == (expected < 0.6)


def test_a_perfect_prediction_has_perfect_scores() -> None:
    truth, _ = blobs(0)
    assert score(truth, truth, (3, 1, 1)) == Score(1.0, 1.0, 0.0, 0.0)


def test_empty_masks() -> None:
    full, empty = np.ones((3, 4, 12), bool), np.zeros((3, 4, 12), bool)
    spacing, diagonal = (1, 1, 1), 13.0
    assert score(full, empty, spacing) == Score(0, 0, diagonal, diagonal, "missed")
    assert score(empty, full, spacing) == Score(0, 0, diagonal, diagonal, "false alarm")
    absent = score(empty, empty, spacing)
    assert absent.outcome == "absent"
    assert all(math.isnan(value) for value in (absent.dice, absent.nsd, absent.hd95, absent.asd))
    assert score(full, empty, (2, 0.5, 1)).hd95 == pytest.approx(math.sqrt(6**2 + 2**2 + 12**2))


def test_a_region_is_the_union_of_its_labels() -> None:
    truth = np.array([[[1, 1, 2, 0, 3]]])
    prediction = np.array([[[2, 2, 1, 0, 3]]])

    scores = score_case(truth, prediction, (1, 1, 1), {"whole": (1, 2, 3), "core": (2,), "edge": 3})

    assert scores["whole"].dice == scores["edge"].dice == 1
    assert scores["core"].dice == 0


def test_ignored_voxels_are_left_out_of_truth_and_prediction() -> None:
    truth, prediction = np.zeros((2, 8, 8, 8), np.uint8)
    truth[2:5, 2:5, 2:5] = prediction[2:5, 2:5, 2:5] = 1
    truth[:, :, 6:] = 2
    prediction[:, :, 6:] = 1
    scores = {ignore: score_case(truth, prediction, (1, 1, 1), {"it": 1}, ignore)["it"] for ignore in (2, None)}
    assert scores[2] == Score(1.0, 1.0, 0.0, 0.0)
    assert scores[None].dice < 0.5
    truth[truth == 1] = 0
    prediction[2:5, 2:5, 2:5] = 0
    assert score_case(truth, prediction, (1, 1, 1), {"it": 1}, 2)["it"].outcome == "absent"


def test_two_dimensional_images_have_contours() -> None:
    """Nnu-Net reads them with a first axis of length one and a spacing of 999 there."""
    truth, prediction = (mask[None] for mask in blobs(1, (20, 24)))
    spacing = (999.0, 0.5, 2.0)
    distances = cdist(surface_points(truth[0], spacing[1:]), surface_points(prediction[0], spacing[1:]))
    assert score(truth, prediction, spacing).asd == pytest.approx(
        np.concatenate([distances.min(0), distances.min(1)]).mean(), rel=1e-5
    )
    assert score(truth, np.zeros_like(truth), spacing).hd95 == pytest.approx(math.hypot(10, 48))


def test_the_tolerance_includes_a_voxel_whose_spacing_was_rounded() -> None:
    truth, prediction = np.zeros((2, 10, 10, 10), bool)
    truth[2:6, 2:6, 2:6] = prediction[3:7, 2:6, 2:6] = True
    one = float(np.nextafter(np.float32(1), np.float32(2)))
    assert score(truth, prediction, (one, one, one), tolerance=1).nsd == pytest.approx(1)


@pytest.mark.parametrize("tolerance", [0, -1, math.inf, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="positive number of millimeters"):
        score(*blobs(0), tolerance=tolerance)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\), prediction \(2, 2, 3\)"):
        score(np.ones((2, 2, 2)), np.ones((2, 2, 3)))


def test_a_missing_monai_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_monai(name: str, *args: Any) -> Any:
        if name.startswith("monai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="monai")
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_monai)
    with pytest.raises(ValueError, match=r'monai is not installed.*pip install "\.\[benchmark\]"'):
        score(*blobs(0))
