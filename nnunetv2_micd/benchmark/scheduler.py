"""Runs a benchmark or a tuning: starts the runs that are not done yet, watches them, and says what came of them.

Everything is checked before anything starts, see :mod:`nnunetv2_micd.benchmark.plan`. Each run is a process, see
:mod:`nnunetv2_micd.benchmark.launch`, or a job, see :mod:`nnunetv2_micd.benchmark.jobs`. A benchmark that was killed
continues when it is called again, because runs that are done are not repeated and the others go on from their last
checkpoint.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from nnunetv2_micd.benchmark.folds import read_entry
from nnunetv2_micd.benchmark.grid import Grid
from nnunetv2_micd.benchmark.jobs import job_starter, make_executor
from nnunetv2_micd.benchmark.launch import StartedRun, Starter, process_starter
from nnunetv2_micd.benchmark.plan import plan_runs, plan_tuning
from nnunetv2_micd.benchmark.progress import RunsBar
from nnunetv2_micd.benchmark.records import PUBLISHED, Run, read_record, write_record
from nnunetv2_micd.benchmark.run import is_locked
from nnunetv2_micd.benchmark.run_folder import is_done
from nnunetv2_micd.benchmark.trainers import write_trainers
from nnunetv2_micd.benchmark.tuning import DEFAULT_WEIGHTS, Setting, format_tunings, read_tunings, write_tunings
from nnunetv2_micd.data.folders import dataset_id
from nnunetv2_micd.training.registry import EXT_TRAINER, STOCK, add_trainer_folders, find_trainer
from nnunetv2_micd.utils.devices import check_device
from nnunetv2_micd.utils.errors import describe_error
from nnunetv2_micd.utils.wording import counted

POLL_SECONDS = 1


def run_benchmark(
    grid: Grid,
    device: str = "cuda",
    jobs: int | None = None,
    executor: str | None = None,
    options: Sequence[str] = (),
) -> list[Run]:
    """Do all runs of a grid that are not done yet, and print what comes of them.

    Args:
        grid: Everything to compare.
        device: ``cpu``, ``cuda`` or ``mps``.
        jobs: Number of runs side by side; by default one, with an executor all of them.
        executor: ``slurm`` to submit the runs with submitit; by default processes of this machine.
        options: ``KEY=VALUE`` for submitit's executor.

    Returns:
        The runs that failed.

    Raises:
        ValueError: The arguments, the data or earlier runs are wrong; nothing was started.
        OSError: Data is missing; nothing was started.

    Examples:
        >>> grid = Grid("4", "3d_fullres", ["nnUNetTrainerMICD"], budgets=["6"], seeds=[0, 1])
        >>> run_benchmark(grid, jobs=2)  # doctest: +SKIP
        []
    """
    submit = _check_execution(device, jobs, executor, options)
    runs = plan_runs(grid)
    if grid.tuned:
        _print_untuned(runs)
    trainer_folders = write_trainers(runs)
    failed = _run_waiting(runs, device, jobs, submit, trainer_folders, grid.mean_of_both)
    if any(run.trainer_class != run.trainer for run in runs):
        add_trainer_folders(folder for folders in trainer_folders.values() for folder in folders)
        print("To predict with these trainings later, let nnU-Net find their trainers:")
        print(f'export {EXT_TRAINER}="{os.environ[EXT_TRAINER]}"')
    baseline = "" if grid.baseline == STOCK else f" --baseline {grid.baseline}"
    print(
        f"Compare the runs with: nnUNetv2_micd report -d {dataset_id(runs[0].dataset)} -c {grid.configuration} "
        f"-p {grid.plans}{baseline} -o OUTPUT_FOLDER"
    )
    return failed


def run_tuning(
    grid: Grid,
    weights: Sequence[str] = DEFAULT_WEIGHTS,
    device: str = "cuda",
    jobs: int | None = None,
    executor: str | None = None,
    options: Sequence[str] = (),
) -> list[Run]:
    """Train each trainer of a grid with several unsupervised weights, and print and write which one to choose.

    The cases that a benchmark reports have no part in these trainings. ``tuning__PLANS__CONFIGURATION.csv`` in the
    folder of the dataset's results holds all complete tunings.

    Args:
        grid: Trainers, budgets and seeds; the baseline, longer trainings and test set of the grid are not used.
        weights: Factors of the unsupervised weight of each trainer, such as ``"1/3"``; 1 is among them.
        device: See `run_benchmark`, as for the following.
        jobs: Number of runs side by side.
        executor: ``slurm`` to submit the runs.
        options: ``KEY=VALUE`` for submitit's executor.

    Returns:
        The runs that failed.

    Raises:
        ValueError: The arguments, the data or earlier runs are wrong.
        OSError: Data is missing.

    Examples:
        >>> grid = Grid("4", "3d_fullres", ["nnUNetTrainerMICD"], budgets=["6"], seeds=[0, 1])
        >>> run_tuning(grid, ["1/3", "1", "3"])  # doctest: +SKIP
        []
    """
    submit = _check_execution(device, jobs, executor, options)
    runs = plan_tuning(grid, weights)
    failed = _run_waiting(runs, device, jobs, submit, write_trainers(runs))
    settings = dict.fromkeys(Setting.of(run, read_entry(run)) for run in runs)
    found = read_tunings(runs[0].dataset, grid.configuration, grid.plans)
    tunings = {setting: tuning for setting, tuning in found.items() if tuning.is_complete}
    for setting in tunings.keys() - settings.keys():
        try:
            _ = tunings[setting].scores
        except ValueError as error:
            print(f"An earlier tuning of {setting.trainer} is left out: {error}", file=sys.stderr)
            del tunings[setting]
    complete = [tunings[setting] for setting in settings if setting in tunings]
    if complete:
        print("Mean Dice over the seeds for each factor of the unsupervised weight:")
        print(format_tunings(complete))
        print(f"Written: {write_tunings(list(tunings.values()))}")
        print("Train the tuned settings beside the published ones with: nnUNetv2_micd benchmark ... --tuned")
    if len(complete) < len(settings):
        print(
            f"Not complete: {counted(len(settings) - len(complete), 'tuning')}. Each needs every weight with every "
            "seed, also those of earlier tunings."
        )
    return failed


def _print_untuned(runs: Sequence[Run]) -> None:
    """Print for which trainers and budgets a tuning has chosen the published setting."""
    tuned = {(run.trainer, run.budget) for run in runs if run.weight != PUBLISHED}
    for trainer, budget in dict.fromkeys((run.trainer, run.budget) for run in runs if run.num_unlabeled):
        has_weight = getattr(find_trainer(trainer).trainer_class, "has_unsupervised_losses", False)
        if has_weight and (trainer, budget) not in tuned:
            print(f"{trainer}, {budget} labeled: the tuned setting is the published one.")


def _check_execution(device: str, jobs: int | None, executor: str | None, options: Sequence[str]) -> Any:
    """Check how to execute runs; return submitit's executor, or None for processes of this machine."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"The number of jobs must be at least 1, not {jobs}")
    if options and executor is None:
        raise ValueError(f"The options {', '.join(options)} are for an executor; add --executor slurm")
    if executor is not None:  # its jobs have GPUs of their own
        return make_executor(options, device)
    check_device(device)
    return None


def _run_waiting(
    runs: Sequence[Run],
    device: str,
    jobs: int | None,
    submit: Any,
    trainer_folders: Mapping[str, Sequence[str]],
    mean_of_both: bool = False,
) -> list[Run]:
    """Do the runs that are not done, and return those that failed."""

    def make_task(run: Run) -> dict[str, Any]:
        folders = list(trainer_folders[run.trainer_class])
        return {"device": device, "trainer_folders": folders, "mean_of_both": mean_of_both}

    waiting = [run for run in runs if not is_done(run, mean_of_both)]
    print(f"{counted(len(runs), 'run')}, {len(runs) - len(waiting)} of them done before.", flush=True)
    if submit is None:
        num_jobs, start = jobs or 1, process_starter(device, jobs or 1, make_task)
    else:
        num_jobs, start = jobs or len(runs), job_starter(submit, make_task)
    elsewhere = set[Run]()

    def is_elsewhere(run: Run, has_failed: bool = False) -> bool:
        # A job of an earlier call holds the lock as well, but is found by its number.
        if not ((submit is None or has_failed or run in elsewhere) and is_locked(run)):
            return False
        if run not in elsewhere:
            elsewhere.add(run)
            tqdm.write(f"waits, as another process works on it: {run}", file=sys.stdout)
        return True

    return _run_all(runs, waiting, num_jobs, start, lambda run: is_done(run, mean_of_both), is_elsewhere)


def _run_all(
    runs: Sequence[Run],
    waiting: Sequence[Run],
    jobs: int,
    start: Starter,
    is_finished: Callable[[Run], bool],
    is_elsewhere: Callable[..., bool],
) -> list[Run]:
    """Start the waiting runs, never more than ``jobs`` at a time, and return those that failed.

    Runs at which other processes work wait until those have ended, and may be done then.
    """
    queue, active, failed = list(waiting), list[StartedRun](), list[Run]()
    with RunsBar(runs, waiting) as bar, _stopped_at_the_end(active):
        while queue or active:
            while queue and len(active) < jobs:
                run = next((run for run in queue if not is_elsewhere(run)), None)
                if run is None:
                    break
                queue.remove(run)
                if _is_done_by_others(run, is_finished):
                    bar.end(run, has_failed=False)
                    tqdm.write(f"done by another process: {run}", file=sys.stdout)
                    continue
                try:
                    active.append(start(run, active))
                except Exception as error:
                    if not active:
                        raise
                    # Such as a cluster that is busy. What runs must not end with it.
                    failed.append(run)
                    bar.end(run, has_failed=True)
                    tqdm.write(f"FAILED: {run}: {describe_error(error)}", file=sys.stdout)
            time.sleep(POLL_SECONDS)
            for started in list(active):
                bar.follow(started.run)
                ending = started.poll()
                if ending is None:
                    continue
                if not ending:
                    ending = _describe_incomplete(started.run, is_finished)
                active.remove(started)
                # Both have started it before either was at it. Only after this error: the loaders of a killed run may
                # still hold its lock.
                if ending.startswith(BlockingIOError.__name__) and is_elsewhere(started.run, has_failed=True):
                    bar.leave(started.run)
                    queue.append(started.run)
                    continue
                bar.end(started.run, has_failed=bool(ending))
                if ending:
                    failed.append(started.run)
                tqdm.write(_describe_end(started, ending), file=sys.stdout)
            bar.show()
    return failed


@contextmanager
def _stopped_at_the_end(active: Sequence[StartedRun]) -> Iterator[None]:
    """Stop the runs that are active at the end of the block, but jobs that go on by themselves only for the user."""
    is_interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        is_interrupted = True
        raise
    finally:
        for started in active:
            if is_interrupted or not started.goes_on:
                started.stop()


def _is_done_by_others(run: Run, is_finished: Callable[[Run], bool]) -> bool:
    """Return True if another benchmark has done a run since this one began; it names a defect when it starts it."""
    try:
        return is_finished(run)
    except (ValueError, OSError):
        return False


def _describe_incomplete(run: Run, is_finished: Callable[[Run], bool]) -> str:
    """Return why a run that has ended without an error is not complete, or an empty text."""
    try:
        # A job of an earlier call had the options of that.
        return "" if is_finished(run) else "it has ended and is not complete; call the same command again"
    except (ValueError, OSError) as error:
        return describe_error(error)


def _describe_end(started: StartedRun, ending: str) -> str:
    """Return the line about a run that has ended."""
    if not ending:
        return f"done: {started.run}"
    try:
        record = read_record(started.run.folder)
    except (ValueError, OSError) as error:
        return f"FAILED: {started.run}: {ending}; {describe_error(error)}"
    if record is not None and record.result.status == "running" and "killed" in ending:
        # A killed process could not write that it failed.
        write_record(record.run, record.result.failed(ending))
    elif record is not None and record.result.error is not None:
        ending = record.result.error
    return f"FAILED: {started.run}: {ending}; see {started.log}"
