"""Starts the runs of a benchmark: as processes of this machine, or as jobs that submitit submits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from nnunetv2_micd.benchmark.records import Run
from nnunetv2_micd.benchmark.run import LOG, execute
from nnunetv2_micd.data.results import results_root

WORKER = "nnunetv2_micd.benchmark.worker"
"""Module that runs in the process of a run. It is not imported here, as Python warns if that was done before -m."""

JOB_MINUTES = 3 * 24 * 60
"""Time limit of a job unless ``timeout_min`` is given; submitit's own default of five minutes is too short."""


class StartedRun(Protocol):
    """A run that was started.

    Attributes:
        run: The run.
        log: File with its output.
    """

    run: Run
    log: Path

    def poll(self) -> str | None:
        """Return None while it is running, an empty text if it went well, or the reason of its end."""

    def stop(self) -> None:
        """End it."""


Starter = Callable[[Run, Sequence[StartedRun]], StartedRun]
"""Starts a run, given those that are running."""

TaskMaker = Callable[[Run], Mapping[str, Any]]
"""Returns the arguments of `run.execute` beside the run, as JSON can hold them."""


class LocalProcess:
    """A run in a process of this machine, which ends when this process does."""

    def __init__(self, run: Run, task: Mapping[str, Any], variables: Mapping[str, str], gpu: str | None):
        self.run, self.gpu, self.log = run, gpu, run.folder / LOG
        run.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
                start_new_session=True,  # a process group, so that its workers can be ended with it
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"run": run.to_json(), **task}).encode() + b"\n")
        self._process.stdin.flush()

    def poll(self) -> str | None:
        """Return how the process ended, see :class:`StartedRun`."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            # The kernel kills one process when memory runs out. Its workers would wait forever and keep their memory.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            return f"it was killed (signal {-code})"
        return f"exit code {code}" if code else ""

    def stop(self) -> None:
        """Close the pipe, at which the process ends itself and its workers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class SubmittedJob:
    """A run that submitit has submitted."""

    def __init__(self, run: Run, task: Mapping[str, Any], executor: Any):
        self.run = run
        self._job = executor.submit(execute, run, **task)
        self.log = Path(self._job.paths.stderr)

    def poll(self) -> str | None:
        """Return how the job ended, see :class:`StartedRun`."""
        if not self._job.done():
            return None
        error = self._job.exception()
        return "" if error is None else " ".join(f"{type(error).__name__}: {error}".split())

    def stop(self) -> None:
        """Cancel the job."""
        self._job.cancel()


def process_starter(device: str, jobs: int, make_task: TaskMaker) -> Starter:
    """Return what starts a run as a process, with a share of the cores and on the GPU with the fewest runs."""
    gpus = _list_gpus() if device == "cuda" else []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    variables = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}

    def start(run: Run, active: Sequence[StartedRun]) -> StartedRun:
        used = [process.gpu for process in active if isinstance(process, LocalProcess)]
        gpu = min(gpus, key=used.count) if gpus else None
        return LocalProcess(run, make_task(run), variables, gpu)

    return start


def job_starter(executor: Any, make_task: TaskMaker) -> Starter:
    """Return what submits a run to an executor of submitit."""
    return lambda run, _: SubmittedJob(run, make_task(run), executor)


def _list_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def make_executor(cluster: str, options: Sequence[str], device: str) -> Any:
    """Return an executor of submitit.

    Args:
        cluster: ``slurm`` or ``local``.
        options: ``KEY=VALUE`` for the executor.
        device: ``cuda`` asks for one GPU for each job, unless the options say something about GPUs.

    Raises:
        ValueError: submitit is not installed, or refuses the cluster or the options.
    """
    try:
        import submitit  # an optional dependency
    except ImportError:
        raise ValueError(
            '--executor needs submitit, which is not installed; run: pip install "nnunetv2-micd[cluster]"'
        ) from None
    parameters: dict[str, Any] = {"timeout_min": JOB_MINUTES}
    if device == "cuda" and not any("gpu" in option or "gres" in option for option in options):
        parameters["gpus_per_node"] = 1
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise ValueError(f'An option of the executor must be like "slurm_partition=gpu", not "{option}"')
        parameters[key] = int(value) if value.isdecimal() else value
    try:
        executor = submitit.AutoExecutor(folder=results_root() / "benchmark_jobs", cluster=cluster)
        executor.update_parameters(**parameters)
    except Exception as error:  # an unknown option, or a machine without Slurm: submitit has no common type of error
        raise ValueError(f"submitit cannot submit to {cluster}: {' '.join(str(error).split())}") from None
    return executor
