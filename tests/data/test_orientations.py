"""Orientations of images: those of one kind are alike, flipped and turned ones are not."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from scipy.spatial.transform import Rotation

from nnunetv2_micd.data.orientations import are_alike, describe_turned, orientation

STRAIGHT = np.eye(3)
OBLIQUE = Rotation.from_euler("xyz", (20, -20, 25), degrees=True).as_matrix()
OTHERS = {
    "flipped": np.diag([1, 1, -1]),
    "turned by half": np.diag([-1, -1, 1]),
    "with other axes": np.eye(3)[[1, 2, 0]],
    "with two axes exchanged": np.eye(3)[[0, 2, 1]],
}


def read(reader: Any, file: Path, direction: np.ndarray) -> dict[str, Any]:
    image = sitk.GetImageFromArray(np.ones((4, 5, 6), np.float32))
    image.SetDirection(direction.flatten().tolist())
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, str(file))
    return dict(reader().read_images([str(file)])[1])


@pytest.mark.parametrize("base", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_images_of_other_kinds_are_not_alike(reader: type, base: np.ndarray, tmp_path: Path) -> None:
    def axes(direction: np.ndarray) -> np.ndarray:
        found = orientation(read(reader, tmp_path / "x.nii.gz", direction))
        assert found is not None
        return found

    assert are_alike(axes(base), axes(base @ OBLIQUE))
    assert [name for name, other in OTHERS.items() if are_alike(axes(base), axes(base @ other))] == []


@pytest.mark.parametrize("reader", [SimpleITKIOWithReorient, NibabelIOWithReorient])
def test_readers_that_turn_images_make_them_alike(reader: type, tmp_path: Path) -> None:
    found = [orientation(read(reader, tmp_path / "x.nii.gz", other)) for other in (STRAIGHT, *OTHERS.values())]
    assert all(axes is not None and are_alike(axes, STRAIGHT) == are_alike(found[0], STRAIGHT) for axes in found)
    assert all(are_alike(axes, found[0]) for axes in found)


def test_images_without_orientation(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((5, 6), np.float32)), str(tmp_path / "flat.nii.gz"))
    assert orientation(SimpleITKIO().read_images([str(tmp_path / "flat.nii.gz")])[1]) is None
    assert orientation({"spacing": (999, 1, 1)}) is None


def test_a_file_of_several_channels(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.ones((2, 4, 5, 6), np.float32), isVector=False)
    sitk.WriteImage(image, str(tmp_path / "x.nii.gz"))
    axes = orientation(SimpleITKIO().read_images([str(tmp_path / "x.nii.gz")])[1])
    assert axes is not None
    np.testing.assert_array_equal(axes, STRAIGHT)


class Dataset(SimpleNamespace):
    """What is asked of a dataset, with folders of properties."""

    def __init__(self, root: Path, reader: type = SimpleITKIO):
        super().__init__(
            plans=SimpleNamespace(image_reader_writer_class=reader),
            plan_command="nnUNetv2_plan_and_preprocess --clean -d 4",
            preprocess_command="nnUNetv2_micd preprocess -d 4",
        )
        self.labeled, self.unlabeled = root / "labeled", root / "unlabeled"
        self.labeled_folder, self.unlabeled_folder = lambda _: self.labeled, lambda _: self.unlabeled
        for folder in (self.labeled, self.unlabeled):
            folder.mkdir(exist_ok=True)


def write(folder: Path, case: str, content: Any) -> None:
    (folder / f"{case}.b2nd").touch()
    (folder / f"{case}.pkl").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))


def properties(direction: np.ndarray) -> dict[str, Any]:
    return {
        "sitk_stuff": {"direction": tuple(direction.flatten())},
        "spacing": [np.float64(1)] * 3,
        "class_locations": {1: np.zeros((3, 4), np.int64), 2: []},
    }


def test_images_unlike_all_labeled_ones_are_named(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    for name, direction in OTHERS.items():
        write(dataset.unlabeled, name, properties(direction))
    assert describe_turned(dataset, "3d_fullres") is None  # nothing to compare with
    write(dataset.labeled, "a", properties(OBLIQUE))
    write(dataset.labeled, "b", properties(OTHERS["flipped"]))
    write(dataset.unlabeled, "like a", properties(STRAIGHT))
    text, remedy = describe_turned(dataset, "3d_fullres") or ("", "")
    assert "(turned by half, with other axes, with two axes exchanged)" in text
    assert '"overwrite_image_reader_writer": "SimpleITKIOWithReorient"' in remedy
    assert "nnUNetv2_plan_and_preprocess --clean -d 4 ; then: nnUNetv2_micd preprocess -d 4 --overwrite" in remedy
    assert describe_turned(Dataset(tmp_path, SimpleITKIOWithReorient), "3d_fullres") is None


class Harmful:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_damaged_and_harmful_files_are_passed_over(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    for number, content in enumerate((b"", b"nonsense", {}, [], Harmful(tmp_path / "harm"))):
        write(dataset.labeled, f"bad {number}", content)
        write(dataset.unlabeled, f"bad {number}", content)
    write(dataset.labeled, "good", properties(STRAIGHT))
    write(dataset.unlabeled, "flipped", properties(OTHERS["flipped"]))
    assert "(flipped)" in (describe_turned(dataset, "3d_fullres") or ("", ""))[0]
    assert not (tmp_path / "harm").exists()
