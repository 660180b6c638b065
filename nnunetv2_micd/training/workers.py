"""The processes that load patches: how many load unlabeled ones, and why one has died."""

import signal
from collections.abc import Mapping, Sequence
from math import ceil
from multiprocessing.process import BaseProcess
from typing import Any


def workers_for_unlabeled(workers: int, labeled: float, unlabeled: float) -> int:
    """Return how many of the workers load unlabeled patches: in proportion to time, at least one of two, at most half.

    Args:
        workers: Number of all workers.
        labeled: Time that the labeled patches of a step take, in any unit.
        unlabeled: Time of the unlabeled ones, above 0.
    """
    return min(workers // 2, ceil(workers * unlabeled / (labeled + unlabeled)))


def processes_of(loader: Any) -> list[BaseProcess]:
    """Return the running processes of a loader of batchgenerators; none if it works in the main process."""
    return list(getattr(loader, "_processes", ()))


def explain_death(processes: Mapping[str, Sequence[BaseProcess]], error: Exception) -> str | None:
    """Return a message if a process was killed. A process that fails by itself has printed its error already.

    Args:
        processes: Processes by what they load, such as "labeled images"; empty if not all have been started.
        error: Error with which the training ended.

    Returns:
        What was killed and what to do, or None if no process was killed.
    """
    if not processes and "background workers are no longer alive" in str(error):  # as batchgenerators says it
        return (
            "A worker process died when the first images were loaded; unless it has printed an error above, the system "
            "has killed it, most often because main memory was full: use fewer of them by a smaller nnUNet_n_proc_DA."
        )
    exit_codes = [(loads, worker.exitcode) for loads, workers in processes.items() for worker in workers]
    killed = [(loads, code) for loads, code in exit_codes if code is not None and code < 0]
    if not killed:
        return None
    # After one death batchgenerators itself terminates the other workers: any other signal than SIGTERM is the cause.
    loads, code = min(killed, key=lambda worker: worker[1] == -signal.SIGTERM)
    number = sum(map(len, processes.values()))
    unless = "unless a worker has printed an error above, " if code == -signal.SIGTERM else ""
    return (
        f"A worker process that loads {loads} was killed by signal {-code} ({signal.strsignal(-code)}), {unless}most "
        f"often by the system because main memory was full; continue with --c, and if it happens again use fewer of "
        f"them (there were {number}) by a smaller nnUNet_n_proc_DA."
    )
