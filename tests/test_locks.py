"""Locks between processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_micd.utils.locks import hold_lock

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
