import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import TinyDataset
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.budgets import add_budget_splits
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.derive import derive_dataset
from nnunetv2_micd.data.groups import load_groups
from nnunetv2_micd.data.preprocessing import preprocess_unlabeled
from nnunetv2_micd.utils.files import HOST


def names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.iterdir()}


def test_refers_to_the_same_cases_as_the_fold_with_these_numbers(dataset: TinyDataset) -> None:
    name, entry = derive_dataset(dataset.name, 902, "2", seed=3)
    assert entry == add_budget_splits(dataset.name, "2", seeds=[3])[0][2]
    assert name == "Dataset902_Tiny_2labels_seed3"
    folder = dataset.root / "raw" / name
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == set(entry["train"])
    assert names(folder / "imagesTs") == names(folder / "labelsTs") == set(entry["val"])
    assert names(folder / "imagesUn") == {*entry["unlabeled"], *dataset.unlabeled}
    assert all(path.is_symlink() and path.is_file() for path in folder.glob("*/*"))
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2
    verify_dataset_integrity(str(folder), num_processes=1)

    moved = dataset.root / "moved"
    shutil.move(dataset.root / "raw", moved)
    assert all(path.is_file() for path in moved.glob("*/*/*"))


def test_of_a_dataset_with_paths_in_its_description(dataset: TinyDataset) -> None:
    description = json.loads((dataset.raw / "dataset.json").read_text())
    description["dataset"] = {
        case: {"images": [f"images/{case}.nii.gz"], "label": f"labels/{case}.nii.gz"} for case in dataset.labeled
    }
    for kind, suffix in (("images", "_0000"), ("labels", "")):
        (dataset.raw / kind).mkdir()
        for case in dataset.labeled:
            os.rename(dataset.raw / f"{kind}Tr" / f"{case}{suffix}.nii.gz", dataset.raw / kind / f"{case}.nii.gz")
    (dataset.raw / "dataset.json").write_text(json.dumps(description))
    name, entry = derive_dataset(dataset.name, 902, "50%")
    folder = dataset.root / "raw" / name
    assert names(folder / "imagesTr") == set(entry["train"])
    assert all(path.is_file() for path in folder.glob("*/*"))
    assert "dataset" not in json.loads((folder / "dataset.json").read_text())


def test_groups_stay_together_in_the_new_dataset_too(dataset: TinyDataset) -> None:
    groups = {f"case_{i}": f"patient_{i // 2}" for i in range(6)}
    (dataset.raw / "groups.json").write_text(json.dumps(groups))
    name, entry = derive_dataset(dataset.name, 902, "1", val_fraction=0.3)
    assert {len({groups[case] for case in cases}) for cases in entry.values()} == {1}
    assert load_groups(name) == groups


def test_files_beside_the_images_come_along(dataset: TinyDataset) -> None:
    for folder, cases in (("imagesTr", dataset.labeled), ("labelsTr", dataset.labeled), ("imagesUn", ["image_0"])):
        for case in cases:
            (dataset.raw / folder / f"{case}.json").write_text('{"spacing": [1, 1, 1]}')  # as beside TIFF images
    name, entry = derive_dataset(dataset.name, 902, "2")
    folder = dataset.root / "raw" / name
    assert {path.stem for path in folder.glob("imagesTr/*.json")} == set(entry["train"])
    assert {path.stem for path in folder.glob("labelsTs/*.json")} == set(entry["val"])
    assert {path.stem for path in folder.glob("imagesUn/*.json")} == {*entry["unlabeled"], "image_0"}


@pytest.mark.parametrize("number", [0, 1000, -1])
def test_numbers_that_no_dataset_has(number: int, dataset: TinyDataset) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 999, not {number}"):
        derive_dataset(dataset.name, number, "2")


def test_taken_number_and_missing_raw_data(dataset: TinyDataset) -> None:
    with pytest.raises(ValueError, match="901 belongs to Dataset901_Tiny already"):
        derive_dataset(dataset.name, 901, "2")
    shutil.rmtree(dataset.raw)
    with pytest.raises(FileNotFoundError, match="There is no raw dataset"):
        derive_dataset(dataset.name, 902, "2")


def test_where_links_cannot_be_made(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OSError, match=r"Cannot make .*Dataset902.* privilege"):
        derive_dataset(dataset.name, 902, "2")
    assert [path.name for path in (dataset.root / "raw").iterdir()] == [dataset.name]


def test_remains_of_a_killed_process_do_not_matter(dataset: TinyDataset) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    remains = dataset.root / "raw" / f"incomplete_Dataset902_Tiny_2labels_seed0.{HOST}.{ended.pid}" / "imagesTr"
    remains.mkdir(parents=True)
    (remains / "half_0000.nii.gz").touch()
    name, entry = derive_dataset(dataset.name, 902, "2")
    assert names(dataset.root / "raw" / name / "imagesTr") == set(entry["train"])
    assert {path.name for path in (dataset.root / "raw").iterdir()} == {dataset.name, name}


def test_command_makes_one_for_each_seed(dataset: TinyDataset, capsys: pytest.CaptureFixture[str]) -> None:
    before = dataset.splits_file.read_text()
    main(["split", "-d", "901", "-n", "2", "--seeds", "0", "1", "--as-dataset", "902"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Dataset902_Tiny_2labels_seed0: 2 labeled, 3 unlabeled, 1 for testing"
    assert lines[1].startswith("Dataset903_Tiny_2labels_seed1: ")
    assert "nnUNetv2_plan_and_preprocess -d 902" in lines[3]
    assert dataset.splits_file.read_text() == before


def test_command_names_a_configuration_that_the_dataset_has(
    dataset: TinyDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["split", "-d", "901", "-n", "2", "--as-dataset", "902"])
    assert "nnUNetv2_train 902 3d_fullres all" in capsys.readouterr().out
    shutil.rmtree(dataset.labeled_folder("3d_fullres"))
    main(["split", "-d", "901", "-n", "2", "--as-dataset", "903"])
    assert "nnUNetv2_train 903 2d all" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "configuration"), [((24, 28), "2d"), ((6, 24, 28), "3d_fullres")])
def test_command_sees_that_raw_images_are_2d(
    shape: tuple[int, ...], configuration: str, dataset: TinyDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = dataset.raw.with_name("Dataset905_Tiff")
    for folder, addition in (("imagesTr", "_0000"), ("labelsTr", "")):
        (raw / folder).mkdir(parents=True)
        for case in "abcde":
            image = np.ones(shape, np.uint8)
            tifffile.imwrite(raw / folder / f"{case}{addition}.tif", image, photometric="minisblack")
    description = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".tif"}
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": 5}))
    main(["split", "-d", "905", "-n", "2", "--as-dataset", "906"])
    printed = capfd.readouterr()
    assert f"nnUNetv2_train 906 {configuration} all" in printed.out
    assert printed.err == ""


def test_its_unlabeled_images_can_be_preprocessed(dataset: TinyDataset) -> None:
    name, entry = derive_dataset(dataset.name, 902, "2")
    folder = dataset.root / "preprocessed" / name
    shutil.copytree(dataset.preprocessed, folder, ignore=shutil.ignore_patterns("*_unlabeled"))
    for case in entry["unlabeled"]:  # as if only the others had been preprocessed
        for path in folder.glob(f"*/{case}*"):
            path.unlink()
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans | {"dataset_name": name}))
    assert preprocess_unlabeled(Dataset.find(902), ["3d_fullres"], num_processes=1) == []
    made = {path.stem for path in (folder / "nnUNetPlans_3d_fullres_unlabeled").glob("*.b2nd")}
    assert made == {*entry["unlabeled"], *dataset.unlabeled}
