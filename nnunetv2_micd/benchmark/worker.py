"""The process of one run, started with ``python -m nnunetv2_micd.benchmark.worker``.

The first line of its standard input says what to do, see :class:`launch.LocalProcess`. The pipe then stays open until
the benchmark ends. However that happens, this process sees the end of the pipe and ends as well.
"""

import json
import os
import signal
import sys
import threading

from nnunetv2_micd.benchmark.records import Run
from nnunetv2_micd.benchmark.run import BUSY_CODE, execute


def main() -> None:
    """Do the run in the first line of the standard input."""
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        execute(Run.from_json(task.pop("run")), **task)
    except BlockingIOError as error:
        print(error, file=sys.stderr)
        sys.exit(BUSY_CODE)


def _end_with(pipe: int) -> None:
    """End this process and its workers as soon as the process at the other end of the pipe has ended."""
    while os.read(pipe, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
