"""What a started run is, and starting runs as processes of this machine."""

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
from nnunetv2_micd.benchmark.run import BUSY_CODE, LOG
from nnunetv2_micd.utils.devices import count_cores

WORKER = "nnunetv2_micd.benchmark.worker"
"""Module that runs in the process of a run. It is not imported here, as Python warns if that was done before -m."""


class StartedRun(Protocol):
    """A run that was started.

    Attributes:
        run: The run.
        log: File with its output.
        goes_on: Whether it goes on when this process ends.
    """

    run: Run
    log: Path
    goes_on: bool

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

    goes_on = False

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
        if code == BUSY_CODE:
            return f"{BlockingIOError.__name__}: another process works on it"
        return f"exit code {code}" if code else ""

    def stop(self) -> None:
        """Close the pipe, at which the process ends itself and its workers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def process_starter(device: str, jobs: int, make_task: TaskMaker) -> Starter:
    """Return what starts a run as a process, with a share of the cores and on the GPU with the fewest runs."""
    gpus = _list_gpus() if device == "cuda" else []
    threads = max(1, count_cores() // jobs)
    variables = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}

    def start(run: Run, active: Sequence[StartedRun]) -> StartedRun:
        used = [process.gpu for process in active if isinstance(process, LocalProcess)]
        gpu = min(gpus, key=used.count) if gpus else None
        return LocalProcess(run, make_task(run), variables, gpu)

    return start


def _list_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
