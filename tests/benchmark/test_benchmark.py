"""The benchmark: its grid, what it refuses, and whole trainings that are interrupted, fail and are submitted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MICD, Shell, TinyDataset, make_volume, write_image

from nnunetv2_micd.benchmark import records as benchmark_record
from nnunetv2_micd.benchmark import run as benchmark_run
from nnunetv2_micd.benchmark import scheduler as benchmark
from nnunetv2_micd.benchmark.grid import Grid, plan_runs
from nnunetv2_micd.benchmark.scheduler import run_benchmark
from nnunetv2_micd.benchmark.trainers import Length, write_trainers

SHORT = Length(2, 2)


@pytest.fixture
def grid(dataset: TinyDataset) -> Grid:
    return Grid("901", "3d_fullres", ["nnUNetTrainerMICD"], ["2"], [0], length=SHORT)


@pytest.fixture
def test_set(dataset: TinyDataset) -> tuple[str, str]:
    """Two test images with labels."""
    images, labels = dataset.raw / "imagesTs", dataset.raw / "labelsTs"
    for seed in (50, 51):
        image, truth = make_volume(seed, (18, 22, 26))
        write_image(images / f"test_{seed}_0000.nii.gz", image)
        write_image(labels / f"test_{seed}.nii.gz", truth)
    return str(images), str(labels)


def add_case(dataset: TinyDataset, folders: tuple[str, str], name: str) -> None:
    shutil.copy(dataset.raw / "imagesTr" / "case_0_0000.nii.gz", Path(folders[0]) / f"{name}_0000.nii.gz")
    shutil.copy(dataset.raw / "labelsTr" / "case_0.nii.gz", Path(folders[1]) / f"{name}.nii.gz")


# ------------------------------------------------------------------------------------------------- the grid


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
        ({"train": ["case_3"], "val": ["case_3"]}, r"validates on its labeled cases \(case_3\).*--test"),
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


def test_own_length_needs_no_other_class(dataset: TinyDataset, grid: Grid) -> None:
    runs = plan_runs(replace(grid, length=Length()))
    assert {(run.trainer == run.trainer_class, run.epochs, run.iterations) for run in runs} == {(True, 1000, 250)}
    assert write_trainers(runs) is None
    assert not list(dataset.results.iterdir())


def test_generated_trainers_are_found_by_their_names(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import make_trainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_micd.methods.micd import nnUNetTrainerMICD

    monkeypatch.setenv("nnUNet_extTrainer", Shell(dataset).environment["nnUNet_extTrainer"])
    write_trainers(plan_runs(replace(grid, trainers=["nnUNetTrainerMICD"], length=Length(3, 25))))
    write_trainers(plan_runs(replace(grid, baseline="nnUNetTrainer_short", trainers=[MICD], length=Length(epochs=4))))
    benchmark_run.add_trainer_folder(str(benchmark_run.trainers_folder()))
    benchmark_run.add_trainer_folder(str(benchmark_run.trainers_folder()))
    assert os.environ["nnUNet_extTrainer"].count(benchmark_run.TRAINERS_FOLDER) == 1
    for name, length in (("nnUNetTrainerMICD_e3_i25", (3, 25, 5)), (f"{MICD}_e4", (4, 2, 1))):
        found = recursive_find_trainer_class_by_name(name)
        assert issubclass(found, nnUNetTrainerMICD)
        trainer = make_trainer(found, dataset, shortened=False)
        steps = trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch
        assert steps == length
        assert list(trainer.my_init_kwargs) == ["plans", "configuration", "fold", "dataset_json", "device"]


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainers": ["nnUNetTrainerMCID"]}, "There is no trainer nnUNetTrainerMCID"),
        ({"trainers": ["DC_and_CE_loss"]}, "DC_and_CE_loss is no trainer that can be used|There is no trainer"),
        ({"budgets": ["5"]}, "5 labeled cases leave none unlabeled"),
        ({"budgets": ["few"]}, "must be like"),
        ({"budgets": ["2", "40%"]}, "-n 2 with seed 0 and -n 40% with seed 0 label the same cases"),
        ({"budgets": ["1"], "seeds": range(30)}, "label the same cases"),
        ({"baseline": "nnUNetTrainerCPS"}, "labels alone, but nnUNetTrainerCPS uses unlabeled images"),
        ({"longer": [1]}, "at least 2 times as long, not 1"),
        ({"seeds": [-1]}, "A seed must lie between 0 and 4294967295, not -1"),
        ({"configuration": "3d_lowres"}, "has no configuration 3d_lowres, only 2d, 3d_fullres"),
        ({"plans": "Other"}, "There are no plans Other.json"),
        ({"dataset": "902"}, "There must be one dataset with the number 902"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jobs": 0}, "The number of jobs must be at least 1"),
        ({"options": ["a=b"]}, "add --executor"),
        ({"executor": "slurm"}, "submitit"),
        ({"executor": "local", "options": ["colour=red"]}, "submitit cannot submit to local|not installed"),
        ({"executor": "local", "options": ["timeout_min"]}, 'must be like "slurm_partition=gpu"|not installed'),
        ({"device": "cuda"}, "add -device cpu"),
    ],
)
def test_bad_arguments_are_refused(
    grid: Grid, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run_benchmark(grid, **{"device": "cpu", **arguments})


def test_submitit_is_named_where_it_is_missing(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install \"nnunetv2-micd\[cluster\]\""):
        run_benchmark(grid, "cpu", executor="local")


def test_unlabeled_images_are_needed_and_preprocessed(dataset: TinyDataset, grid: Grid) -> None:
    (dataset.unlabeled_folder() / "image_1.b2nd").unlink()
    with pytest.raises(ValueError, match=r"1 of the images in imagesUn are not preprocessed.*nnUNetv2_micd preprocess"):
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
    benchmark_record.write_record(run, "running", "cpu")
    assert plan_runs(grid)[0] == run
    refused(r"was made with budget 2, not 40%", budgets=["40%"])
    refused("was made with test_images None, not", test=test_set)
    for name, value in (("epochs", 7), ("labeled", ["case_9"]), ("plans_hash", "0"), ("num_unlabeled", 3)):
        record = json.loads((run.folder / "benchmark.json").read_text())
        (run.folder / "benchmark.json").write_text(json.dumps(record | {name: value}))
        refused(f"was made with {name} ")
        (run.folder / "benchmark.json").write_text(json.dumps(record))
    for content in ('{"status": "run', "[]", '{"status": "perhaps"}'):
        (run.folder / "benchmark.json").write_text(content)
        refused("is damaged .*delete the folder")
        assert (run.folder / "benchmark.json").read_text() == content

    tested = plan_runs(replace(grid, test=test_set, budgets=["1"]))[0]
    benchmark_record.write_record(tested, "done", "cpu")
    refused(r"tested on other images \(test_50, test_51\)", test=test_set, budgets=["1"])


# ------------------------------------------------------------------------------------------------- scheduling


class Instant:
    """A run that ends as its seed says."""

    most = 0

    def __init__(self, run: Any, active: list[Any]):
        self.run, self.log = run, run.folder / "benchmark.log"
        Instant.most = max(Instant.most, len(active) + 1)
        benchmark_record.write_record(run, "running", "cpu")

    def poll(self) -> str:
        if self.run.seed == 0:
            return "it was killed (signal 9)"
        benchmark_record.write_record(self.run, "done", "cpu")
        return ""

    def stop(self) -> None:
        raise AssertionError


def test_a_failed_run_does_not_stop_the_others(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(benchmark, "_process_starter", lambda *_: Instant)
    monkeypatch.setattr(benchmark, "POLL_SECONDS", 0)
    grid = replace(grid, budgets=["1"], seeds=[0, 3])
    failed = run_benchmark(grid, "cpu", jobs=3)
    assert [(run.trainer, run.seed) for run in failed] == [("nnUNetTrainer", 0), ("nnUNetTrainerMICD", 0)]
    assert json.loads((failed[0].folder / "benchmark.json").read_text())["error"] == "it was killed (signal 9)"
    printed = capsys.readouterr().out
    assert (
        f"FAILED: nnUNetTrainer, 1 labeled, seed 0, 2 epochs: it was killed (signal 9); see {failed[0].folder}"
        in printed
    )
    assert f'{benchmark_run.TRAINERS_FOLDER}"\n' in printed
    assert "nnUNetv2_micd report -d 901 -c 3d_fullres -p nnUNetPlans -o OUTPUT_FOLDER" in printed
    assert Instant.most == 3
    run_benchmark(grid, "cpu", jobs=3)
    assert "4 runs, 2 of them done before." in capsys.readouterr().out


def test_gpus_are_used_in_turn(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Recorded(benchmark._Process):
        def __init__(self, run: Any, device: str, variables: Any, gpu: str | None):
            self.gpu = gpu
            started.append(gpu)

    monkeypatch.setattr(benchmark, "_Process", Recorded)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    start = benchmark._process_starter("cuda", 3)
    active = [start(None, []) for _ in range(1)]  # type: ignore[arg-type]
    active.append(start(None, active))  # type: ignore[arg-type]
    active.append(start(None, active))  # type: ignore[arg-type]
    start(None, active[1:])  # type: ignore[arg-type]
    assert started == ["4", "6", "4", "4"]


def test_epochs_are_counted_in_the_last_log(dataset: TinyDataset, grid: Grid) -> None:
    run = plan_runs(grid)[0]
    assert benchmark._count_epochs(run, since=0) == 0
    run.folder.mkdir(parents=True)
    log = run.folder / "training_log_2026_1_1_00_00_00.txt"
    log.write_text("2026-01-01: Epoch 0 \n2026-01-01: Epoch time: 3.0 s\n2026-01-01: Epoch 1 \n")
    assert benchmark._count_epochs(run, since=0) == 1
    log.write_text(log.read_text() + "2026-01-01: Training done.\n")
    assert benchmark._count_epochs(run, since=0) == 2
    assert benchmark._count_epochs(run, since=time.time() + 1) == 0


# ------------------------------------------------------------------------------------------------- whole trainings


COMMAND = "nnUNetv2_micd benchmark -d 901 -c 3d_fullres -n 2 -device cpu"


def records(dataset: TinyDataset) -> dict[str, dict[str, Any]]:
    files = (dataset.results / dataset.name).glob("*/fold_*/benchmark.json")
    return {
        content["trainer"]: content | {"folder": file.parent}
        for file in files
        for content in [json.loads(file.read_text())]
    }


@pytest.mark.slow
def test_grid_from_start_to_end(dataset: TinyDataset, test_set: tuple[str, str]) -> None:
    shell = Shell(dataset)
    command = f"{COMMAND} -tr nnUNetTrainerMICD --epochs 2 --iterations 2 --test {test_set[0]} {test_set[1]} --jobs 2"
    output = shell(command)
    assert "done: nnUNetTrainerMICD, 2 labeled, seed 0" in output
    found = records(dataset)
    assert set(found) == {"nnUNetTrainer", "nnUNetTrainerMICD"}
    for name, record in found.items():
        assert (record["status"], record["error"], record["class"]) == ("done", None, f"{name}_e2_i2")
        assert (record["epochs"], record["iterations"], record["num_labeled"]) == (2, 2, 2)
        assert record["training_seconds"] > 0
        assert record["prediction_seconds"] > 0
        assert record["peak_memory_bytes"] > 10**7
        assert record["peak_gpu_bytes"] is None
        predicted = record["folder"] / record["predictions"]
        assert {path.name for path in predicted.glob("*.nii.gz")} == {"test_50.nii.gz", "test_51.nii.gz"}
        assert record["truth"] == test_set[1]
        assert (record["folder"] / record["checkpoint"]).exists()

    before = {name: (record["folder"] / "benchmark.json").stat().st_mtime_ns for name, record in found.items()}
    assert "2 runs, 2 of them done before." in shell(command)
    assert before == {name: (r["folder"] / "benchmark.json").stat().st_mtime_ns for name, r in found.items()}

    variable = re.search(r'export nnUNet_extTrainer="(.*)"', output)
    assert variable
    fold = found["nnUNetTrainerMICD"]["fold"]
    shell(
        f"nnUNetv2_predict -d 901 -i {test_set[0]} -o {dataset.root / 'again'} -c 3d_fullres -f {fold} "
        "-tr nnUNetTrainerMICD_e2_i2 -device cpu -npp 1 -nps 1",
        nnUNet_extTrainer=variable[1],
    )
    for name in ("test_50.nii.gz", "test_51.nii.gz"):
        files = (dataset.root / "again" / name, found["nnUNetTrainerMICD"]["folder"] / "benchmark_predictions" / name)
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_killed_run_fails_alone_and_continues(dataset: TinyDataset) -> None:
    shell = Shell(dataset)
    command = f"{COMMAND} -tr {MICD} --epochs 3 --iterations 2"
    output = shell(command, code=1, KILL_IN="step")
    assert f"FAILED: {MICD}, 2 labeled, seed 0, 3 epochs: it was killed (signal 9); see " in output
    assert "error: 1 runs failed" in output
    found = records(dataset)
    assert found["nnUNetTrainer"]["status"] == "done"
    assert (found[MICD]["status"], found[MICD]["error"]) == ("failed", "it was killed (signal 9)")
    shell(command)
    record = records(dataset)[MICD]
    assert (record["status"], record["error"]) == ("done", None)
    assert (record["folder"] / "validation" / "case_1.nii.gz").parent.is_dir()
    assert record["predictions"] == "validation"
    logs = sorted(record["folder"].glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    assert "Epoch 0" in logs[0].read_text()
    assert "Epoch 0" not in logs[-1].read_text()
    assert "Epoch 2" in logs[-1].read_text()


@pytest.mark.slow
def test_a_killed_benchmark_takes_its_runs_along_and_goes_on(dataset: TinyDataset) -> None:
    shell = Shell(dataset)
    words = f"{COMMAND} -tr nnUNetTrainer --epochs 40 --iterations 2".split()
    process = subprocess.Popen([Path(sys.executable).parent / words[0], *words[1:]], env=shell.environment)
    folder = dataset.results / dataset.name / "nnUNetTrainer_e40_i2__nnUNetPlans__3d_fullres" / "fold_2"
    while not any("Epoch 2 " in path.read_text() for path in folder.glob("training_log_*.txt")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((folder / "benchmark.json").read_text())["status"] == "running"
    lock = (
        "from pathlib import Path; from nnunetv2_micd.benchmark.run import _locked\n"
        f"with _locked(Path('{folder}')): pass"
    )
    subprocess.run([sys.executable, "-c", lock], check=True, env=shell.environment)  # nobody is at it
    shell(" ".join(words))
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    assert "Epoch 39 " in logs[0].read_text() + logs[-1].read_text()
    assert "Epoch 0 " not in logs[-1].read_text()
    assert "Epoch 39 " not in logs[0].read_text()


@pytest.mark.slow
def test_submitit(dataset: TinyDataset) -> None:
    pytest.importorskip("submitit")
    output = Shell(dataset)(
        f"{COMMAND} -tr nnUNetTrainerMICD --epochs 1 --iterations 1 --jobs 1 --executor local "
        "--executor-options timeout_min=10"
    )
    assert "done: nnUNetTrainerMICD, 2 labeled, seed 0" in output
    assert {record["status"] for record in records(dataset).values()} == {"done"}
