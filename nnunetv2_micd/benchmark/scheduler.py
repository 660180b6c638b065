"""Runs trainers, label budgets and seeds against each other, and against a baseline, on one dataset.

All is checked before anything is started, see :mod:`nnunetv2_micd.benchmark.grid`. Each run is one process, see
:mod:`nnunetv2_micd.benchmark.run`. Runs that are done are not repeated, so a benchmark that was killed is called again.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from nnunetv2.paths import nnUNet_results
from tqdm import tqdm

from nnunetv2_micd.benchmark.grid import Grid, is_done, plan_runs
from nnunetv2_micd.benchmark.records import STOCK, Run, read_record, write_record
from nnunetv2_micd.benchmark.run import LOG, add_trainer_folder, execute
from nnunetv2_micd.benchmark.trainers import write_trainers
from nnunetv2_micd.data.folders import dataset_id

POLL_SECONDS = 1
JOB_MINUTES = 3 * 24 * 60
"""How long a job may take unless ``timeout_min`` says something else; submitit's own default is five minutes."""


class _Started(Protocol):
    """A run that was started.

    Attributes:
        run: which.
        log: the file with its output.
    """

    run: Run
    log: Path

    def poll(self) -> str | None:
        """Return None while it is running, an empty text if it went well, and else how it ended."""

    def stop(self) -> None:
        """End it."""


class _Process:
    """A run in a process of this machine, which ends when this process does."""

    def __init__(self, run: Run, device: str, variables: Mapping[str, str], gpu: str | None):
        self.run, self.gpu, self.log = run, gpu, run.folder / LOG
        run.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nnunetv2_micd.benchmark.run"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
                start_new_session=True,  # a group of its own, with which it ends its workers
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"run": asdict(run), "device": device}).encode() + b"\n")
        self._process.stdin.flush()

    def poll(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        return f"it was killed (signal {-code})" if code < 0 else f"exit code {code}" if code else ""

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # which it takes as the end of this process
        self._process.wait()


class _Job:
    """A run that submitit has submitted."""

    def __init__(self, run: Run, device: str, executor: Any):
        self.run = run
        self._job = executor.submit(execute, run, device)
        self.log = Path(self._job.paths.stderr)

    def poll(self) -> str | None:
        if not self._job.done():
            return None
        error = self._job.exception()
        return "" if error is None else " ".join(f"{type(error).__name__}: {error}".split())

    def stop(self) -> None:
        self._job.cancel()


def run_benchmark(
    grid: Grid,
    device: str = "cuda",
    jobs: int | None = None,
    executor: str | None = None,
    options: Sequence[str] = (),
) -> list[Run]:
    """Do all runs of a grid that are not done yet, and tell what comes of them.

    Args:
        grid: what to compare.
        device: ``cpu``, ``cuda`` or ``mps``.
        jobs: how many runs side by side; by default one, or with an executor all.
        executor: ``slurm`` or ``local``, for submitit; by default processes of this machine.
        options: ``KEY=VALUE`` for submitit's executor.

    Returns:
        The runs that failed.

    Raises:
        ValueError: something is wrong with the arguments, the data, or the runs of before; nothing was started.
        OSError: something is missing.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"The number of jobs must be at least 1, not {jobs}")
    if options and executor is None:
        raise ValueError(f"The options {', '.join(options)} are those of an executor; add --executor slurm")
    if device == "cuda" and executor != "slurm" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no CUDA GPU; add -device cpu, or -device mps on a Mac")
    submit = None if executor is None else _make_executor(executor, options, device)
    runs = plan_runs(grid)
    trainers = write_trainers(runs)
    waiting = [run for run in runs if not is_done(run)]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done before.", flush=True)
    start = _process_starter(device, jobs or 1) if submit is None else _job_starter(device, submit)
    failed = _run_all(runs, waiting, jobs or (1 if submit is None else len(runs)), start, device)
    if trainers is not None:
        add_trainer_folder(str(trainers))
        print("To predict with these trainings later, nnU-Net has to find their trainers:")
        print(f'export nnUNet_extTrainer="{os.environ["nnUNet_extTrainer"]}"')
    baseline = "" if grid.baseline == STOCK else f" --baseline {grid.baseline}"
    print(
        f"Compare the runs with: nnUNetv2_micd report -d {dataset_id(runs[0].dataset)} -c {grid.configuration} "
        f"-p {grid.plans}{baseline} -o OUTPUT_FOLDER"
    )
    return failed


def _process_starter(device: str, jobs: int) -> Callable[[Run, Sequence[_Started]], _Started]:
    gpus = _list_gpus() if device == "cuda" else []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    variables = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}

    def start(run: Run, active: Sequence[_Started]) -> _Started:
        used = [each.gpu for each in active if isinstance(each, _Process)]
        return _Process(run, device, variables, min(gpus, key=used.count) if gpus else None)

    return start


def _job_starter(device: str, executor: Any) -> Callable[[Run, Sequence[_Started]], _Started]:
    return lambda run, _: _Job(run, device, executor)


def _list_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def _make_executor(cluster: str, options: Sequence[str], device: str) -> Any:
    try:
        import submitit
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
        executor = submitit.AutoExecutor(folder=Path(str(nnUNet_results), "benchmark_jobs"), cluster=cluster)
        executor.update_parameters(**parameters)
    except Exception as error:  # of any kind, from an unknown option to a machine without Slurm
        raise ValueError(f"submitit cannot submit to {cluster}: {' '.join(str(error).split())}") from None
    return executor


def _run_all(
    runs: Sequence[Run],
    waiting: Sequence[Run],
    jobs: int,
    start: Callable[[Run, Sequence[_Started]], _Started],
    device: str,
) -> list[Run]:
    queue, active, failed = list(waiting), list[_Started](), list[Run]()
    begin = time.time()
    epochs = {run: _count_epochs(run, begin) for run in runs}
    with tqdm(
        total=sum(run.epochs for run in runs),
        initial=sum(epochs.values()),
        unit="epoch",
        smoothing=0,  # the remaining time by the mean, as methods differ in their speed
        mininterval=1 if sys.stderr.isatty() else 60,
        miniters=0,  # the time goes on where no epoch has ended
        disable=not waiting,
    ) as bar:
        try:
            while queue or active:
                while queue and len(active) < jobs:
                    active.append(start(queue.pop(0), active))
                time.sleep(POLL_SECONDS)
                for each in list(active):
                    epochs[each.run] = _count_epochs(each.run, begin)
                    ending = each.poll()
                    if ending is None:
                        continue
                    active.remove(each)
                    if ending:
                        failed.append(each.run)
                    tqdm.write(_tell(each, ending, device), file=sys.stdout)
                bar.set_description(f"{len(runs) - len(queue) - len(active)} of {len(runs)} runs", refresh=False)
                bar.update(sum(epochs.values()) - bar.n)
        finally:
            for each in active:
                each.stop()
    return failed


def _tell(ended: _Started, ending: str, device: str) -> str:
    """Return the line on a run that has ended; a killed one could not write itself that it failed."""
    if not ending:
        return f"done: {ended.run}"
    record = read_record(ended.run.folder)
    if record is not None and record["status"] == "running" and "killed" in ending:
        write_record(ended.run, "failed", device, error=ending)
    elif record is not None and record["status"] == "failed":
        ending = record["error"]
    return f"FAILED: {ended.run}: {ending}; see {ended.log}"


def _count_epochs(run: Run, since: float) -> int:
    """Return how many epochs of a run are finished, by nnU-Net's log of its training.

    Logs from before a time (seconds) do not count: what was interrupted goes on from a checkpoint of earlier, or anew.
    """
    if is_done(run):
        return run.epochs
    logs = sorted(run.folder.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    if not logs or logs[-1].stat().st_mtime < since:
        return 0
    with logs[-1].open("rb") as file:
        file.seek(max(0, logs[-1].stat().st_size - 65536))
        text = file.read().decode(errors="replace")
    begun = re.findall(r"Epoch (\d+) *$", text, re.MULTILINE)
    return run.epochs if "Training done." in text else int(begun[-1]) if begun else 0
