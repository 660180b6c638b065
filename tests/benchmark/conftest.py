"""Fixtures of the benchmark's tests: a small grid and a test set."""

import pytest
from helpers import TinyDataset, make_volume, write_image

from nnunetv2_micd.benchmark import Grid, Length


@pytest.fixture
def grid(dataset: TinyDataset) -> Grid:
    """Return a grid of trainings of two epochs of two steps."""
    return Grid("901", "3d_fullres", ["nnUNetTrainerMICD"], ["2"], [0], length=Length(2, 2))


@pytest.fixture
def test_set(dataset: TinyDataset) -> tuple[str, str]:
    """Return the folders of two test images and of their labels."""
    images, labels = dataset.raw / "imagesTs", dataset.raw / "labelsTs"
    for seed in (50, 51):
        image, truth = make_volume(seed, (18, 22, 26))
        write_image(images / f"test_{seed}_0000.nii.gz", image)
        write_image(labels / f"test_{seed}.nii.gz", truth)
    return str(images), str(labels)
