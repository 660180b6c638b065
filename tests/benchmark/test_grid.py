"""The grid of a benchmark: its runs, and everything that it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TinyDataset, write_image
from skimage import io

from nnunetv2_micd.benchmark import CONTROLS, Grid, Length
from nnunetv2_micd.benchmark.plan import plan_runs
from nnunetv2_micd.benchmark.records import Result, write_record
from nnunetv2_micd.benchmark.test_set import check_test_set
from nnunetv2_micd.data.dataset import Dataset


def add_case(dataset: TinyDataset, folders: tuple[str, str], name: str) -> None:
    shutil.copy(dataset.raw / "imagesTr" / "case_0_0000.nii.gz", Path(folders[0]) / f"{name}_0000.nii.gz")
    shutil.copy(dataset.raw / "labelsTr" / "case_0.nii.gz", Path(folders[1]) / f"{name}.nii.gz")


def test_stock_is_always_part_of_it_and_all_is_for_stock_only(dataset: TinyDataset, grid: Grid) -> None:
    runs = plan_runs(replace(grid, budgets=["1", "all"], seeds=[0, 3]))
    assert [(run.trainer, run.budget, run.seed) for run in runs] == [
        ("nnUNetTrainer", "1", 0),
        ("nnUNetTrainerMICD", "1", 0),
        ("nnUNetTrainer", "all", 0),
        ("nnUNetTrainer", "1", 3),
        ("nnUNetTrainerMICD", "1", 3),
        ("nnUNetTrainer", "all", 3),
    ]
    splits = json.loads(dataset.splits_file.read_text())
    assert len(splits) == 6
    for run in runs:
        assert splits[run.fold]["train"] == list(run.labeled)
        assert run.num_unlabeled == (len(splits[run.fold]["unlabeled"]) + 4 if run.trainer != "nnUNetTrainer" else 0)
    assert len({run.folder for run in runs}) == 6
    assert len(runs[2].labeled) == 5
    again = plan_runs(replace(grid, budgets=["1", "all"], seeds=[0, 3]))
    assert again == runs
    assert len(json.loads(dataset.splits_file.read_text())) == 6


def test_another_baseline_and_longer_trainings_of_it(dataset: TinyDataset, grid: Grid) -> None:
    ablation = "nnUNetTrainerMICD_SupervisedOnly"
    runs = plan_runs(replace(grid, baseline=ablation, longer=[3, 2], budgets=["2", "all"]))
    assert [(run.trainer, run.budget, run.trainer_class, run.epochs) for run in runs] == [
        (ablation, "2", f"{ablation}_e2_i2", 2),
        ("nnUNetTrainerMICD", "2", "nnUNetTrainerMICD_e2_i2", 2),
        (ablation, "2", f"{ablation}_e4_i2", 4),
        (ablation, "2", f"{ablation}_e6_i2", 6),
        (ablation, "all", f"{ablation}_e2_i2", 2),
    ]
    assert len({run.folder for run in runs}) == 5


def test_controls_are_trained_longer_too(dataset: TinyDataset, grid: Grid) -> None:
    trainers = ["nnUNetTrainerMICD", "nnUNetTrainerEMA"]
    runs = plan_runs(replace(grid, trainers=trainers, longer=[3], budgets=["2"]))
    assert [(run.trainer, run.epochs) for run in runs] == [
        ("nnUNetTrainer", 2),
        ("nnUNetTrainerMICD", 2),
        ("nnUNetTrainerEMA", 2),
        ("nnUNetTrainer", 6),
        ("nnUNetTrainerEMA", 6),
    ]


def test_a_control_uses_no_unlabeled_images(dataset: TinyDataset, grid: Grid) -> None:
    control = "nnUNetTrainerMICD_SupervisedOnly"
    assert control in CONTROLS
    runs = plan_runs(replace(grid, trainers=["nnUNetTrainerMICD", control, control], budgets=["2", "all"]))
    assert [(run.trainer, run.budget, run.num_unlabeled) for run in runs] == [
        ("nnUNetTrainer", "2", 0),
        ("nnUNetTrainerMICD", "2", 7),
        (control, "2", 0),
        ("nnUNetTrainer", "all", 0),
    ]


def test_labeled_cases_of_a_published_fold(dataset: TinyDataset, grid: Grid) -> None:
    published = {"train": ["case_3"], "val": ["case_0"], "unlabeled": ["case_1", "case_2"]}
    dataset.splits_file.write_text(json.dumps([published]))
    runs = plan_runs(replace(grid, trainers=["nnUNetTrainer"], budgets=["f0"], seeds=[0, 1]))
    assert [(run.budget, run.seed, run.fold, run.labeled) for run in runs] == [
        ("f0", 0, 1, ("case_3",)),
        ("f0", 1, 2, ("case_3",)),
    ]
    splits = json.loads(dataset.splits_file.read_text())
    assert splits == [published, {**published, "seed": 0}, {**published, "seed": 1}]


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ({"train": ["case_3"], "val": ["case_3"]}, r"validates on cases it was trained on \(case_3\).*--test"),
        ({"train": ["case_77"], "val": ["case_3"]}, r"not preprocessed \(case_77\)"),
    ],
)
def test_a_published_fold_that_cannot_be_used(
    dataset: TinyDataset, grid: Grid, fold: dict[str, list[str]], message: str
) -> None:
    dataset.splits_file.write_text(json.dumps([fold]))
    with pytest.raises(ValueError, match=message):
        plan_runs(replace(grid, budgets=["f0"]))
    with pytest.raises(ValueError, match="has no fold 1, only"):
        plan_runs(replace(grid, budgets=["f1"]))


def test_folds_come_after_those_of_nnunet(dataset: TinyDataset, grid: Grid) -> None:
    dataset.splits_file.unlink()
    (run,) = plan_runs(replace(grid, trainers=["nnUNetTrainer"], budgets=["all"]))
    assert run.fold == 5
    assert run.trainer_class == "nnUNetTrainer_e2_i2"
    assert (run.epochs, run.iterations) == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainers": ["nnUNetTrainerMCID"]}, "There is no trainer nnUNetTrainerMCID"),
        ({"trainers": ["DC_and_CE_loss"]}, "DC_and_CE_loss cannot be used as a trainer|There is no trainer"),
        ({"budgets": ["5"]}, "5 labeled cases leave none whose labels could be hidden"),
        ({"budgets": ["few"]}, "must be like"),
        ({"budgets": ["2", "40%"]}, "-n 2 with seed 0 and -n 40% with seed 0 label the same cases"),
        ({"budgets": ["1"], "seeds": range(30)}, "label the same cases"),
        ({"baseline": "nnUNetTrainerCPS"}, "labels alone, but nnUNetTrainerCPS uses unlabeled images"),
        ({"longer": [1]}, "at least 2 times as long, not 1"),
        ({"seeds": [-1]}, "A seed must lie between 0 and 4294967295, not -1"),
        ({"configuration": "3d_lowres"}, "has no configuration 3d_lowres, only 2d, 3d_fullres"),
        ({"plans": "Other"}, "There are no plans Other.json"),
        ({"dataset": "902"}, "There is no dataset with the number 902"),
        ({"val_fraction": 1.5}, "must lie between 0 and 1, not 1.5"),
        ({"trainers": ["nnUNetTrainerMICD_5epochs"], "length": Length()}, "--epochs 5 --iterations 250"),
    ],
)
def test_bad_grids_are_refused(dataset: TinyDataset, grid: Grid, change: dict[str, Any], message: str) -> None:
    before = dataset.splits_file.read_text()
    with pytest.raises((ValueError, OSError), match=message) as error:
        plan_runs(replace(grid, **change))
    assert "\n" not in str(error.value)
    assert dataset.splits_file.read_text() == before
    assert not list(dataset.results.iterdir())


@pytest.mark.parametrize(("epochs", "iterations"), [(0, 2), (2, -1)])
def test_lengths_are_positive(epochs: int, iterations: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Length(epochs, iterations)


def test_unlabeled_images_are_needed_and_preprocessed(dataset: TinyDataset, grid: Grid) -> None:
    (dataset.unlabeled_folder() / "image_1.b2nd").unlink()
    with pytest.raises(ValueError, match=r"Images in imagesUn are not preprocessed.*nnUNetv2_micd preprocess"):
        plan_runs(grid)
    shutil.rmtree(dataset.images)
    shutil.rmtree(dataset.unlabeled_folder())
    plan_runs(grid)  # the labeled cases without their labels are enough
    (dataset.labeled_folder() / "case_5.b2nd").write_bytes(b"")
    with pytest.raises(ValueError, match=r"are damaged \(case_5\); run: nnUNetv2_preprocess -d 901"):
        plan_runs(grid)


def test_test_sets_are_checked(dataset: TinyDataset, grid: Grid, test_set: tuple[str, str]) -> None:
    images, labels = map(Path, test_set)
    runs = plan_runs(replace(grid, test=test_set))
    assert (runs[0].test_images, runs[0].test_labels, runs[0].transductive) == (str(images), str(labels), False)

    def refused(message: str, **change: Any) -> None:
        with pytest.raises((ValueError, OSError), match=message):
            plan_runs(replace(grid, **{"test": test_set, **change}))

    refused("There is no folder", test=(str(images), str(images / "labels")))
    refused("holds no test images", test=(str(labels), str(labels)))
    (labels / "test_51.nii.gz").rename(labels / "other.nii.gz")
    refused("labels of the test images test_51 are missing")
    (labels / "test_51.nii.gz").write_bytes((labels / "other.nii.gz").read_bytes())
    refused("test images of the labels other are missing")
    (labels / "other.nii.gz").unlink()
    shutil.copy(images / "test_51_0000.nii.gz", images / "test_51_0001.nii.gz")
    refused("test_51 has the channels 0000, 0001, but needs 1")
    (images / "test_51_0001.nii.gz").unlink()
    write_image(labels / "test_50.nii.gz", np.zeros((3, 4, 5), np.uint8))
    refused("differ in size")
    (labels / "test_50.nii.gz").write_bytes(b"no image")
    refused("cannot be read")


def test_channels_of_photographs_in_files_of_their_own(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's reader of photographs takes one file with all colors, or several gray ones."""
    plans = json.loads(dataset.plans_file.read_text())
    dataset.plans_file.write_text(json.dumps(plans | {"image_reader_writer": "NaturalImage2DIO"}))
    description = json.loads((dataset.preprocessed / "dataset.json").read_text())
    description |= {"channel_names": {"0": "red", "1": "green"}, "file_ending": ".png"}
    found = Dataset.find(dataset.name)
    found = replace(found, dataset_json=description)
    for name in ("a_0000", "a_0001", "a", "b_0000"):
        io.imsave(tmp_path / f"{name}.png", np.zeros((8, 9), np.uint8), check_contrast=False)
    folders = [tmp_path / "images", tmp_path / "labels"]
    for folder in folders:
        folder.mkdir()
    for name in ("a_0000", "a_0001"):
        shutil.move(tmp_path / f"{name}.png", folders[0])
    shutil.move(tmp_path / "a.png", folders[1])
    assert check_test_set(*map(str, folders), found) == ["a"]
    shutil.move(tmp_path / "b_0000.png", folders[0])
    shutil.copy(folders[1] / "a.png", folders[1] / "b.png")
    with pytest.raises(ValueError, match="b has the channels 0000, but needs 2"):
        check_test_set(*map(str, folders), found)


def test_test_images_must_not_be_seen_in_training(dataset: TinyDataset, grid: Grid, test_set: tuple[str, str]) -> None:
    add_case(dataset, test_set, "image_1")
    grid = replace(grid, test=test_set)
    with pytest.raises(ValueError, match=r"among the unlabeled ones, too \(image_1\).*--transductive"):
        plan_runs(grid)
    stock, micd = plan_runs(replace(grid, transductive=True))
    assert (stock.transductive, micd.transductive) == (False, True)
    add_case(dataset, test_set, stock.labeled[0])
    with pytest.raises(ValueError, match="Test images are labeled training cases, too"):
        plan_runs(replace(grid, transductive=True))


def test_groups_are_not_divided_between_training_and_test(
    dataset: TinyDataset, grid: Grid, test_set: tuple[str, str]
) -> None:
    groups = {case: case for case in (*dataset.labeled, *dataset.unlabeled)}
    (dataset.raw / "groups.json").write_text(json.dumps({**groups, "test_50": "image_1"}))
    grid = replace(grid, test=test_set)
    with pytest.raises(ValueError, match=r"share a group with them \(test_50\).*--transductive"):
        plan_runs(grid)
    stock, micd = plan_runs(replace(grid, transductive=True))
    assert (stock.transductive, micd.transductive) == (False, True)
    (dataset.raw / "groups.json").write_text(json.dumps({**groups, "test_50": stock.labeled[0]}))
    with pytest.raises(ValueError, match=r"Test images are labeled training cases, too or share a group.*\(test_50\)"):
        plan_runs(grid)
    published = {"train": ["case_3"], "val": ["case_0"], "unlabeled": ["case_1", "case_2"]}
    dataset.splits_file.write_text(json.dumps([published]))
    for trained in ("case_3", "case_1"):
        (dataset.raw / "groups.json").write_text(json.dumps({**groups, trained: "case_0"}))
        with pytest.raises(ValueError, match=r"trained on or others of their groups \(case_0\)"):
            plan_runs(replace(grid, test=None, budgets=["f0"]))


def test_runs_of_before_are_not_overwritten(
    dataset: TinyDataset, grid: Grid, test_set: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan_runs(grid)[0]

    def refused(message: str, **change: Any) -> None:
        with pytest.raises(ValueError, match=message):
            plan_runs(replace(grid, **change))

    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_best.pth").write_bytes(b"a training")
    refused("holds a training that no benchmark has started")
    write_record(run, Result.start(run, "cpu"))
    assert plan_runs(grid)[0] == run
    refused(r"was made with budget 2, not 40%", budgets=["40%"])
    refused("was made with test_images None, not", test=test_set)
    for name, value in (
        ("epochs", 7),
        ("labeled", ["case_9"]),
        ("plans_hash", "0"),
        ("num_unlabeled", 3),
    ):
        record = json.loads((run.folder / "benchmark.json").read_text())
        (run.folder / "benchmark.json").write_text(json.dumps(record | {name: value}))
        refused(f"was made with {name} ")
        (run.folder / "benchmark.json").write_text(json.dumps(record))
    for content in ('{"status": "run', "[]", '{"status": "perhaps"}'):
        (run.folder / "benchmark.json").write_text(content)
        refused("is damaged .*delete the folder")
        assert (run.folder / "benchmark.json").read_text() == content

    tested = plan_runs(replace(grid, test=test_set, budgets=["1"]))[0]
    write_record(tested, Result.start(tested, "cpu").done())
    refused(r"lacks predictions of test images \(test_50, test_51\); restore them", test=test_set, budgets=["1"])
    predictions = tested.folder / Result.start(tested, "cpu").predictions
    predictions.mkdir()
    (predictions / "test_52.nii.gz").touch()
    refused(r"tested on other images \(test_50, test_51, test_52\)", test=test_set, budgets=["1"])
    times = {"epoch_start_timestamps": [0.0], "epoch_end_timestamps": [60.0]}
    content = {"network_weights": {"w": torch.ones(1)}, "trainer_name": "T", "init_args": {}, "logging": times}
    torch.save(content, tested.folder / "checkpoint_final.pth")
    write_record(tested, Result.start(tested, "cpu").done(training_seconds=61.0))
    refused(r"trained again after the benchmark; move the folder", test=test_set, budgets=["1"])
