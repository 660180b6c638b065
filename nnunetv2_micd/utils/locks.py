"""Locks between processes: for a moment around a file that is read and rewritten, or for as long as a command works."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

SHORT_WAIT = 60
"""Seconds to wait for a lock that others hold for a moment."""


@contextmanager
def hold_lock(file: str | os.PathLike[str], activity: str, wait: float = SHORT_WAIT) -> Iterator[None]:
    """Hold a lock during the block. It ends with the process, however that ends; its empty file stays.

    Args:
        file: File of the lock, in an existing folder.
        activity: What the holder does, to complete "Another process is already ...".
        wait: Seconds to wait for another process; a negative number for as long as it takes.

    Raises:
        BlockingIOError: Another process still holds the lock after that time.
        OSError: The file cannot be written.

    Examples:
        >>> with hold_lock("splits_final.json.lock", "writing splits_final.json"):  # doctest: +SKIP
        ...     pass
    """
    with open(file, "ab"):  # where no file can be made, filelock would wait for one
        pass
    lock = filelock.FileLock(file, timeout=wait)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(
            f"Another process is already {activity}; wait for it to finish or stop it (it holds {Path(file)})"
        ) from None
    try:
        yield
    finally:
        lock.release()
