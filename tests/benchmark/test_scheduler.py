"""The scheduler of a benchmark: runs side by side, failures, GPUs in turn, progress."""

import io
import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import TinyDataset

from nnunetv2_micd.benchmark import Grid, jobs, launch, run_benchmark, scheduler, worker
from nnunetv2_micd.benchmark import run as run_module
from nnunetv2_micd.benchmark.plan import plan_runs
from nnunetv2_micd.benchmark.records import Record, Result, write_record
from nnunetv2_micd.benchmark.run import lock_folder
from nnunetv2_micd.benchmark.run_folder import check_same, is_done
from nnunetv2_micd.training.registry import GENERATED_FOLDER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jobs": 0}, "The number of jobs must be at least 1"),
        ({"options": ["a=b"]}, "add --executor"),
        ({"executor": "slurm"}, "submitit|Slurm does not answer"),
        ({"executor": "slurm", "options": ["colour=red"]}, "submitit cannot submit to Slurm: .*colour|not installed"),
        ({"executor": "slurm", "options": ["timeout_min"]}, 'must be like "slurm_partition=gpu"|not installed'),
        ({"device": "cuda"}, "add -device cpu"),
    ],
)
def test_bad_arguments_are_refused(
    grid: Grid, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "options" in arguments:  # submitit looks for Slurm first
        (tmp_path / "srun").touch(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run_benchmark(grid, **{"device": "cpu", **arguments})


def test_submitit_is_named_where_it_is_missing(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r'pip install "\.\[cluster\]"'):
        run_benchmark(grid, "cpu", executor="slurm")


class Instant:
    """A run that ends as its seed says."""

    most = 0
    goes_on = False

    def __init__(self, run: Any, active: list[Any]):
        self.run, self.log = run, run.folder / "benchmark.log"
        Instant.most = max(Instant.most, len(active) + 1)
        write_record(run, Result.start(run, "cpu"))

    def poll(self) -> str:
        if self.run.seed == 0:
            return "it was killed (signal 9)"
        write_record(self.run, Result.start(self.run, "cpu").done())
        return ""

    def stop(self) -> None:
        raise AssertionError


def test_a_failed_run_does_not_stop_the_others(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(scheduler, "process_starter", lambda *_: Instant)
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)
    grid = replace(grid, budgets=["1"], seeds=[0, 3])
    failed = run_benchmark(grid, "cpu", jobs=3)
    assert [(run.trainer, run.seed) for run in failed] == [("nnUNetTrainer", 0), ("nnUNetTrainerMICD", 0)]
    assert json.loads((failed[0].folder / "benchmark.json").read_text())["error"] == "it was killed (signal 9)"
    printed = capsys.readouterr().out
    assert (
        f"FAILED: nnUNetTrainer, 1 labeled, seed 0, 2 epochs: it was killed (signal 9); see {failed[0].folder}"
        in printed
    )
    generated = dataset.results / GENERATED_FOLDER
    (variable,) = re.findall('export nnUNet_extTrainer="(.*)"', printed)
    assert {f"{generated / run.trainer_class}" for run in failed} <= set(variable.split(os.pathsep))
    assert "nnUNetv2_micd report -d 901 -c 3d_fullres -p nnUNetPlans -o OUTPUT_FOLDER" in printed
    assert Instant.most == 3
    run_benchmark(grid, "cpu", jobs=3)
    assert "4 runs, 2 of them done before." in capsys.readouterr().out


def test_a_run_that_cannot_start_does_not_stop_those_that_run(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Busy(Instant):
        def __init__(self, run: Any, active: list[Any]):
            if run.trainer == "nnUNetTrainerMICD":
                raise ValueError("the cluster is busy")
            super().__init__(run, active)

    monkeypatch.setattr(scheduler, "process_starter", lambda *_: Busy)
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)
    grid = replace(grid, budgets=["1"], seeds=[3])
    failed = run_benchmark(grid, "cpu", jobs=2)
    assert [run.trainer for run in failed] == ["nnUNetTrainerMICD"]
    printed = capsys.readouterr().out
    assert "FAILED: nnUNetTrainerMICD, 1 labeled, seed 3, 2 epochs: the cluster is busy" in printed
    assert "done: nnUNetTrainer, 1 labeled, seed 3, 2 epochs" in printed
    with pytest.raises(ValueError, match="the cluster is busy"):  # nothing runs that could be lost
        run_benchmark(grid, "cpu", jobs=2)


@pytest.mark.parametrize(("error", "stopped"), [(OSError, [1]), (KeyboardInterrupt, [0, 1])])
def test_only_the_user_cancels_jobs(
    error: type[BaseException], stopped: list[int], grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a full disk, or a terminal that is gone."""
    ended = []

    class Job:
        def __init__(self, run: Any, active: list[Any]):
            self.run, self.log, self.goes_on = run, run.folder / "benchmark.log", not active
            self.number = len(active)

        def poll(self) -> str:
            raise error

        def stop(self) -> None:
            ended.append(self.number)

    monkeypatch.setattr(scheduler, "process_starter", lambda *_: Job)
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)
    with pytest.raises(error):
        run_benchmark(replace(grid, budgets=["1"], seeds=[3]), "cpu", jobs=2)
    assert ended == stopped


def test_a_run_of_another_process_is_waited_for(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(scheduler, "process_starter", lambda *_: Instant)
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)
    grid = replace(grid, budgets=["1"], seeds=[3])
    first = plan_runs(grid)[0]
    with ExitStack() as lock:
        lock.enter_context(lock_folder(first.folder))

        def is_locked(run: Any) -> bool:
            if run == first and not Instant.most:
                return True  # while the other run has not ended
            if run == first:
                write_record(first, Result.start(first, "cpu").done())
                lock.close()
            return run_module.is_locked(run)

        monkeypatch.setattr(Instant, "most", 0)
        monkeypatch.setattr(scheduler, "is_locked", is_locked)
        assert run_module.is_locked(first)
        assert run_benchmark(grid, "cpu", jobs=1) == []
    printed = capsys.readouterr().out
    assert "done by another process: nnUNetTrainer, 1 labeled, seed 3" in printed
    assert "done: nnUNetTrainerMICD, 1 labeled, seed 3" in printed


def test_a_killed_run_whose_workers_still_hold_its_lock_has_failed(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "process_starter", lambda *_: Instant)
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)
    monkeypatch.setattr(Instant, "most", 0)
    monkeypatch.setattr(scheduler, "is_locked", lambda _: Instant.most > 0)
    grid = replace(grid, budgets=["1"], seeds=[0], trainers=["nnUNetTrainer"])
    assert len(run_benchmark(grid, "cpu")) == 1


def test_the_process_of_a_run_gives_way_to_another(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "LOCK_SECONDS", 0)
    run = plan_runs(grid)[0]
    line = json.dumps({"run": run.to_json(), "device": "cpu", "trainer_folders": []}).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(line + b"\n"), fileno=lambda: None))
    monkeypatch.setattr(worker, "_end_with", lambda _: None)
    with lock_folder(run.folder), pytest.raises(SystemExit) as end:
        worker.main()
    ended = object.__new__(launch.LocalProcess)
    ended._process = SimpleNamespace(poll=lambda: end.value.code)  # type: ignore[assignment]
    assert str(ended.poll()).startswith("BlockingIOError")


def test_another_benchmark_was_faster(grid: Grid) -> None:
    """Both have planned a run before either has begun it."""
    run = plan_runs(grid)[0]
    other = replace(run, num_unlabeled=run.num_unlabeled + 1)
    write_record(other, Result.start(other, "cpu").done())
    for action in (lambda: run_module.execute(run, "cpu", []), lambda: is_done(run)):
        with pytest.raises(ValueError, match="was made with num_unlabeled"):
            action()


def test_settings_that_came_with_a_version(grid: Grid) -> None:
    run = plan_runs(grid)[-1]
    half = Result.start(run, "cpu")
    before, now = replace(run, config='{"ramp_peak": 0.1}'), replace(run, config='{"ramp_peak": 0.1, "new": 1}')
    check_same(now, Record(before, half.done()))
    with pytest.raises(ValueError, match="was made with config new None, not 1"):
        check_same(now, Record(before, half))
    with pytest.raises(ValueError, match="was made with config new None, not 1"):
        check_same(replace(now, is_tuning=True), Record(replace(before, is_tuning=True), half.done()))
    long = "/data/" + 20 * "folder/"
    with pytest.raises(ValueError, match=r"config path \.\.\..*/old, not \.\.\..*/new; move"):
        check_same(
            replace(run, config=json.dumps({"path": long + "new"})),
            Record(replace(run, config=json.dumps({"path": long + "old"})), half),
        )
    with pytest.raises(ValueError, match=r"not \.\.\..*/_2; move"):
        check_same(replace(run, test_images=long + "_2"), Record(replace(run, test_images=long), half))


def test_a_run_that_another_process_began_at_the_same_time(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its process finds the lock after half a minute, and ends."""
    states = iter([False, True, True, False])  # before the start, after its end, and when it is asked about again

    class Late(Instant):
        def poll(self) -> str:
            return "BlockingIOError: another process works on it"

    def is_locked(run: Any) -> bool:
        is_held = next(states)
        if not is_held and Instant.most:
            write_record(run, Result.start(run, "cpu").done())
        return is_held

    monkeypatch.setattr(Instant, "most", 0)
    monkeypatch.setattr(scheduler, "is_locked", is_locked)
    monkeypatch.setattr(scheduler, "process_starter", lambda *_: Late)
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0)
    assert run_benchmark(replace(grid, budgets=["1"], seeds=[3], trainers=["nnUNetTrainer"]), "cpu") == []
    printed = capsys.readouterr().out
    assert printed.count("waits, as another process works on it: nnUNetTrainer, 1 labeled") == 1
    assert "done by another process: nnUNetTrainer, 1 labeled" in printed


def test_gpus_are_used_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Recorded(launch.LocalProcess):
        def __init__(self, run: Any, task: Any, variables: Any, gpu: str | None):
            self.gpu = gpu
            started.append(gpu)

    monkeypatch.setattr(launch, "LocalProcess", Recorded)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    run: Any = SimpleNamespace()
    start = launch.process_starter("cuda", 3, lambda run: {})
    active = [start(run, [])]
    active.append(start(run, active))
    active.append(start(run, active))
    start(run, active[1:])
    assert started == ["4", "6", "4", "4"]


def test_a_run_is_worked_on_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2_micd.benchmark.run.LOCK_SECONDS", 0)
    with (
        lock_folder(tmp_path),
        pytest.raises(BlockingIOError, match=r"Another process is already working on .*wait for it to finish or stop"),
        lock_folder(tmp_path),
    ):
        pass
    with lock_folder(tmp_path):
        pass


KILLED_WITH_A_WORKER = """
import os, signal, time
worker = os.fork()
if worker == 0:
    time.sleep(60)
print(worker, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the state of a process is read from /proc")
def test_the_workers_of_a_killed_run_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = object.__new__(launch.LocalProcess)
    command = [sys.executable, "-c", KILLED_WITH_A_WORKER]
    started._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert started._process.stdout is not None
    worker = Path("/proc", started._process.stdout.readline().decode().strip(), "stat")
    started._process.wait()
    assert started.poll() == "it was killed (signal 9)"
    for _ in range(100):
        if (
            not worker.exists() or worker.read_text().split(")")[1].split()[0] == "Z"
        ):  # ended, perhaps not yet collected
            return
        time.sleep(0.05)
    raise AssertionError("the worker is still alive")


def job_of_slurm(states: dict[str, str], tmp_path: Path) -> jobs.SlurmJob:
    paths = SimpleNamespace(stderr=tmp_path / "7_log.err", result_pickle=tmp_path / "7_result.pkl")
    job = SimpleNamespace(job_id="7", paths=paths, done=lambda: True, exception=lambda: None)
    queue: Any = SimpleNamespace(state=lambda number: states.get(number, jobs.FORGOTTEN))
    run: Any = SimpleNamespace()
    return jobs.SlurmJob(run, job, queue)


@pytest.mark.parametrize("end", ["CANCELLED", "OUT_OF_MEMORY", jobs.FORGOTTEN])
def test_a_job_that_ends_without_a_result_was_killed(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"7": "RUNNING"}
    job = job_of_slurm(states, tmp_path)
    assert job.poll() is None
    states["7"] = end
    assert job.poll() is None  # the result may still come
    monkeypatch.setattr(jobs, "RESULT_SECONDS", 0)
    states["7"] = "PENDING"  # Slurm has queued it again
    assert job.poll() is None
    states["7"] = end
    assert job.poll() == f"it was killed; its job 7 is {end} in Slurm"
    job.log.with_name("7_result.pkl").touch()
    assert job.poll() == ""


def test_slurm_that_does_not_answer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> dict[str, str]:
        raise ValueError("Slurm does not answer")

    monkeypatch.setattr(jobs, "QUEUE_SECONDS", -1)
    monkeypatch.setattr(jobs, "_ask_squeue", lambda: {"7": "RUNNING", "8": "COMPLETING"})
    queue = jobs.Queue()
    queue.add("9")
    monkeypatch.setattr(jobs, "_ask_squeue", refuse)
    assert [queue.is_ahead(number) for number in ("7", "8", "9", "")] == [True, False, True, False]
    with pytest.raises(ValueError, match="Slurm does not answer"):
        jobs.Queue()


def test_the_last_line_of_a_failed_job_is_its_error() -> None:
    rule = "-" * 22
    trace = f"Job (task=0) failed with trace:\n{rule}\nTraceback\n  File\nOSError: full\n\n{rule}\nYou can check"
    assert jobs._last_line(trace) == "OSError: full"
    assert jobs._last_line("Job 7 has not produced any output") == "Job 7 has not produced any output"


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ((), True),
        (("slurm_partition=gpu", "timeout_min=1440", "cpus_per_task=12", "mem_gb=32"), True),  # the documented command
        (("slurm_cpus_per_gpu=8", 'slurm_setup=["module load gpu"]'), True),
        (('slurm_additional_parameters={"partition": "gpu"}',), True),
        (("gpus_per_node=2",), False),
        (("slurm_gres=gpu:a100:1",), False),
        (("slurm_gpus_per_task=1",), False),
        (("slurm_num_gpus=1",), False),
        (('slurm_additional_parameters={"gpus": 1}',), False),
    ],
)
def test_a_job_on_cuda_asks_for_a_gpu_unless_an_option_does(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], asks: bool
) -> None:
    submitit = pytest.importorskip("submitit")
    given: dict[str, Any] = {}

    class Executor:
        def __init__(self, **_: Any):
            pass

        def update_parameters(self, **parameters: Any) -> None:
            given.update(parameters)

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(jobs, "results_root", Path)
    jobs.make_executor(options, "cuda")
    assert (given.get("gpus_per_node") == 1) == asks
