"""Unlabeled images that have got labels become labeled cases."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from helpers import TinyDataset, make_volume, write_image

from nnunetv2_micd.benchmark.folds import add_fold
from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data import new_labels
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.new_labels import add_labels
from nnunetv2_micd.doctor.dataset import check_dataset


@pytest.fixture
def labels(dataset: TinyDataset) -> Path:
    """Labels of all unlabeled images."""
    folder = dataset.root / "corrected"
    for case in dataset.unlabeled:
        image = sitk.ReadImage(str(dataset.images / f"{case}_0000.nii.gz"))
        write_image(folder / f"{case}.nii.gz", make_volume(0, image.GetSize()[::-1])[1], image.GetSpacing())
    return folder


def is_labeled(dataset: TinyDataset, case: str) -> bool:
    files = (dataset.raw / "imagesTr" / f"{case}_0000.nii.gz", dataset.raw / "labelsTr" / f"{case}.nii.gz")
    assert files[0].is_file() != (dataset.images / f"{case}_0000.nii.gz").is_file()
    return all(file.is_file() for file in files)


def read(file: Path) -> dict:
    return dict(json.loads(file.read_text()))


def test_images_become_labeled_training_cases_of_all_folds(
    dataset: TinyDataset, labels: Path, capsys: pytest.CaptureFixture
) -> None:
    first, second, *others = dataset.unlabeled
    before, description = Dataset.find(dataset.name).splits(), read(dataset.raw / "dataset.json")
    main(["label", "-d", "901", "-l", str(labels), first, second])
    number = len(dataset.labeled) + 2
    printed = capsys.readouterr().out
    assert f"{dataset.name} has {number} labeled cases now" in printed
    assert re.search(r"^nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 2d 3d_fullres  ", printed, re.M)
    assert re.search(r"^nnUNetv2_micd preprocess -d 901$", printed, re.M)
    assert [is_labeled(dataset, case) for case in (first, second, *others)] == [True, True, *[False] * len(others)]
    assert (labels / f"{first}.nii.gz").is_file()  # the user's file stays
    assert read(dataset.raw / "dataset.json") == description | {"numTraining": number}
    assert read(dataset.preprocessed / "dataset.json")["numTraining"] == number
    assert before is not None
    expected = [{**entry, "train": [*entry["train"], first, second]} for entry in before]
    assert Dataset.find(dataset.name).splits() == expected


def test_a_group_that_validates_goes_on_doing_so(dataset: TinyDataset, labels: Path) -> None:
    fold = {"train": list(dataset.labeled[:4]), "val": list(dataset.labeled[4:])}
    dataset.splits_file.write_text(json.dumps([fold]))
    groups = {dataset.unlabeled[0]: "x", dataset.labeled[5]: "x"}
    (dataset.raw / "groups.json").write_text(json.dumps(groups))
    with pytest.raises(ValueError, match=f"gives these images no group: {dataset.unlabeled[1]}"):
        add_labels(dataset.name, labels, dataset.unlabeled[:2])
    assert Dataset.find(dataset.name).splits() == [fold]
    (dataset.raw / "groups.json").write_text(json.dumps({**groups, dataset.unlabeled[1]: "y"}))
    add_labels(dataset.name, labels, dataset.unlabeled[:2])
    assert Dataset.find(dataset.name).splits() == [
        {"train": [*fold["train"], dataset.unlabeled[1]], "val": [*fold["val"], dataset.unlabeled[0]]}
    ]


def test_goes_on_after_an_interruption(dataset: TinyDataset, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = list(dataset.unlabeled[:3])

    move = new_labels._move

    def fail(file: str, folder: Path) -> None:
        if cases[1] in file:
            raise OSError("disk full")
        move(file, folder)

    with monkeypatch.context() as patch:
        patch.setattr(new_labels, "_move", fail)
        with pytest.raises(OSError, match="disk full"):
            add_labels(dataset.name, labels, cases)
    assert add_labels(dataset.name, labels, cases) == len(dataset.labeled) + 3
    assert all(is_labeled(dataset, case) for case in cases)
    assert add_labels(dataset.name, labels, cases) == len(dataset.labeled) + 3  # once more does no harm
    splits = Dataset.find(dataset.name).splits()
    assert splits is not None
    assert splits[0]["train"].count(cases[0]) == 1


def test_images_on_another_file_system(dataset: TinyDataset, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def cannot(source: str, target: Path) -> None:
        if Path(source).parent == dataset.images:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", cannot)
    case = dataset.unlabeled[0]
    shutil.copy(dataset.images / f"{case}_0000.nii.gz", dataset.raw / "imagesTr")  # killed before it was removed
    add_labels(dataset.name, labels, [case])
    assert is_labeled(dataset, case)


def test_the_originals_stay_where_images_are_a_link_to_another_folder(dataset: TinyDataset, labels: Path) -> None:
    cohort = dataset.root / "cohort of all"
    dataset.images.rename(cohort)
    dataset.images.symlink_to(cohort)
    case = dataset.unlabeled[0]
    with pytest.raises(ValueError, match=r"is a link to .*; make it a folder of links") as error:
        add_labels(dataset.name, labels, [case])
    assert not (dataset.raw / "labelsTr" / f"{case}.nii.gz").exists()
    before = sorted(cohort.iterdir())
    subprocess.run(str(error.value).partition("repeat the command: ")[2], shell=True, check=True)
    add_labels(dataset.name, labels, [case])
    assert is_labeled(dataset, case)
    assert sorted(cohort.iterdir()) == before


@pytest.mark.parametrize("name", ["imagesTr", "labelsTr"])
def test_nothing_is_added_to_the_folder_of_another_dataset(name: str, dataset: TinyDataset, labels: Path) -> None:
    cohort = dataset.root / "another dataset"
    (dataset.raw / name).rename(cohort)
    (dataset.raw / name).symlink_to(cohort)
    before = sorted(cohort.iterdir())
    case = dataset.unlabeled[0]
    with pytest.raises(ValueError, match=rf"{name} is a link to .*; make it a folder of links") as error:
        add_labels(dataset.name, labels, [case])
    assert (dataset.images / f"{case}_0000.nii.gz").exists()
    subprocess.run(str(error.value).partition("repeat the command: ")[2], shell=True, check=True)
    add_labels(dataset.name, labels, [case])
    assert is_labeled(dataset, case)
    assert sorted(cohort.iterdir()) == before


def test_images_may_be_a_link_within_the_dataset(dataset: TinyDataset, labels: Path) -> None:
    (dataset.raw / "all").mkdir()
    dataset.images.rename(dataset.raw / "all" / "unlabeled")
    dataset.images.symlink_to("all/unlabeled")
    case = dataset.unlabeled[0]
    file = dataset.images / f"{case}_0000.nii.gz"
    shutil.move(file, dataset.root)
    file.symlink_to(f"../../../../{file.name}")  # from the folder in which it really lies
    add_labels(dataset.name, labels, [case])
    assert is_labeled(dataset, case)
    moved = dataset.raw / "imagesTr" / file.name
    assert (moved.is_symlink(), os.path.isabs(os.readlink(moved))) == (True, False)
    assert moved.resolve() == (dataset.root / file.name).resolve()


def test_folds_of_a_benchmark_with_their_seed(dataset: TinyDataset, labels: Path) -> None:
    fold = {"train": list(dataset.labeled[:4]), "val": list(dataset.labeled[4:]), "unlabeled": []}
    number = add_fold(Dataset.find(dataset.name), "f1", 0, fold)
    add_labels(dataset.name, labels, dataset.unlabeled[:1])
    splits = Dataset.find(dataset.name).splits()
    assert splits is not None
    assert splits[number] == fold | {"train": [*fold["train"], dataset.unlabeled[0]], "seed": 0}


def test_what_is_wrong_is_said_before_anything_moves(dataset: TinyDataset, labels: Path) -> None:
    first, second, third, *_ = dataset.unlabeled
    (labels / f"{second}.nii.gz").unlink()
    (labels / f"{third}.nii.gz").write_bytes((labels / f"{third}.nii.gz").read_bytes()[:-20])
    shutil.copy(labels / f"{first}.nii.gz", labels / "nobody.nii.gz")
    shutil.copy(labels / f"{first}.nii.gz", labels / f"{dataset.labeled[0]}.nii.gz")
    for cases, message in (
        ([first, second], "There is no label .*; name images that have one"),
        ([first, third], "is cut off or damaged"),
        ([first, "nobody"], "There is no image nobody in .*imagesUn, which has"),
        ([first, dataset.labeled[0]], "has another label already"),
    ):
        with pytest.raises(ValueError, match=message):
            add_labels(dataset.name, labels, cases)
    for label, message in (
        (make_volume(0, (5, 6, 7))[1], "voxels, but its label .* has 5 x 6 x 7; export it again"),
        (9 * make_volume(0, (20, 26, 29))[1], "has the values 9, 18, but dataset.json names only 0, 1, 2"),
    ):
        write_image(labels / f"{first}.nii.gz", label)
        with pytest.raises(ValueError, match=message):
            add_labels(dataset.name, labels, [first])
    (labels / f"{first}.nii.gz").write_bytes(b"hello" * 100)
    with pytest.raises(ValueError, match="cannot be read"):
        add_labels(dataset.name, labels, [first])
    write_image(labels / f"{first}.nii.gz", make_volume(0, (20, 26, 29))[1])
    shutil.copy(dataset.images / f"{second}_0000.nii.gz", dataset.raw / "imagesTr" / f"{first}_0000.nii.gz")
    with pytest.raises(ValueError, match="has the name of another image"):
        add_labels(dataset.name, labels, [first])
    (dataset.raw / "imagesTr" / f"{first}_0000.nii.gz").unlink()
    splits = dataset.splits_file.read_text()
    dataset.splits_file.write_text("[{}]")
    with pytest.raises(ValueError, match="is not a list of"):
        add_labels(dataset.name, labels, [first])
    dataset.splits_file.write_text(splits)
    assert not is_labeled(dataset, first)
    description = read(dataset.raw / "dataset.json")
    (dataset.raw / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="has no file_ending"):
        add_labels(dataset.name, labels, [first])
    (dataset.raw / "dataset.json").write_text(json.dumps(description | {"dataset": {}}))
    with pytest.raises(ValueError, match='lists the files of its cases under "dataset"'):
        add_labels(dataset.name, labels, [first])


@pytest.mark.parametrize("has_own", [True, False])
def test_the_spacing_of_tiffs_comes_along(has_own: bool, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    description = read(dataset.raw / "dataset.json")
    as_tiff = {"file_ending": ".tif", "overwrite_image_reader_writer": "Tiff3DIO"}
    (dataset.raw / "dataset.json").write_text(json.dumps(description | as_tiff))
    label = dataset.root / "tif" / "t.tif"
    label.parent.mkdir()
    for file in (dataset.images / "t_0000.tif", label):
        tifffile.imwrite(file, np.ones((4, 5, 6), np.uint8), photometric="minisblack")
    for file in (dataset.images / "t.json", label.with_suffix(".json"))[: 1 + has_own]:
        file.write_text('{"spacing": [2, 1, 1]}')
    replace = os.replace

    def interrupt(source: str, target: Path) -> None:
        if Path(source).name == "t_0000.tif":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            add_labels(dataset.name, label.parent, ["t"])
    add_labels(dataset.name, label.parent, ["t"])
    assert (dataset.raw / "imagesTr" / "t.json").is_file()
    assert (dataset.raw / "labelsTr" / "t.json").read_text() == '{"spacing": [2, 1, 1]}'


def test_an_image_that_nobody_can_read_is_named(dataset: TinyDataset, labels: Path) -> None:
    case = dataset.unlabeled[0]
    file = dataset.images / f"{case}_0000.nii.gz"
    file.write_text("no image")
    with pytest.raises(ValueError, match=rf"{file.name} (cannot be read|is cut off)"):
        add_labels(dataset.name, labels, [case])
    file.unlink()
    file.symlink_to(dataset.root / "gone.nii.gz")
    with pytest.raises(ValueError, match=rf"{file.name} is a link to a file that does not exist"):
        add_labels(dataset.name, labels, [case])


def test_more_labels_than_planned_are_no_problem(dataset: TinyDataset) -> None:
    description = read(dataset.preprocessed / "dataset.json")
    (dataset.preprocessed / "dataset.json").write_text(json.dumps(description | {"numTraining": 2}))
    [finding] = [one for one in check_dataset("901", "3d_fullres", "nnUNetPlans") if "when it was planned" in one.text]
    assert (finding.level, finding.text) == ("ok", "6 labeled cases preprocessed, 2 when it was planned")
