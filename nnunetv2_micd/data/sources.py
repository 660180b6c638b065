"""Records of which raw files each preprocessed image was made, to notice that they were deleted or replaced since.

The record also tells which images could not be preprocessed, so that nobody is sent to try the same files again.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nnunetv2_micd.utils.files import atomic, read_json

SOURCES_FILE = "sources.json"
"""File beside the preprocessed unlabeled images."""


class Source(NamedTuple):
    """Raw files of an image.

    Attributes:
        folder: Their folder.
        files: Size in bytes and time of the last change in nanoseconds, by name.
        defect: Why these files could not be preprocessed, if they were tried.
    """

    folder: str
    files: dict[str, list[int]]
    defect: str = ""

    def is_gone(self) -> bool:
        """Whether the folder is there, but not all of its files are."""
        return os.path.isdir(self.folder) and not all(
            os.path.exists(os.path.join(self.folder, name)) for name in self.files
        )

    def is_replaced(self) -> bool:
        """Whether the files are there, but are others than those of the record."""
        try:
            return describe([os.path.join(self.folder, name) for name in self.files]).files != self.files
        except OSError:
            return False


def describe(files: Sequence[str]) -> Source:
    """Return what identifies raw files.

    Raises:
        OSError: One of them is missing.
    """
    stats = {os.path.basename(file): os.stat(file) for file in files}
    states = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return Source(os.path.abspath(os.path.dirname(files[0])), states)


def absent(files: Sequence[str]) -> Source:
    """Return the source of an image of which files are missing, such as links to nowhere."""
    return Source(os.path.abspath(os.path.dirname(files[0])), {os.path.basename(file): [] for file in files})


def read_sources(folder: str | os.PathLike[str]) -> dict[str, Source]:
    """Return the recorded source of each image; none if the record is missing or damaged."""
    try:
        return {
            case: Source(str(path), dict(files), *map(str, defect))
            for case, (path, files, *defect) in read_json(Path(folder, SOURCES_FILE)).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def source_texts(folders: Mapping[str, str]) -> dict[str, str]:
    """Return as text of which raw files each preprocessed image was made, of the images of which that is known.

    Args:
        folders: Folder of each image.
    """
    recorded = {folder: read_sources(folder) for folder in set(folders.values())}
    return {
        case: json.dumps(recorded[folder][case].files, sort_keys=True)
        for case, folder in folders.items()
        if case in recorded[folder]
    }


def write_sources(folder: str | os.PathLike[str], sources: Mapping[str, Source]) -> None:
    """Write the record."""
    with atomic(Path(folder, SOURCES_FILE)) as temporary:
        temporary.write_text(json.dumps(sources), encoding="utf-8")


def find_gone(sources: Mapping[str, Source], cases: Iterable[str]) -> list[str]:
    """Return the images of which raw files were deleted, out of a folder that still has others of the record.

    When all are gone, the raw data has probably been moved away, which changes nothing for a training.
    """
    gone = [case for case in cases if case in sources and sources[case].is_gone()]
    folders = {source.folder for source in sources.values() if not source.is_gone()} if gone else set()
    return [case for case in gone if sources[case].folder in folders]


def find_replaced(sources: Mapping[str, Source], cases: Collection[str]) -> list[str]:
    """Return the images of which raw files have been replaced or changed since they were preprocessed."""
    return [case for case in cases if case in sources and sources[case].is_replaced()]


def find_defects(sources: Mapping[str, Source], cases: Collection[str]) -> dict[str, str]:
    """Return why images could not be preprocessed, of those whose raw files are still the ones that were tried."""
    tried = {case: sources[case] for case in cases if case in sources and sources[case].defect}
    return {case: source.defect for case, source in tried.items() if not source.is_replaced()}
