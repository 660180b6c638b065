"""Commands that are killed at any moment and started again end with the files of one that was not killed.

``MICD_TEST_KILLS=30`` kills each command more often than the default, ``MICD_TEST_SEED=1`` at other moments; what
happened is printed, see it with ``pytest -s``.
"""

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
from helpers import MICD, Shell, TinyDataset, make_volume, write_image

from nnunetv2_micd.benchmark import launch, worker
from nnunetv2_micd.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes to kill"),
]

KILLS = int(os.environ.get("MICD_TEST_KILLS", 3))
SEED = int(os.environ.get("MICD_TEST_SEED", 0))
BASELINE = "nnUNetTrainerEMA_short"

FORK = multiprocessing.get_context("fork")
CONTEXT = multiprocessing.get_context("forkserver")
"""Starts commands in a process that has imported everything: most kills would hit the imports otherwise."""

PREPROCESS = ["preprocess", "-d", "901", "-np", "1"]
BENCHMARK = f"benchmark -d 901 -c 3d_fullres -tr {MICD} --baseline {BASELINE} -n 2 -device cpu --jobs 2".split()

IMPORTED = ["helpers", *(f"nnunetv2_micd.{name}" for name in ("cli.main", "benchmark", "report", "export"))]


def run(words: list[str], variables: Mapping[str, str], log: Path, has_begun: Any) -> None:
    """Run a command in a new group of processes."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(variables)
    launch.subprocess = SimpleNamespace(Popen=ForkedRun, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    has_begun.set()
    main(words)


class ForkedRun:
    """A run of a benchmark, in a copy of the process of the benchmark instead of a new one, which takes no imports."""

    def __init__(self, command: list[str], stdout: Any, env: Mapping[str, str], **_: Any):
        assert command[-1] == launch.WORKER
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(writing)
            self.work(reading, stdout, env)
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")

    def work(self, reading: int, stdout: Any, env: Mapping[str, str]) -> None:
        try:
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.environ.update(env)
            sys.stdin = os.fdopen(reading)
            multiprocessing.get_context = lambda _: FORK  # for the processes of nnU-Net
            worker.main()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def poll(self) -> int | None:
        return self.wait(os.WNOHANG)

    def wait(self, options: int = 0) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, options))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode


def content(path: Path) -> bytes:
    if path.suffix == ".b2nd":  # blosc2's threads write the blocks in any order
        return blosc2.open(str(path))[:].tobytes()
    return path.read_bytes()


def start(words: list[str], shell: Shell) -> BaseProcess:
    """Start a command, which adds what it prints to the log."""
    has_begun = CONTEXT.Event()
    process = CONTEXT.Process(target=run, args=(words, shell.environment, log_of(shell), has_begun))
    process.start()
    while not has_begun.wait(1):
        assert process.is_alive()
    return process


def succeed(words: list[str], shell: Shell) -> None:
    process = start(words, shell)
    process.join()
    assert process.exitcode == 0, log_of(shell).read_text()[-4000:]


def log_of(shell: Shell) -> Path:
    return shell.dataset.root.with_name("output.txt")


@dataclass
class Command:
    """A command that changes a folder, ``root``, of which ``before`` is a copy from before the command.

    Attributes:
        words: Words after the name of the program.
        shell: What runs it.
        further: Words of a command to run when this one has succeeded.
    """

    words: list[str]
    shell: Shell
    further: list[str] | None = None

    def __post_init__(self) -> None:
        self.root = self.shell.dataset.root
        self.before, self.log = self.root.with_name("before"), log_of(self.shell)
        shutil.rmtree(self.before, ignore_errors=True)
        shutil.copytree(self.root, self.before)

    def undo(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.before, self.root)
        self.log.unlink(missing_ok=True)

    def has_succeeded(self, process: BaseProcess) -> bool:
        process.join()
        if process.exitcode in (0, -signal.SIGKILL):
            return process.exitcode == 0
        error = self.log.read_text().splitlines()[-1]
        if self.words[0] == "benchmark" and " failed; the same command" in error:
            return False
        # An export that was killed after its last deed is there, and no other takes its place.
        assert self.words[0] == "export", self.log.read_text()[-4000:]
        assert "is not an empty folder" in error, error
        return True

    def finish(self) -> None:
        if self.further is not None:
            succeed(self.further, self.shell)

    def files(self) -> dict[str, str]:
        """Return a hash of each file.

        Left out are the logs, one for each start and named by the time, and the pictures of an epoch, which are drawn
        after its checkpoint, as drawing is no part of the training; a training that is killed in between lacks them.
        """
        return {
            str(path.relative_to(self.root)): hashlib.sha256(content(path)).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.match("training_log_*.txt") and path.parent.name != "unlabeled_patches"
        }


Killer = Callable[[BaseProcess, np.random.Generator, float], list[str]]
"""Kills what it likes of a running command that takes so many seconds; returns what it has killed."""


def kill_command(process: BaseProcess, generator: np.random.Generator, duration: float) -> list[str]:
    process.join(generator.uniform(0, duration))
    if not process.is_alive():
        return []
    os.killpg(process.pid, signal.SIGKILL)
    return ["the command"]


def kill_anything(process: BaseProcess, generator: np.random.Generator, duration: float) -> list[str]:
    """Kill now one of the runs that a benchmark has started, now the benchmark itself."""
    killed = []
    while True:
        process.join(generator.uniform(0, duration / 2))
        if not process.is_alive():
            return killed
        runs = list_children(process.pid)
        victim = int(generator.choice([process.pid, *runs, *runs]))
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            killed.append("a run" if victim in runs else "the command")


def list_children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def check(command: Command, kill: Killer = kill_command) -> None:
    """Kill a command again and again; compare whenever it has succeeded."""
    uninterrupted = []
    for _ in range(2):
        command.undo()
        process, begin = start(command.words, command.shell), time.monotonic()
        assert command.has_succeeded(process)
        duration = time.monotonic() - begin
        command.finish()
        uninterrupted.append(command.files())
    expected, other = uninterrupted
    assert expected.keys() == other.keys()
    repeatable = {name for name, content in expected.items() if other[name] == content}
    assert len(repeatable) > len(expected) / 2, expected.keys() - repeatable
    generator = np.random.default_rng(SEED)
    killed, compared = [], 0
    while len(killed) < KILLS or compared == 0:
        command.undo()
        is_done = False
        while not is_done:
            process = start(command.words, command.shell)
            if len(killed) < KILLS:
                killed += kill(process, generator, duration)
            is_done = command.has_succeeded(process)
        command.finish()
        files = command.files()
        assert files.keys() == expected.keys(), files.keys() ^ expected.keys()
        assert [name for name in repeatable if files[name] != expected[name]] == []
        compared += 1
    print(
        f"{command.words[0]}: {duration:.1f} s; killed {dict(Counter(killed))}; ended {compared} times with the "
        f"{len(expected)} files as uninterrupted, {len(repeatable)} of them compared by content"
    )
    command.undo()


@pytest.fixture(scope="module")
def shell(dataset_template: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Return nnU-Net's variables for a copy of the tiny dataset that has more unlabeled images."""
    dataset = TinyDataset(tmp_path_factory.mktemp("kills") / "nnunet")
    shutil.copytree(dataset_template.root, dataset.root)
    shutil.rmtree(dataset.unlabeled_folder("2d"))
    shutil.rmtree(dataset.unlabeled_folder("3d_fullres"))
    for seed in range(6):
        write_image(dataset.images / f"more_{seed}_0000.nii.gz", make_volume(200 + seed, (20, 24, 28))[0])
    with pytest.MonkeyPatch.context() as monkeypatch:
        dataset.set_environment(monkeypatch)
        monkeypatch.setenv("nnUNet_def_n_proc", "1")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the process that imports finds it
        CONTEXT.set_forkserver_preload(IMPORTED)
        yield Shell(dataset)


@pytest.fixture(scope="module")
def preprocessed(shell: Shell) -> Shell:
    succeed(PREPROCESS, shell)
    return shell


@pytest.fixture(scope="module")
def trained(preprocessed: Shell) -> Shell:
    succeed(BENCHMARK, preprocessed)
    return preprocessed


def test_preprocess(shell: Shell) -> None:
    check(Command(PREPROCESS, shell))


def test_benchmark(preprocessed: Shell) -> None:
    check(Command(BENCHMARK, preprocessed))


def test_queue(preprocessed: Shell) -> None:
    """Runs are killed as well, and the report of what is there in the end is the same."""
    benchmark = [*BENCHMARK, "--seeds", "0", "1"]
    check(Command(benchmark, preprocessed, report_into(preprocessed.dataset)), kill_anything)


def test_report(trained: Shell) -> None:
    check(Command(report_into(trained.dataset), trained))


def report_into(dataset: TinyDataset) -> list[str]:
    return f"report -d 901 -o {dataset.root / 'report'} --baseline {BASELINE}".split()


def test_export(trained: Shell) -> None:
    dataset = trained.dataset
    folds = dataset.results / dataset.name / f"{MICD}__nnUNetPlans__3d_fullres"
    for fold in (0, 1, 3, 4):
        shutil.copytree(folds / "fold_2", folds / f"fold_{fold}")
    options = f"-d 901 -c 3d_fullres -tr {MICD} -f 0 1 2 3 4 --network b"
    check(Command(f"export {options} -o {dataset.root / 'model'}".split(), trained))
