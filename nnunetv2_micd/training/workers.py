"""Explains why a process that loads patches has died."""

import signal
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any


def processes_of(loader: Any) -> list[BaseProcess]:
    """Return the running processes of a loader of batchgenerators; none if it works in the main process."""
    return list(getattr(loader, "_processes", ()))


def explain_death(processes: Mapping[str, Sequence[BaseProcess]], error: Exception) -> str | None:
    """Return which process was killed, or None. A process that fails by itself prints its error before it ends.

    Args:
        processes: Processes by what they load, such as "labeled images"; empty if not all have been started.
        error: Error with which the training ended.
    """
    if not processes and "background workers are no longer alive" in str(error):  # as batchgenerators says it
        return (
            "A worker process died when the first images were loaded; unless it has printed an error above, the system "
            "has killed it, most often because main memory was full: use fewer of them by a smaller nnUNet_n_proc_DA."
        )
    ended = [(loads, one.exitcode) for loads, ones in processes.items() for one in ones]
    killed = [(loads, code) for loads, code in ended if code is not None and code < 0]
    if not killed:
        return None
    # When one dies, batchgenerators terminates those that do not end at once: the first cause is another signal.
    loads, code = min(killed, key=lambda one: one[1] == -signal.SIGTERM)
    number = sum(map(len, processes.values()))
    unless = "unless a worker has printed an error above, " if code == -signal.SIGTERM else ""
    return (
        f"A worker process that loads {loads} was killed by signal {-code} ({signal.strsignal(-code)}), {unless}most "
        f"often by the system because main memory was full; continue with --c, and if it happens again use fewer of "
        f"them (there were {number}) by a smaller nnUNet_n_proc_DA."
    )
