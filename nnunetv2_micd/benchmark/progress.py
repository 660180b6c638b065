"""How far the runs of a benchmark are. The process of a run writes it to a small file, the scheduler reads it."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from nnunetv2_micd.benchmark.folds import read_entry
from nnunetv2_micd.benchmark.prediction import find_test_images
from nnunetv2_micd.benchmark.records import Run, evaluated_folders
from nnunetv2_micd.utils.files import atomic, read_json

FILE = "benchmark_progress.json"

WRITE_SECONDS = 1
"""Least time between two writes of the file."""

FILE_CLOCK = 0.1
"""Seconds by which the time of a file that was just written may lie in the past, as a disk's clock is coarse."""

TERMINAL_SECONDS, LOG_SECONDS = 1, 60
"""Least time between two lines of the bar on a terminal, and where its output goes to a file."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        activity: What its process does: ``"training"`` or ``"predicting"``.
        steps: Number of training steps so far.
        earlier_steps: Those of them that an earlier process took.
    """

    activity: str
    steps: int
    earlier_steps: int

    def write(self, run: Run) -> None:
        """Write it for the scheduler; a full disk must not end a training because of it."""
        with suppress(OSError), atomic(run.folder / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, run: Run, since: float) -> "Progress | None":
        """Return what the process of a run has written since a time in seconds; what is older is of another process."""
        path = run.folder / FILE
        with suppress(OSError, ValueError, TypeError):  # the process may remove it at any time
            if path.stat().st_mtime >= since:
                return cls(**read_json(path))
        return None


def report_steps(trainer: Any, run: Run) -> None:
    """Let a trainer, of whatever kind, write its progress while it trains."""
    earlier = trainer.current_epoch * trainer.num_iterations_per_epoch
    steps, written, take_step = earlier, time.monotonic(), trainer.train_step
    Progress("training", steps, earlier).write(run)

    def train_step(batch: dict) -> dict:
        nonlocal steps, written
        result = take_step(batch)
        steps += 1
        if time.monotonic() - written >= WRITE_SECONDS:
            Progress("training", steps, earlier).write(run)
            written = time.monotonic()
        return result

    trainer.train_step = train_step


def report_prediction(run: Run) -> None:
    """Write that a run is trained and predicts now."""
    steps = run.epochs * run.iterations
    Progress("predicting", steps, steps).write(run)


@contextmanager
def progress_removed(run: Run) -> Iterator[None]:
    """Remove the file at the end of the block, when nobody needs it any more."""
    try:
        yield
    finally:
        (run.folder / FILE).unlink(missing_ok=True)


class RunsBar:
    """Progress bar of all runs of a benchmark. Its unit is a training step, and a predicted case counts as one.

    Args:
        runs: All runs.
        waiting: Those that are not done yet.
    """

    def __init__(self, runs: Sequence[Run], waiting: Sequence[Run]):
        self._since = time.time() - FILE_CLOCK
        self._work = {run: run.epochs * run.iterations + _count_cases(run) for run in runs}
        self._done = {run: 0 if run in waiting else work for run, work in self._work.items()}
        self._failed = 0
        self._activities: dict[Run, str] = {}
        self._bar = _Bar(
            desc=self.describe(),
            total=sum(self._work.values()),
            initial=sum(self._done.values()),
            bar_format="{percent}%|{bar}| {n_fmt}/{total_fmt} steps, {remaining} left, {desc}",
            dynamic_ncols=True,
            smoothing=0,  # estimate the remaining time from the mean, as methods differ in their speed
            mininterval=TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
            miniters=0,  # show the remaining time even if no step has ended
            disable=not waiting,
        )

    def __enter__(self) -> "RunsBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def follow(self, run: Run) -> None:
        """Take over how far a started run is."""
        progress = Progress.read(run, self._since)
        activity = self._activities.setdefault(run, "starting")
        if progress is None:
            return
        if activity == "starting":
            self._bar.initial += progress.earlier_steps  # they took no time now
        self._activities[run] = progress.activity
        # The last piece of work is its end, so that the bar is not full before.
        self._done[run] = min(progress.steps + self._count_predicted(run, progress), self._work[run] - 1)

    def end(self, run: Run, has_failed: bool) -> None:
        """Note that a run has ended."""
        self._activities.pop(run, None)  # a run that could not start has none
        self._done[run] = self._work[run]  # there is no more to wait for, if it has failed as well
        self._failed += has_failed

    def leave(self, run: Run) -> None:
        """Note that another process does a run."""
        self._activities.pop(run, None)

    def show(self) -> None:
        """Show what the runs do, if it is time for that."""
        self._bar.set_description_str(self.describe(), refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)

    def describe(self) -> str:
        """Return in words how many runs are done and what the started ones do."""
        done = sum(self._done[run] == work for run, work in self._work.items()) - self._failed
        text = f"{done} of {len(self._work)} runs done" + (f", {self._failed} failed" if self._failed else "")
        active = [f"{activity} {run}" for run, activity in self._activities.items()]
        others = f" and {len(active) - 1} more" if len(active) > 1 else ""
        return f"{text}: {active[0]}{others}" if active else text

    def _count_predicted(self, run: Run, progress: Progress) -> int:
        if progress.activity != "predicting":
            return 0
        folder = run.folder / evaluated_folders(run)[0]
        return sum(path.suffix != ".json" and path.stat().st_mtime >= self._since for path in folder.glob("*"))


class _Bar(tqdm):
    """A bar whose percentage is rounded down, as 99.9 % is not all."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """Values for the format of the bar."""
        values = super().format_dict
        return {**values, "percent": math.floor(100 * values["n"] / values["total"])}


def _count_cases(run: Run) -> int:
    return len(read_entry(run)["val"]) if run.test_images is None else len(find_test_images(run))
