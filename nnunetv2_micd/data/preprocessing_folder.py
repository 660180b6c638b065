"""The folder of the preprocessed unlabeled images: locks, what is removed from it, and the records that it keeps."""

import json
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import FINGERPRINT_FILE, list_preprocessed, read_fingerprint
from nnunetv2_micd.data.preprocessing_job import PreprocessingJob
from nnunetv2_micd.data.sources import absent, describe, find_gone, read_sources, write_sources
from nnunetv2_micd.utils.files import atomic, shorten
from nnunetv2_micd.utils.locks import hold_lock

INCOMPLETE_FOLDER = ".incomplete"
"""Folder for files that are being written, inside the folder of the preprocessed images; a folder for each image."""


@dataclass(frozen=True)
class Part:
    """A part of the images, which one of several jobs preprocesses: those that leave the remainder ``id``.

    Attributes:
        id: Number of the part, from 0.
        of: Number of parts.

    Raises:
        ValueError: There is no such part.

    Examples:
        >>> Part(1, of=3).select(["a", "b", "c", "d", "e"])
        ['b', 'e']
    """

    id: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.id < self.of:
            raise ValueError(f"There is no part {self.id} of {self.of}; -part_id counts from 0 to -num_parts minus 1")

    def select(self, cases: Sequence[str]) -> list[str]:
        """Return the cases of this part."""
        return list(cases[self.id :: self.of])

    def file(self, name: str) -> str:
        """Return the name of a file that each part has for itself."""
        return name if self.of == 1 else f"{name}_{self.id}_of_{self.of}"


ALL_IMAGES = Part()


@contextmanager
def lock_folders(dataset: Dataset, configurations: Sequence[str], part: Part) -> Iterator[None]:
    """Wait until no other process preprocesses the same part into these folders, and keep others out."""
    with ExitStack() as locks:
        for configuration in sorted(
            configurations
        ):  # all processes in the same order, or two could wait for each other
            folder = dataset.unlabeled_folder(configuration)
            file, activity = (
                _beside(folder, part.file("preprocessing")),
                f"preprocessing images into {folder}",
            )
            try:
                locks.enter_context(hold_lock(file, activity, wait=0))
            except BlockingIOError:
                print(f"Another process is {activity}; waiting for it to finish.", flush=True)
                locks.enter_context(hold_lock(file, activity, wait=-1))
        yield


def prepare_folder(
    dataset: Dataset,
    configuration: str,
    images: Mapping[str, Sequence[str]],
    cases: Sequence[str],
    overwrite: bool,
    part: Part,
) -> None:
    """Make the folder, remove stale files from it, and record there of what and how its images are preprocessed.

    Args:
        dataset: Dataset with the plans.
        configuration: Name of the configuration.
        images: Raw files of all images.
        cases: The images of this part.
        overwrite: Whether these are preprocessed again.
        part: The part.
    """
    folder = dataset.unlabeled_folder(configuration)
    # Jobs of different parts start at the same time. The first records the plans, and the others find them the same.
    with hold_lock(_beside(folder, "preparing"), f"preparing {folder}"):
        folder.mkdir(exist_ok=True)
        if overwrite:
            _remove_done(folder, dataset.fingerprint(configuration), cases, images)
        _record_plans(folder, dataset.fingerprint(configuration))
        _remove_changed(folder, images, cases)
    incomplete = folder / part.file(INCOMPLETE_FOLDER)
    # What a killed run has left goes, but empty folders still name the images that it worked on.
    interrupted = os.listdir(incomplete) if incomplete.is_dir() else []
    shutil.rmtree(incomplete, ignore_errors=True)
    for path in (incomplete, *(incomplete / case for case in interrupted)):
        path.mkdir()


def _beside(folder: Path, purpose: str) -> Path:
    """Return the file of a lock: beside the folder, in which nothing but images should lie."""
    return folder.with_name(f".{folder.name}.{purpose}.lock")


def _remove_done(folder: Path, fingerprint: str, cases: Collection[str], images: Collection[str]) -> None:
    """Remove the preprocessed images of this part; with other plans all, as they do not fit the new record."""
    is_same = read_fingerprint(folder) == fingerprint
    done = list_preprocessed(folder)
    for case in done:
        if case in cases or not is_same:
            (folder / f"{case}.b2nd").unlink()
            (folder / f"{case}.pkl").unlink(missing_ok=True)
    sources = read_sources(folder)
    others = [] if is_same else [case for case in done if case not in images]
    if others:
        write_sources(folder, {case: source for case, source in sources.items() if case not in others})
        places = {shlex.quote(sources[case].folder) for case in others if case in sources}
        again = f"; to have them again, name their folders, too: -i {' '.join(sorted(places))}" if places else ""
        print(
            f"Removed from {folder}, as they were preprocessed with other plans and are not among the images of this "
            f"command: {shorten(others)}{again}"
        )


def _record_plans(folder: Path, fingerprint: str) -> None:
    if read_fingerprint(folder) == fingerprint:
        return
    if list_preprocessed(folder):
        raise ValueError(
            f"The images in {folder} were preprocessed with other plans; to preprocess them all again, add --overwrite"
        )
    with atomic(folder / FINGERPRINT_FILE) as temporary:
        temporary.write_text(json.dumps({"fingerprint": fingerprint}))


def _remove_changed(folder: Path, images: Mapping[str, Sequence[str]], cases: Sequence[str]) -> None:
    """Remove preprocessed images whose raw files were replaced or deleted, and record the raw files of this part."""
    sources, done = read_sources(folder), list_preprocessed(folder)
    now = {case: describe(images[case]) for case in cases if all(map(os.path.exists, images[case]))}
    replaced = [case for case in done if case in now and case in sources and sources[case].files != now[case].files]
    # A link whose file was deleted is still among the images.
    gone = find_gone(sources | now, [case for case in done if not all(map(os.path.exists, images.get(case, [""])))])
    for case in replaced:  # not done any more; the image itself stays for a training that is running
        (folder / f"{case}.pkl").unlink(missing_ok=True)
    for case in gone:
        (folder / f"{case}.b2nd").unlink()
        (folder / f"{case}.pkl").unlink(missing_ok=True)
        sources.pop(case)
    if replaced:
        print(f"Preprocessed again, as their files have changed: {shorten(replaced)}")
    if gone:
        print(f"Removed from {folder}, as their raw files are gone: {shorten(gone)}")
    write_sources(folder, sources | now)


def remove_labeled(dataset: Dataset, configuration: str, labeled: Collection[str]) -> list[str]:
    """Remove preprocessed images that have got labels since; return them."""
    folder = dataset.unlabeled_folder(configuration)
    if not folder.is_dir():
        return []
    with hold_lock(_beside(folder, "preparing"), f"preparing {folder}"):
        cases = [case for case in list_preprocessed(folder) if case in labeled]
        for case in cases:
            (folder / f"{case}.b2nd").unlink()
            (folder / f"{case}.pkl").unlink(missing_ok=True)
        sources = {case: source for case, source in read_sources(folder).items() if case not in cases}
        write_sources(folder, sources)
    return cases


def record_defects(folder: Path, jobs: Sequence[PreprocessingJob], defects: Mapping[str, str]) -> None:
    """Record why images could not be preprocessed, and remove what was made of earlier files of theirs."""
    for case in defects:  # what was made of files that have been replaced since
        (folder / f"{case}.b2nd").unlink(missing_ok=True)
        (folder / f"{case}.pkl").unlink(missing_ok=True)
    if defects:
        with hold_lock(_beside(folder, "preparing"), f"recording failures in {folder}"):  # other parts record theirs
            sources = read_sources(folder)
            for job in jobs:
                if job.case in defects:
                    source = sources.get(job.case) or absent(job.files)
                    sources[job.case] = source._replace(defect=defects[job.case])
            write_sources(folder, sources)
