"""What to say when a process that loads patches dies."""

import signal
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any


def processes_of(loader: Any) -> list[BaseProcess]:
    """Return the running processes of one of batchgenerators' loaders, none if it works in the main process."""
    return list(getattr(loader, "_processes", ()))


def explain_death(processes: Mapping[str, Sequence[BaseProcess]]) -> str | None:
    """Say which process was killed, if one was; one that fails by itself prints its error before it ends.

    Args:
        processes: by what they load, as in "labeled training images".
    """
    ended = [(loads, one.exitcode) for loads, ones in processes.items() for one in ones]
    killed = [(loads, code) for loads, code in ended if code is not None and code < 0]
    if not killed:
        return None
    # When one dies, batchgenerators terminates those that do not end at once: the first cause is another signal.
    loads, code = min(killed, key=lambda one: one[1] == -signal.SIGTERM)
    number = sum(map(len, processes.values()))
    return (
        f"A worker process that loads {loads} was killed by signal {-code} ({signal.strsignal(-code)}), most often by "
        f"the system because main memory was full; continue with --c, and if it happens again use fewer of them (there "
        f"were {number}) by a smaller nnUNet_n_proc_DA."
    )
