"""Finds raw images: files named ``<case>_<four digits of the channel><file ending>``, as nnU-Net names them."""

import gzip
import os
import re
import sys
import zlib
from collections.abc import Sequence


def group_images(folder: str, file_ending: str) -> dict[str, list[str]]:
    """Return the images in ``folder`` for each case, both sorted; files with other names are left out."""
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(file_ending))
    cases: dict[str, list[str]] = {}
    for name in _list_files(folder):
        match = pattern.fullmatch(name)
        if match:
            cases.setdefault(match[1], []).append(os.path.join(folder, name))
    return cases


def find_images(folders: Sequence[str], file_ending: str) -> dict[str, list[str]]:
    """Return the images in all ``folders`` for each case.

    Files that are not named like images are reported on the standard error stream.

    Raises:
        FileNotFoundError: a folder is missing or holds no files.
        ValueError: no file in a folder is named like an image, or a case is in several folders.
    """
    images: dict[str, list[str]] = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f"There is no folder {folder}; put the unlabeled images there, or name another with -i"
            )
        found = group_images(folder, file_ending)
        used = {os.path.basename(file) for files in found.values() for file in files}
        others = [name for name in _list_files(folder) if name not in used]
        if not found:
            raise _no_images(folder, file_ending, others)
        if others:
            print(
                f"Warning: not used, as not named CASE_0000{file_ending}: {shorten(others)} in {folder}",
                file=sys.stderr,
            )
        twice = sorted(images.keys() & found.keys())
        if twice:
            raise ValueError(f"Some cases are in several folders ({shorten(twice)}), the second time in {folder}")
        images.update(found)
    return images


def find_defect(files: Sequence[str], num_channels: int) -> str | None:
    """Return what is wrong with the image of a case as far as its files tell, or None."""
    channels = [re.findall(r"_(\d{4})\.", os.path.basename(file))[-1] for file in files]
    expected = [f"{channel:04d}" for channel in range(num_channels)]
    if channels != expected:
        return f"has the channels {', '.join(channels)}, but needs {', '.join(expected)}"
    return next((f"{file} is cut off or damaged" for file in files if not _is_whole(file)), None)


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Return the names as a message shows them, however many there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _list_files(folder: str) -> list[str]:
    """Hidden files are none of ours, such as the ``._case_0000.nii.gz`` that macOS leaves on foreign disks."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [name for name in names if not os.path.isdir(os.path.join(folder, name))]


def _no_images(folder: str, file_ending: str, others: Sequence[str]) -> Exception:
    if not others:
        return FileNotFoundError(
            f"The folder {folder} is empty; put the unlabeled images there, or name another with -i"
        )
    if any(name.endswith(file_ending) for name in others):
        return ValueError(f"No file in {folder} is named CASE_0000{file_ending}, such as {others[0]}; add the channel")
    found = re.sub(r"^.*?(_\d{4})?(?=\.)", "", others[0])
    return ValueError(f"The images of this dataset are {file_ending} files, but those in {folder} are {found} files")


def _is_whole(file: str) -> bool:
    """SimpleITK reads a compressed file that was cut off without an error, with zeros for what is missing."""
    if not file.endswith(".gz"):
        return True
    try:
        with gzip.open(file) as stream:
            while stream.read(1 << 24):
                pass
    except (EOFError, zlib.error):
        return False
    except OSError:  # not compressed in spite of its name, or not readable: for the reader to say
        return True
    return True
