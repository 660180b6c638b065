"""Small helpers for files, environment variables and names in messages."""

import glob
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOST = re.sub(r"\W", "-", socket.gethostname())
"""Name of this machine in the names of temporary files."""


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it at the end of the block.

    Readers see the old file or the new one, never half of it. If the block fails, the old file stays, and what a killed
    process left is removed by the next one.
    """
    target = Path(path)
    remove_abandoned(target.parent, target.name)
    # Two processes may write the same file at the same time.
    temporary = target.with_name(f"{target.name}.{HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove the temporary files of `atomic` that killed processes of this machine have left in a folder.

    Args:
        folder: The folder, which need not exist.
        name: File that they were to replace; by default any.
    """
    # Of other machines that share the folder nobody knows here which processes are running.
    for file in Path(folder).glob(f"{'*' if name is None else glob.escape(name)}.{HOST}.*.tmp"):
        number = re.fullmatch(r".+\.(\d+)\.tmp", file.name)
        if number is not None and not _is_running(int(number[1])):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where the signal 0 is not a question
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to somebody else
        return True
    return True


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that gets this name at the end of the block.

    If the block fails, nothing is left, and what a killed process left is removed by the next one. There must be no
    folder ``path`` yet, unless it is empty.
    """
    target = Path(path)
    # nnU-Net takes a folder for a dataset only if its name begins with "Dataset".
    prefix = f"incomplete_{target.name}.{HOST}."
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):  # killed processes may have left some
        number = folder.name.removeprefix(prefix)
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)
    incomplete = target.with_name(f"{prefix}{os.getpid()}")
    try:
        incomplete.mkdir(parents=True)
        yield incomplete
        if target.exists():
            target.rmdir()  # Windows does not replace a folder, not even an empty one
        incomplete.replace(target)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


@contextmanager
def replaced_together(folder: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """Yield an empty folder whose files replace those of ``folder`` at the end of the block, all within a moment.

    If the block fails or the process is killed, the old files stay. Files of other names stay as well.

    Args:
        folder: Folder of the files; it is made.
        last: File that comes last, so that it never refers to older ones.
    """
    folder = Path(folder)
    incomplete = folder / ".incomplete"
    shutil.rmtree(incomplete, ignore_errors=True)  # a killed process may have left one
    incomplete.mkdir(parents=True)
    try:
        yield incomplete
        files = sorted(path.relative_to(incomplete) for path in incomplete.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda file: file.as_posix() == last):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (incomplete / file).replace(folder / file)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: It is not valid JSON, nested too deeply to be read, or a folder or device.
        OSError: It cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no ordinary file")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({' '.join(str(error).split())})") from None


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Raises:
        ValueError: It does not.
        OSError: It cannot be read.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; correct it or restore it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object, but begins with {str(content)[:20]!r}; correct or restore it")
    return content


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the duration of a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def is_file_name(name: str) -> bool:
    """Return True for the name of a file or folder that lies in a folder, and cannot lead out of it.

    Examples:
        >>> is_file_name("nnUNetPlans_2d"), is_file_name("../others"), is_file_name("/etc"), is_file_name("..")
        (True, False, False, False)
    """
    return name.isprintable() and name not in ("", ".", "..") and not any(mark in name for mark in ("/", "\\"))


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names for a message and the number of the others; unprintable characters are escaped."""
    printable = [name if name.isprintable() else ascii(name) for name in names[:limit]]
    return ", ".join(printable) + (f" and {len(names) - limit} more" if len(names) > limit else "")
