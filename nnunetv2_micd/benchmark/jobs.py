"""Starts the runs of a benchmark as jobs that submitit submits, to Slurm."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_micd.benchmark.launch import StartedRun, Starter, TaskMaker
from nnunetv2_micd.benchmark.records import Run
from nnunetv2_micd.benchmark.run import execute
from nnunetv2_micd.data.results import results_root

JOB_MINUTES = 3 * 24 * 60
"""Time limit of a job unless ``timeout_min`` is given; submitit's own default of five minutes is too short."""

GPU_OPTION = re.compile(r"(slurm_)?(gpus|num_gpus|gres)(_per_\w+)?=|(slurm_)?additional_parameters=.*\"(gpus|gres)")
"""An option by which a job asks for GPUs; not ``cpus_per_gpu``, nor a partition that is called ``gpu``."""

JOB_NUMBER = "benchmark_job"
"""File in the folder of a run with the number of the job that Slurm has for it."""

QUEUE_SECONDS = 10
"""Time between two questions to Slurm."""

RESULT_SECONDS = 15
"""Time that a result may take to appear after the end of its job, on a disk that machines share."""

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""Slurm's states of jobs that have ended."""

FORGOTTEN = "forgotten"
"""State of a job that Slurm does not know, or no longer: it forgets jobs minutes after their end."""


class Queue:
    """The states of this user's jobs, with one question to Slurm for all of them.

    submitit's own way is ``sacct``, every ten minutes. Where Slurm keeps no accounts, that waits forever for a job that
    was canceled or killed.
    """

    def __init__(self) -> None:
        self._states, self._asked = _ask_squeue(), time.monotonic()

    def add(self, job: str) -> None:
        """Add a job that was submitted a moment ago."""
        self._states[job] = "PENDING"

    def state(self, job: str) -> str:
        """Return the state of a job as it was some seconds ago."""
        if time.monotonic() - self._asked > QUEUE_SECONDS:
            self._asked = time.monotonic()
            with contextlib.suppress(ValueError, OSError):  # it may answer next time
                self._states = _ask_squeue()
        return self._states.get(job, FORGOTTEN)

    def is_ahead(self, job: str) -> bool:
        """Return whether a job waits or runs, and is not being ended."""
        return self.state(job) not in {*ENDED, "COMPLETING", FORGOTTEN}


def _ask_squeue() -> dict[str, str]:
    command = ["squeue", "--me", "--noheader", "--states=all", "--format=%A %T"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(f"Slurm does not answer; try it with: squeue --me ({' '.join(answer.stderr.split())})")
    return dict(line.split() for line in answer.stdout.splitlines())


class JobFunction:
    """What a job does: `run.execute`.

    When Slurm needs the machine for others, or when the time of the job is over, submitit calls `checkpoint` and queues
    the job again. The training then continues from its last checkpoint.
    """

    def __call__(self, run: Run, **task: Any) -> None:
        """Do a run, see `run.execute`."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, so a canceled job would end late
        # Slurm's signal also reaches the workers, but only this process may queue the job again.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
        execute(run, **task)

    def checkpoint(self, run: Run, **task: Any) -> Any:
        """Return what the job does when it starts again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run, **task)


class SlurmJob:
    """A run that is a job in Slurm. The job does not end with this process, see `_find_job`."""

    goes_on = True

    def __init__(self, run: Run, job: Any, queue: Queue):
        self.run, self._job, self.log = run, job, Path(job.paths.stderr)
        self._queue = queue
        self._ended: float | None = None

    def poll(self) -> str | None:
        """Return how the job ended, see :class:`StartedRun`."""
        if self._job.paths.result_pickle.exists():
            error = self._job.exception()
            return "" if error is None else _last_line(str(error))
        state = self._queue.state(self._job.job_id)
        if state not in {*ENDED, FORGOTTEN}:
            self._ended = None
            return None
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended < RESULT_SECONDS:
            return None
        return f"it was killed; its job {self._job.job_id} is {state} in Slurm"

    def stop(self) -> None:
        """Cancel the job."""
        self._job.cancel(check=False)


def _last_line(text: str) -> str:
    """Return the last line of the traceback or log that submitit puts between lines of dashes."""
    parts = re.split(r"\n-{22,}\n", text)
    return parts[min(1, len(parts) - 1)].strip().splitlines()[-1]


def job_starter(executor: Any, make_task: TaskMaker) -> Starter:
    """Return what submits a run to Slurm, unless an earlier call has left a job of it there.

    Raises:
        ValueError: Slurm does not answer.
    """
    queue = Queue()

    def start(run: Run, _: Sequence[StartedRun]) -> StartedRun:
        job = _find_job(executor, run, queue)
        if job is None:
            job = _submit(executor, run, make_task(run))
            queue.add(job.job_id)
            (run.folder / JOB_NUMBER).write_text(job.job_id)
        return SlurmJob(run, job, queue)

    return start


def _find_job(executor: Any, run: Run, queue: Queue) -> Any:
    """Return the job that a call which was killed has submitted, if it waits or runs, or None."""
    import submitit

    file = run.folder / JOB_NUMBER
    number = file.read_text() if file.exists() else ""
    if not queue.is_ahead(number):
        return None
    print(f"job {number} of an earlier call goes on, with its options: {run}", flush=True)
    return submitit.SlurmJob(executor.folder, number)


def _submit(executor: Any, run: Run, task: Mapping[str, Any]) -> Any:
    run.folder.mkdir(parents=True, exist_ok=True)
    executor.update_parameters(name=f"{run.trainer_class}_fold_{run.fold}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words, which the error repeats
            return executor.submit(JobFunction(), run, **task)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The job of {run} was refused ({reason}); change --executor-options, or, if these are too many jobs at a "
            "time, add --jobs"
        ) from None


def make_executor(options: Sequence[str], device: str) -> Any:
    """Return submitit's executor for Slurm.

    Args:
        options: ``KEY=VALUE`` for the executor.
        device: ``cuda`` asks for one GPU for each job, unless the options say something about GPUs.

    Raises:
        ValueError: submitit is not installed, refuses the options, or finds no Slurm.
    """
    try:
        import submitit  # an optional dependency
    except ImportError:
        raise ValueError(
            '--executor needs submitit, which is not installed; in the clone, run: pip install ".[cluster]"'
        ) from None
    parameters: dict[str, Any] = {"timeout_min": JOB_MINUTES}
    if device == "cuda" and not any(GPU_OPTION.match(option) for option in options):
        parameters["gpus_per_node"] = 1
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise ValueError(f'An option of the executor must be like "slurm_partition=gpu", not "{option}"')
        parameters[key] = _parse(value)
    try:
        executor = submitit.AutoExecutor(folder=results_root() / "benchmark_jobs", cluster="slurm")
        executor.update_parameters(**parameters)
    except Exception as error:  # an unknown option, or a machine without Slurm: submitit has no common type of error
        raise ValueError(f"submitit cannot submit to Slurm: {' '.join(str(error).split())}") from None
    return executor


def _parse(value: str) -> Any:
    """Return a number, a truth value or a list as JSON writes them, and anything else as text."""
    try:
        return json.loads(value)
    except ValueError:
        return value
