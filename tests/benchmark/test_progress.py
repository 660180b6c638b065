"""Progress of a benchmark: steps, predicted cases, and what the runs do, in words."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import TinyDataset

from nnunetv2_micd.benchmark import Grid, progress
from nnunetv2_micd.benchmark.plan import plan_runs
from nnunetv2_micd.benchmark.progress import Progress, RunsBar, progress_removed, report_prediction, report_steps
from nnunetv2_micd.benchmark.records import Run


@pytest.fixture
def runs(grid: Grid, dataset: TinyDataset) -> list[Run]:
    """Return two runs, each of 4 steps and 2 test cases."""
    runs = plan_runs(replace(grid, val_fraction=0.4))
    for run in runs:
        run.folder.mkdir(parents=True)
    return runs


def percent(bar: RunsBar) -> str:
    bar.show()
    return str(bar._bar).split("%")[0]


def test_bar_counts_steps_and_predicted_cases_and_is_full_at_the_end_only(runs: list[Run]) -> None:
    first, second = runs
    with RunsBar(runs, runs) as bar:
        assert (percent(bar), bar.describe()) == ("0", "0 of 2 runs done")
        bar.follow(first)
        assert bar.describe() == f"0 of 2 runs done: starting {first}"
        Progress("training", 3, 0).write(first)
        bar.follow(first)
        bar.follow(second)
        assert (percent(bar), bar.describe()) == ("25", f"0 of 2 runs done: training {first} and 1 more")
        bar.end(first, has_failed=True)
        report_prediction(second)
        for case, expected in ((None, "83"), ("case_1", "91"), ("case_2", "91")):
            if case is not None:
                (second.folder / "validation").mkdir(exist_ok=True)
                (second.folder / "validation" / f"{case}.nii.gz").touch()
            bar.follow(second)
            assert percent(bar) == expected
        assert bar.describe() == f"0 of 2 runs done, 1 failed: predicting {second}"
        bar.end(second, has_failed=False)
        assert (percent(bar), bar.describe()) == ("100", "1 of 2 runs done, 1 failed")


def test_what_an_earlier_process_did_took_no_time(runs: list[Run]) -> None:
    with RunsBar(runs[:1], runs[:1]) as bar:
        Progress("training", 3, 2).write(runs[0])
        bar.follow(runs[0])
        bar.show()
        assert (bar._bar.n, bar._bar.initial) == (3, 2)
    os.utime(runs[0].folder / progress.FILE, (0, 0))  # of a process that was killed
    with RunsBar(runs[:1], runs[:1]) as bar:
        bar.follow(runs[0])
        assert bar.describe() == f"0 of 1 runs done: starting {runs[0]}"


def test_any_trainer_reports_its_steps(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0)
    trainer = SimpleNamespace(current_epoch=1, num_iterations_per_epoch=2, train_step=lambda batch: {"loss": batch})
    with progress_removed(runs[0]):
        report_steps(trainer, runs[0])
        assert Progress.read(runs[0], since=0) == Progress("training", 2, 2)
        assert trainer.train_step(0.5) == {"loss": 0.5}
        assert Progress.read(runs[0], since=0) == Progress("training", 3, 2)
    assert Progress.read(runs[0], since=0) is None
