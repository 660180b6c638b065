"""Files that are replaced as a whole or together, and folders that are complete or absent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_micd.utils.files import HOST, atomic, atomic_folder, replaced_together


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, text: str, fails: bool = False) -> None:
    with replaced_together(folder, last="page.html") as incomplete:
        (incomplete / "figures").mkdir()
        for name in ("page.html", "table.csv", "figures/one.png"):
            (incomplete / name).write_text(text)
        if fails:
            raise ValueError("stopped")


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    write(folder, "old")
    (folder / "mine.txt").write_text("stays")
    with pytest.raises(ValueError, match="stopped"):
        write(folder, "new", fails=True)
    old = {"page.html": "old", "table.csv": "old", "figures/one.png": "old", "mine.txt": "stays"}
    assert content(folder) == old
    write(folder, "new")
    assert content(folder) == {name: text.replace("old", "new") for name, text in old.items()}
    assert not (folder / ".incomplete").exists()


def _write_slowly(kind: str, folder: str) -> None:
    context = replaced_together(folder, "page.html") if kind == "files" else atomic_folder(folder)
    with context as incomplete:
        (incomplete / "page.html").write_text("half")
        time.sleep(60)


@pytest.mark.parametrize("kind", ["files", "folder"])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
def test_what_a_killed_process_left_is_removed(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    process = multiprocessing.get_context("spawn").Process(target=_write_slowly, args=(kind, str(folder)))
    process.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("page.html")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (folder / "page.html").exists()
    assert list(tmp_path.rglob("page.html"))
    if kind == "files":
        write(folder, "whole")
    else:
        with atomic_folder(folder) as incomplete:
            (incomplete / "page.html").write_text("whole")
    assert [path.read_text() for path in tmp_path.rglob("page.html")] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell which processes are running")
def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    others = {
        f"table.csv.{HOST}.{os.getppid()}.tmp",
        f"table.csv.{HOST}.copy.tmp",
        f"table.csv.of-another-machine.{ended.pid}.tmp",
        f"other.csv.{HOST}.{ended.pid}.tmp",
    }
    for name in (*others, f"table.csv.{HOST}.{ended.pid}.tmp"):
        (tmp_path / name).write_text("half")
    with atomic(tmp_path / "table.csv") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "table.csv"}


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with atomic_folder(target) as incomplete:
        (incomplete / "file").touch()
    assert [path.name for path in target.iterdir()] == ["file"]
    with pytest.raises(OSError, match="target"), atomic_folder(target):
        pass
    assert [path.name for path in target.iterdir()] == ["file"]
