"""Locks between processes: for a moment around a file that is read and rewritten, or for as long as a command works."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from nnunetv2_micd.utils.files import atomic_folder

SHORT_WAIT = 60
"""Seconds to wait for a lock that others hold for a moment."""

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of file systems without locks: Lustre without the option flock, NFS without a lock daemon, and others."""


@contextmanager
def hold_lock(file: str | os.PathLike[str], activity: str, wait: float = SHORT_WAIT) -> Iterator[None]:
    """Hold a lock during the block. It ends with the process, however that ends; its empty file stays.

    On a file system without locks there is a warning instead.

    Args:
        file: File of the lock, in an existing folder.
        activity: What the holder does, to complete "Another process is already ...".
        wait: Seconds to wait for another process; a negative number for as long as it takes.

    Raises:
        BlockingIOError: Another process still holds the lock after that time.
        OSError: The file cannot be written.
    """
    with open(file, "ab"):  # where no file can be made, filelock would wait for one
        pass
    # A lock by the file's existence would stay when its process is killed.
    lock = filelock.FileLock(file, timeout=wait, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(
            f"Another process is already {activity}; wait for it to finish or stop it (it holds {Path(file)})"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        text = (
            f"The file system of {Path(file).parent} has no locks ({error.strerror}); do not start the same work twice"
        )
        warnings.warn(text, stacklevel=3)
    try:
        yield
    finally:
        lock.release()  # does nothing where there is none


@contextmanager
def new_folder(target: Path, activity: str) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` at the end of the block; nobody else makes it meanwhile.

    Args:
        target: Folder to make, an absolute path. It may be there already, if it is empty.
        activity: See `hold_lock`.

    Raises:
        BlockingIOError: Another process is making it.
        FileExistsError: It exists and is not an empty folder.
        PermissionError: It cannot be made or replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_replaceable(target)
    lock = target.with_name(f".{target.name}.lock")
    with hold_lock(lock, activity, wait=0):
        try:  # also before anything is refused, for a killed process may have left the lock
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise FileExistsError(f"{target} exists and is not an empty folder; name another with -o")
            with atomic_folder(target) as incomplete:
                yield incomplete
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                lock.unlink()  # nobody waits for it


def _check_replaceable(target: Path) -> None:
    """Raise a ``PermissionError`` for a folder that cannot be made, or moved to where another is."""
    if target == Path.cwd():
        reason = "is the current folder, which cannot be replaced"
    elif os.path.ismount(target):
        reason = "is where a disk is mounted, which cannot be replaced"
    elif not os.access(target.parent, os.W_OK):
        reason = f"cannot be made, as nothing may be written into {target.parent}"
    else:
        return
    advice = f"a folder inside it: -o {target / 'NEW'}" if os.access(target, os.W_OK) else "another with -o"
    raise PermissionError(f"{target} {reason}; name {advice}")
