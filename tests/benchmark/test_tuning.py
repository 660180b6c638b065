"""The tuning: which cases it takes, what it trains, what it chooses, and what a benchmark makes of the choice."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.benchmark import Grid, Length, run_benchmark, run_tuning, scheduler
from nnunetv2_micd.benchmark.folds import read_entry
from nnunetv2_micd.benchmark.plan import plan_runs, plan_tuning
from nnunetv2_micd.benchmark.records import Result, Run, write_record
from nnunetv2_micd.benchmark.trainers import write_trainers
from nnunetv2_micd.benchmark.tuning import DEFAULT_WEIGHTS, Setting, parse_weights
from nnunetv2_micd.cli.main import main
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.training.registry import EXT_TRAINER, find_trainer, join_folders

Capture = pytest.CaptureFixture[str]


def test_weights_are_sorted_factors() -> None:
    assert parse_weights(["3", "1", "2/6", "0.5", "3"]) == ["1/3", "1/2", "1", "3"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["0", "1"], 'positive number such as "3" or "1/3", not "0"'),
        (["abc", "1"], 'not "abc"'),
        (["1", "1/0"], 'not "1/0"'),
        (["1", "-3"], 'not "-3"'),
        (["1", "1e400"], 'not "1e400"'),
        (["1", "nan"], 'not "nan"'),
        (["1/3", "3"], "must be 1, the published one, and others, not 1/3 3"),
        (["1"], "and others, not 1"),
    ],
)
def test_bad_weights_are_refused(dataset: TinyDataset, grid: Grid, weights: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan_tuning(grid, weights)
    assert "\n" not in str(error.value)


def entry(dataset: TinyDataset, run: Run) -> dict[str, set[str]]:
    fold = json.loads(dataset.splits_file.read_text())[run.fold]
    return {key: set(fold[key]) for key in ("train", "val", "unlabeled")}


def test_reported_validation_cases_take_no_part(dataset: TinyDataset, grid: Grid) -> None:
    grid = replace(grid, seeds=[0, 3])
    reported = entry(dataset, plan_runs(grid)[0])
    runs = plan_tuning(grid, DEFAULT_WEIGHTS)
    assert [(run.seed, run.weight, run.trainer_class) for run in runs] == [
        (seed, weight, f"nnUNetTrainerMICD_e2_i2{suffix}")
        for seed in (0, 3)
        for weight, suffix in (("1/3", "_w1over3"), ("1", ""), ("3", "_w3"))
    ]
    assert {(run.trainer, run.budget, run.is_tuning, run.test_images) for run in runs} == {
        ("nnUNetTrainerMICD", "2", True, None)
    }
    for run in runs:
        tuning = entry(dataset, run)
        assert (len(tuning["train"]), len(tuning["val"]), len(tuning["unlabeled"])) == (2, 1, 2)
        assert set().union(*tuning.values()) == set(dataset.labeled) - reported["val"]
        assert (set(run.labeled), run.num_unlabeled) == (tuning["train"], 2 + 4)
    assert len({run.fold for run in runs}) == 2
    assert len({frozenset(entry(dataset, run)["val"]) for run in runs}) == 1
    assert len({run.folder for run in runs}) == 6
    assert plan_tuning(grid, DEFAULT_WEIGHTS) == runs


def test_as_many_cases_are_labeled_as_are_reported(dataset: TinyDataset, grid: Grid) -> None:
    runs = plan_tuning(replace(grid, budgets=["60%", "f1"], val_fraction=0.1), ["1", "3"])
    assert [(run.budget, len(run.labeled)) for run in runs] == [("60%", 3), ("60%", 3), ("f1", 1), ("f1", 1)]
    of_fold = entry(dataset, runs[2])
    assert of_fold["train"] | of_fold["val"] | of_fold["unlabeled"] == {"case_0", "case_1", "case_2", "case_5"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainers": ["nnUNetTrainerMICD", "nnUNetTrainer"]}, "nnUNetTrainer uses no unlabeled images.*out of -tr"),
        ({"budgets": ["all"]}, "-n all leaves no unlabeled images"),
        ({"budgets": ["4"]}, "-n 4 labels 4 of the 5 cases outside the reported validation cases.*label fewer"),
        ({"budgets": ["f0"]}, "-n f0 labels 3 of the 3 cases"),
        ({"budgets": ["2", "40%"]}, "label the same cases"),
        ({"seeds": [-1]}, "A seed must lie between"),
        ({"trainers": ["nnUNetTrainerSelfTraining"]}, "SelfTraining has no unsupervised losses, so it has no weight"),
    ],
)
def test_bad_tunings_are_refused(dataset: TinyDataset, grid: Grid, change: dict[str, Any], message: str) -> None:
    before = dataset.splits_file.read_text()
    with pytest.raises(ValueError, match=message) as error:
        plan_tuning(replace(grid, **change), DEFAULT_WEIGHTS)
    assert "\n" not in str(error.value)
    assert dataset.splits_file.read_text() == before


@pytest.mark.parametrize("length", [Length(2, 2), Length()])
def test_generated_classes_multiply_the_weight(
    dataset: TinyDataset, grid: Grid, length: Length, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_tuning(replace(grid, trainers=["nnUNetTrainerCPS"], length=length), DEFAULT_WEIGHTS)
    assert [run.trainer_class == run.trainer for run in runs] == [False, length == Length(), False]
    folders = write_trainers(runs)
    peaks = {}
    for run in runs:
        with monkeypatch.context() as patch:
            patch.setenv(EXT_TRAINER, join_folders(folders[run.trainer_class]))
            trainer = make_trainer(find_trainer(run.trainer_class).trainer_class, dataset, shortened=False)
        assert type(trainer).__name__ == run.trainer_class
        assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (run.epochs, run.iterations)
        assert replace(trainer.config, ramp_peak=nnUNetTrainerCPS.config.ramp_peak) == nnUNetTrainerCPS.config
        peaks[run.weight] = trainer.config.ramp_peak
    published = nnUNetTrainerCPS.config.ramp_peak
    assert peaks == {"1/3": pytest.approx(published / 3), "1": published, "3": pytest.approx(3 * published)}


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Any]:
    """Let runs end at once with the Dice of their weight and seed in the returned mapping; without one they fail."""
    scores: dict[tuple[str, int], Any] = {}

    class Scored:
        def __init__(self, run: Run, _: Any):
            self.run, self.log = run, run.folder / "benchmark.log"
            write_record(run, Result.start(run, "cpu"))

        def poll(self) -> str:
            score = scores.get((self.run.weight, self.run.seed))
            if score is None:
                return "it was killed (signal 9)"
            validation = self.run.folder / "validation"
            validation.mkdir()
            (validation / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": score}}))
            write_record(self.run, Result.start(self.run, "cpu").done())
            return ""

        def stop(self) -> None:
            """Nothing is left to stop."""

    monkeypatch.setattr(scheduler, "process_starter", lambda *_: Scored)
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)
    return scores


def classes(runs: list[Run]) -> list[tuple[str, str]]:
    return [(run.trainer_class, run.weight) for run in runs]


def test_the_best_weight_is_chosen_and_trained(
    dataset: TinyDataset, grid: Grid, dice: dict[tuple[str, int], Any], capsys: Capture
) -> None:
    dice |= {("1/3", 0): 0.5, ("1", 0): 0.6, ("3", 0): 0.9, ("1/3", 3): 0.5, ("1", 3): 0.6, ("3", 3): 0.4}
    grid = replace(grid, seeds=[0, 3])
    for done in (0, 6):
        assert run_tuning(grid, device="cpu") == []
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"6 runs, {done} of them done before."
        header = lines.index("trainer            labeled  x 1/3   x 1     x 3     chosen")
        assert lines[header + 1] == "nnUNetTrainerMICD  2        0.5000  0.6000  0.6500  3"
    with (dataset.results / dataset.name / "tuning__nnUNetPlans__3d_fullres.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "configuration": "3d_fullres",
        "plans": "nnUNetPlans",
        "trainer": "nnUNetTrainerMICD",
        "budget": "2",
        "epochs": "2",
        "iterations": "2",
        "num_validation": "1",
        "seeds": "0 3",
        "dice_weight_1/3": "0.5",
        "dice_weight_1": "0.6",
        "dice_weight_3": "0.65",
        "chosen": "3",
    }
    runs = plan_runs(replace(grid, tuned=True, budgets=["2", "all"], seeds=[7]))
    assert classes(runs) == [
        ("nnUNetTrainer_e2_i2", "1"),
        ("nnUNetTrainerMICD_e2_i2", "1"),
        ("nnUNetTrainerMICD_e2_i2_w3", "3"),
        ("nnUNetTrainer_e2_i2", "1"),
    ]
    assert not any(run.is_tuning for run in runs)
    assert len({run.fold for run in runs[:3]}) == 1
    assert str(runs[2]) == "nnUNetTrainerMICD with 3 times its unsupervised weight, 2 labeled, seed 7, 2 epochs"


def test_a_tuning_is_for_the_settings_of_its_trainer(grid: Grid) -> None:
    run = plan_tuning(grid, ["1", "3"])[0]
    entry = read_entry(run)
    assert Setting.of(run, entry) != Setting.of(replace(run, config="{}"), entry)


def test_what_has_no_weight_is_not_asked_for_a_tuning(
    grid: Grid, dice: dict[tuple[str, int], Any], capsys: Capture
) -> None:
    grid = replace(grid, trainers=["nnUNetTrainerSelfTraining"], tuned=True)
    assert {run.weight for run in plan_runs(grid)} == {"1"}
    dice["1", 0] = 0.5
    assert run_benchmark(grid, "cpu") == []
    assert "the tuned setting" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [({"1/3": 0.5, "1": 0.5, "3": 0.4}, "1"), ({"1/3": 0.6, "1": 0.6, "3": 0.6}, "1"), ({"1/9": 2, "1/3": 2}, "1/3")],
)
def test_ties_go_to_the_weight_nearest_to_the_published_one(
    dataset: TinyDataset,
    grid: Grid,
    dice: dict[tuple[str, int], Any],
    capsys: Capture,
    scores: dict[str, float],
    chosen: str,
) -> None:
    scores = {"1": 0.0, **scores}
    dice |= {(weight, 0): score for weight, score in scores.items()}
    run_tuning(grid, list(scores), "cpu")
    assert f" {chosen}\n" in capsys.readouterr().out
    dice["1", 0] = 0.0
    assert run_benchmark(replace(grid, tuned=True), "cpu") == []
    printed = capsys.readouterr().out
    assert ("nnUNetTrainerMICD, 2 labeled: the tuned setting is the published one." in printed) == (chosen == "1")
    assert printed.count("done: ") == (2 if chosen == "1" else 3)


def test_a_benchmark_names_the_tuning_that_it_needs(
    dataset: TinyDataset, grid: Grid, dice: dict[tuple[str, int], Any], capsys: Capture
) -> None:
    grid = replace(grid, trainers=["nnUNetTrainerMICD", "nnUNetTrainerCPS"], seeds=[0, 3])
    before = dataset.splits_file.read_text()

    def refused(message: str, **change: Any) -> str:
        with pytest.raises(ValueError, match=message) as error:
            plan_runs(replace(grid, tuned=True, **change))
        assert "\n" not in str(error.value)
        return str(error.value)

    command = "nnUNetv2_micd tune -d 901 -c 3d_fullres -tr {} -n 2 --seeds 0 3 --weights {} --epochs 2 --iterations 2$"
    both = "nnUNetTrainerMICD nnUNetTrainerCPS"
    refused("nnUNetTrainerMICD has not been tuned with 2 labeled; run this first: " + command.format(both, "1/3 1 3"))
    refused("--val 0.3 --epochs", val_fraction=0.3)
    assert dataset.splits_file.read_text() == before

    dice |= {(weight, seed): 0.5 for weight in ("1/3", "1", "3") for seed in (0, 3)}
    del dice["3", 3]
    (failed,) = run_tuning(replace(grid, trainers=["nnUNetTrainerMICD"]), device="cpu")
    assert (failed.weight, failed.seed) == ("3", 3)
    assert "Not complete: 1 tuning." in capsys.readouterr().out
    message = refused("MICD has been tuned only in part with 2 labeled")
    dice["3", 3] = 0.5
    commands = message.partition("run this first: ")[2].split(" && ")
    untuned, partly = (command.format(name, "1/3 1 3").removesuffix("$") for name in reversed(both.split()))
    assert commands == [untuned, partly]
    for each in commands:  # as the message says
        main([*each.split()[1:], "-device", "cpu"])
    assert len(plan_runs(replace(grid, tuned=True))) == 6

    dice["10", 0] = 0.9
    run_tuning(replace(grid, seeds=[0]), ["1", "10"], device="cpu")
    message = refused("MICD has been tuned only in part")
    commands = [command.format(name, "1/3 1 3 10").removesuffix("$") for name in both.split()]
    assert message.endswith(" && ".join(commands))
    refused("not been tuned", length=Length(3, 2))
    refused("not been tuned with 1 labeled", budgets=["1"])
    refused("not been tuned", val_fraction=0.3)


def test_a_score_must_be_a_number(
    dataset: TinyDataset, grid: Grid, dice: dict[tuple[str, int], Any], capsys: Capture
) -> None:
    dice |= {("1", 0): float("nan"), ("3", 0): 0.5}
    with pytest.raises(ValueError, match=r"summary.json has no Dice, as a class is in no validation case.*--val"):
        run_tuning(grid, ["1", "3"], "cpu")
    (published, _) = plan_tuning(grid, ["1", "3"])
    (published.folder / "validation" / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"summary.json is missing or damaged; delete the folder"):
        run_tuning(grid, ["1", "3"], "cpu")


def test_a_changed_fold_is_named(
    dataset: TinyDataset, grid: Grid, dice: dict[tuple[str, int], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    dice |= {("1", 0): 0.4, ("3", 0): 0.5}
    before = dataset.splits_file.read_text()
    run_tuning(grid, ["1", "3"], "cpu")
    dataset.splits_file.write_text(before)
    with pytest.raises(ValueError, match=r"nnUNetv2_micd tune"):
        plan_runs(replace(grid, tuned=True))
    message = capsys.readouterr().err
    assert re.search(r"Not taken into account: Fold 2 of splits_final.json no longer labels the cases of", message)


def test_test_images_must_not_be_tuned_with(
    dataset: TinyDataset, grid: Grid, dice: dict[tuple[str, int], Any], test_set: tuple[str, str]
) -> None:
    dice |= {("1", 0): 0.4, ("3", 0): 0.5}
    run_tuning(grid, ["1", "3"], "cpu")
    hidden = entry(dataset, plan_runs(grid)[0])["unlabeled"].pop()
    shutil.copy(dataset.raw / "imagesTr" / f"{hidden}_0000.nii.gz", Path(test_set[0]))
    shutil.copy(dataset.raw / "labelsTr" / f"{hidden}.nii.gz", Path(test_set[1]))
    grid = replace(grid, test=test_set, transductive=True)
    plan_runs(grid)
    with pytest.raises(ValueError, match=rf"in the tuning with their labels \({hidden}\)"):
        plan_runs(replace(grid, tuned=True))


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("nnunetv2_micd.benchmark.run_tuning", lambda *given, **named: calls.append((*given, named)))
    words = "tune -d 901 -c 2d -tr A B -n 1 f0 --seeds 3 4 --val 0.3 --epochs 5 -p P -device cpu --jobs 2"
    main(words.split())
    main([*words.split(), "--weights", "1", "2"])
    grid = Grid("901", "2d", ["A", "B"], ["1", "f0"], [3, 4], plans="P", val_fraction=0.3, length=Length(5))
    named = {"device": "cpu", "jobs": 2, "executor": None, "options": []}
    assert calls == [(grid, list(DEFAULT_WEIGHTS), named), (grid, ["1", "2"], named)]


@pytest.mark.slow
def test_a_tuning_from_start_to_end(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    assert run_tuning(grid, ["1", "2"], "cpu") == []
    assert "nnUNetTrainerMICD  2 " in capsys.readouterr().out
