"""Locks between processes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_micd.utils.locks import hold_lock, new_folder

TAKE_LOCK_AND_DIE = """
import os, signal, sys, time
from nnunetv2_micd.utils.locks import hold_lock
with hold_lock(sys.argv[1], "working"):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no forks")
def test_a_lock_ends_with_its_process_though_workers_live_on(tmp_path: Path) -> None:
    """Workers that load patches are forked, and outlive a training of which only the main process is killed."""
    command = [sys.executable, "-c", TAKE_LOCK_AND_DIE, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            assert process.wait() == -signal.SIGKILL
            with hold_lock(tmp_path / "lock", "working", wait=30):  # the worker may need a moment to let go
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre without the option flock, or NFS without a lock daemon; nnU-Net itself trains there."""

    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    done = []
    for attempt in range(2):  # the file of the first is no lock for the second
        with pytest.warns(UserWarning, match="has no locks"), hold_lock(tmp_path / "lock", "working", wait=0):
            done.append(attempt)
    assert done == [0, 1]


def test_another_error_of_a_lock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), hold_lock(tmp_path / "lock", "working", wait=0):
        pass


@pytest.mark.parametrize("kind", ["current", "mounted", "read-only"])
def test_a_folder_that_cannot_be_replaced_is_refused_before_any_work(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "output"
    target.mkdir()
    if kind == "current":
        monkeypatch.chdir(target)
    elif kind == "mounted":
        monkeypatch.setattr("os.path.ismount", lambda path: path == target)
    else:
        monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with (
        pytest.raises(PermissionError, match=r"output .*; name a folder inside it: -o \S*output/NEW$"),
        new_folder(target, "working"),
    ):
        pytest.fail("the work has begun")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    if kind != "read-only":
        with new_folder(target / "NEW", "working") as folder:
            (folder / "result").touch()
        assert (target / "NEW" / "result").is_file()
