"""Benchmarks whose runs are jobs of a Slurm that the test starts: killed, canceled, left alone, queued again."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import Shell, TinyDataset

from nnunetv2_micd.benchmark.jobs import JOB_NUMBER

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DAEMONS = "/usr/sbin"
"""Where Debian has Slurm's daemons, which is not in the path of every user."""

TRAINER = "nnUNetTrainer_short"
COMMAND = (
    f"nnUNetv2_micd benchmark -d 901 -c 3d_fullres -n 2 -tr {TRAINER} --baseline {TRAINER} -device cpu --executor slurm"
)

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def shell(dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Return a shell beside a Slurm of one node, without accounts, which ends with the test."""
    path = f"{os.environ['PATH']}{os.pathsep}{DAEMONS}"
    for name in ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel"):
        if shutil.which(name, path=path) is None:
            pytest.skip(f"Slurm is not installed ({name})")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = free_ports(2)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            folder=folder,
            controller_port=ports[0],
            node_port=ports[1],
        )
    )
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    with ExitStack() as stack:
        stack.enter_context(daemon("slurmctld", folder))
        # A name of Slurm 23.11 and newer, and what older ones take where no control groups are to be used.
        for plugin in ("disabled", "cgroup/v1"):
            (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
            node = stack.enter_context(daemon("slurmd", folder))
            wait_until(lambda process=node: process.poll() is not None or run("sinfo -h -o %T") == "idle", 30)
            if node.poll() is None:
                break
        if run("sinfo -h -o %T") != "idle":
            pytest.skip(f"Slurm does not start here: {(folder / 'slurmd.out').read_text()[-1000:]}")
        try:
            yield Shell(dataset)
        finally:
            run("scancel --me --signal=KILL --full")
            run("scancel --me")
            wait_until(lambda: not run("squeue --me -h"), 60)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def daemon(name: str, folder: Path) -> Iterator[subprocess.Popen]:
    with (folder / f"{name}.out").open("w") as output:
        process = subprocess.Popen([name, "-D"], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def run(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True).stdout.strip()


def wait_until(happened: Callable[[], Any], seconds: float = 300) -> bool:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def take_interrupts() -> None:
    """Undo what shells do to processes in the background, of which the tests may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Benchmark:
    """The command while it runs. Its training waits in the second epoch for as long as there is `hold`."""

    def __init__(self, shell: Shell, folder: Path, **environment: str):
        self.dataset, self.hold, self.output = shell.dataset, folder / "hold", folder / "output.txt"
        self.hold.touch()
        name, *words = COMMAND.split()
        command = [Path(sys.executable).parent / name, *words]
        with self.output.open("w") as output:
            variables = shell.environment | environment | {"HOLD": str(self.hold)}
            self.process = subprocess.Popen(
                command, env=variables, stdout=output, stderr=output, preexec_fn=take_interrupts
            )

    def wait_for_training(self, count: int = 1) -> str:
        """Wait until the second epoch of so many trainings has begun; return the number of the job."""
        assert wait_until(lambda: sum("Epoch 1 " in log for log in logs(self.dataset)) == count or self.has_ended())
        assert not self.has_ended(), self.output.read_text()
        return (run_folder(self.dataset) / JOB_NUMBER).read_text()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def finish(self) -> str:
        """Wait for the end; return what the command printed."""
        self.process.wait(300)
        return self.output.read_text()


@pytest.fixture
def start(shell: Shell, tmp_path: Path) -> Iterator[Callable[..., Benchmark]]:
    """Return what starts the command; what still runs after the test is killed."""
    started = []

    def call(**environment: str) -> Benchmark:
        started.append(Benchmark(shell, tmp_path, **environment))
        return started[-1]

    yield call
    for benchmark in started:
        benchmark.process.kill()
        benchmark.process.wait()


def run_folder(dataset: TinyDataset) -> Path:
    return dataset.results / dataset.name / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_2"


def record(dataset: TinyDataset) -> dict[str, Any]:
    return json.loads((run_folder(dataset) / "benchmark.json").read_text())


def logs(dataset: TinyDataset) -> list[str]:
    """Return nnU-Net's logs of the trainings, the oldest first."""
    return [path.read_text() for path in sorted(run_folder(dataset).glob("training_log_*.txt"))]


def test_refused_and_killed_jobs(shell: Shell) -> None:
    output = shell(f"{COMMAND} --executor-options slurm_partition=nowhere", code=1)
    assert "was refused (sbatch: error: invalid partition specified: nowhere" in output
    assert "change --executor-options" in output
    options = 'slurm_partition=main timeout_min=20 mem_gb=1.5 slurm_setup=["true"]'
    output = shell(f"{COMMAND} --executor-options {options}", code=1, KILL_IN="step")
    number = (run_folder(shell.dataset) / JOB_NUMBER).read_text()
    error = f"it was killed; its job {number} is FAILED in Slurm"
    assert f"FAILED: {TRAINER}, 2 labeled, seed 0, 3 epochs: {error}; see " in output
    assert "sacct" not in output
    assert (record(shell.dataset)["status"], record(shell.dataset)["error"]) == ("failed", error)
    submission = (shell.dataset.results / "benchmark_jobs" / f"{number}_submission.sh").read_text()
    for line in ("--partition=main", "--time=20", "--mem=1536MB", f"--job-name={TRAINER}_fold_2", "\ntrue\n"):
        assert line in submission
    assert "done: " in shell(COMMAND)
    assert record(shell.dataset)["status"] == "done"
    assert "Epoch 0 " not in logs(shell.dataset)[-1]


def test_canceled_jobs_and_commands_go_on_when_called_again(shell: Shell, start: Callable[..., Benchmark]) -> None:
    benchmark = start()
    number = benchmark.wait_for_training()
    run(f"scancel {number}")
    assert f"its job {number} is CANCELLED in Slurm" in benchmark.finish()
    assert benchmark.process.returncode == 1
    assert record(shell.dataset)["status"] == "failed"

    benchmark = start()
    benchmark.wait_for_training(2)
    benchmark.process.send_signal(signal.SIGINT)
    benchmark.finish()
    assert wait_until(lambda: not run("squeue --me -h"))  # nobody waits for its jobs

    assert "done: " in shell(COMMAND)
    assert ["Epoch 0 " in log for log in logs(shell.dataset)] == [True, False, False]


def test_jobs_outlive_the_command_and_are_queued_again_when_their_time_is_over(
    shell: Shell, start: Callable[..., Benchmark]
) -> None:
    benchmark = start(nnUNet_n_proc_DA="2")  # the workers get the signal as well
    number = benchmark.wait_for_training()
    benchmark.process.send_signal(signal.SIGKILL)
    benchmark.process.wait()
    benchmark = start()
    assert wait_until(lambda: f"job {number} of an earlier call goes on" in benchmark.output.read_text())
    run(f"scancel --signal=USR2 {number}")  # as Slurm does before the end of the time
    assert benchmark.wait_for_training(2) == number
    benchmark.hold.unlink()
    assert "done: " in benchmark.finish()
    assert benchmark.process.returncode == 0
    assert record(shell.dataset)["status"] == "done"
    assert ["Epoch 0 " in log for log in logs(shell.dataset)] == [True, False]
