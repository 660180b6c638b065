"""Gives labels to unlabeled images: they become labeled cases of the raw dataset and of its folds."""

import errno
import filecmp
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_micd.data.folders import raw_folder
from nnunetv2_micd.data.groups import GROUPS_FILE, load_groups
from nnunetv2_micd.data.image_defects import AGAIN, find_file_defect
from nnunetv2_micd.data.new_dataset_content import read_case
from nnunetv2_micd.data.new_dataset_files import TIFF
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images
from nnunetv2_micd.data.splits import KEYS, SPLITS_FILE, Entry, load_splits, lock_splits, write_splits
from nnunetv2_micd.utils.files import atomic, read_json_object, shorten


def add_labels(dataset_name: str, labels: Path, cases: Sequence[str]) -> int:
    """Make labeled cases of unlabeled images.

    Their files move from ``imagesUn`` to ``imagesTr``, their labels are copied to ``labelsTr``, and ``dataset.json``
    counts them. In each fold of ``splits_final.json`` they become training cases, or validation cases where the rest
    of their group validates; so the validation cases of a fold stay what they were. After an interruption the same
    call goes on.

    Args:
        dataset_name: Name of the dataset.
        labels: Folder of the labels, named ``<case><file ending>``.
        cases: The images.

    Returns:
        Number of labeled cases in the raw dataset now.

    Raises:
        ValueError: An image or a label is missing or damaged, they do not fit each other or ``dataset.json``, or an
            image has a label already, or no group where others have one. Nothing was changed.
        OSError: A file cannot be read or written.
    """
    raw = raw_folder(dataset_name)
    description = read_json_object(raw / "dataset.json")
    if "dataset" in description:
        raise ValueError(
            f'{raw / "dataset.json"} lists the files of its cases under "dataset"; add the new ones there by hand'
        )
    ending = description.get("file_ending")
    if not isinstance(ending, str):
        raise ValueError(f"{raw / 'dataset.json'} has no file_ending, such as .nii.gz; add it")
    images = group_images(raw / IMAGES_FOLDER, ending) if (raw / IMAGES_FOLDER).is_dir() else {}
    done = _check_files(raw, images, labels, ending, cases)
    _check_content(images, labels, ending, [case for case in cases if case not in done], description)
    groups = load_groups(dataset_name)
    if groups and (missing := [case for case in cases if case not in groups]):
        raise ValueError(f"{GROUPS_FILE} gives these images no group: {shorten(missing)}; add them to it first")
    preprocessed = Path(str(nnUNet_preprocessed), dataset_name)
    splits_file = preprocessed / SPLITS_FILE
    if splits_file.is_file():
        load_splits(splits_file)  # a damaged file is noticed before anything moves
    for case in (case for case in cases if case not in done):
        label_files = _with_sidecars([str(labels / f"{case}{ending}")], case, ending)
        if len(label_files) == 1:  # a TIFF without its spacing has that of its image
            label_files += _with_sidecars(images[case], case, ending)[len(images[case]) :]
        for file in label_files:
            with atomic(raw / "labelsTr" / Path(file).name) as temporary:
                shutil.copyfile(file, temporary)
        # The image itself moves last: while it has not moved, the same call does all of this again.
        for file in reversed(_with_sidecars(images[case], case, ending)):
            _move(file, raw / "imagesTr")
    number = sum(file.name.endswith(ending) for file in (raw / "labelsTr").iterdir() if not file.name.startswith("."))
    for description_file in (raw / "dataset.json", preprocessed / "dataset.json"):
        if description_file.is_file():
            content = {**read_json_object(description_file), "numTraining": number}
            with atomic(description_file) as temporary:
                temporary.write_text(json.dumps(content, indent=4))
    if splits_file.is_file():
        with lock_splits(splits_file):
            write_splits([_with_cases(entry, cases, groups) for entry in load_splits(splits_file)], splits_file)
    return number


def _check_files(
    raw: Path, images: Mapping[str, Sequence[str]], labels: Path, ending: str, cases: Sequence[str]
) -> set[str]:
    """Check that all files are there and none is in the way; return the cases that an interrupted call has finished."""
    done = set()
    for case in cases:
        label, target = labels / f"{case}{ending}", raw / "labelsTr" / f"{case}{ending}"
        if not label.is_file():
            raise ValueError(f"There is no label {label}; name images that have one")
        if target.is_file() and target.read_bytes() != label.read_bytes():
            raise ValueError(f"{case} has another label already, {target}; remove one of them")
        for file in images.get(case, ()):
            moved = raw / "imagesTr" / Path(file).name
            if moved.is_file() and not filecmp.cmp(file, moved, shallow=False):
                raise ValueError(f"{file} has the name of another image, {moved}; rename or remove one of them")
        if case in images:
            _check_movable(raw)
            continue
        if not target.is_file() or case not in group_images(raw / "imagesTr", ending):
            raise ValueError(
                f"There is no image {case} in {raw / IMAGES_FOLDER}, which has {shorten(sorted(images)) or 'none'}"
            )
        done.add(case)
    return done


def _check_movable(raw: Path) -> None:
    """Refuse to move files out of or into a folder of others, to which one of the dataset is only a link."""
    for name in (IMAGES_FOLDER, "imagesTr", "labelsTr"):
        folder = raw / name
        real = folder.resolve()
        if not real.is_relative_to(raw.resolve()):
            link, files = shlex.quote(str(folder)), shlex.quote(str(real))
            raise ValueError(
                f"{folder} is a link to {real}, and files must not be moved out of or into that folder; make it a "
                f"folder of links to them, and repeat the command: rm {link} && mkdir {link} && ln -s {files}/* {link}"
            )


def _check_content(
    images: Mapping[str, Sequence[str]], labels: Path, ending: str, cases: Iterable[str], description: Mapping[str, Any]
) -> None:
    """Check that the labels fit their images, and have the values that ``dataset.json`` names."""
    known = {0}
    for value in description.get("labels", {}).values():  # a region has several
        known.update(value if isinstance(value, list | tuple) else [value])
    for case in tqdm(cases, desc="reading images and labels"):
        file = str(labels / f"{case}{ending}")
        if defect := find_file_defect(images[case][0]):
            raise ValueError(f"{images[case][0]} {defect}")
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # nnU-Net prints what is wrong with a file
                reader = determine_reader_writer_from_dataset_json(dict(description), images[case][0], verbose=False)()
        except RuntimeError:  # no reader can read it
            raise ValueError(f"{images[case][0]} cannot be read; {AGAIN}") from None
        _, label, values = read_case(case, images[case], file, reader)
        if len(label) > 1:
            raise ValueError(f"{file} was saved with colors; save it as a gray image")
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"{file} has the values {shorten(list(map(str, unknown)))}, but dataset.json names only "
                f"{shorten(list(map(str, sorted(known))), 20)}; correct the label"
            )


def _move(file: str, folder: Path) -> None:
    """Move a file, also to another file system, so that the folder never has a part of it."""
    target = folder / Path(file).name
    if os.path.islink(file) and not os.path.isabs(os.readlink(file)):  # which need not lead there from another folder
        with atomic(target) as temporary:
            temporary.symlink_to(os.path.relpath(os.path.realpath(file), os.path.realpath(folder)))
        os.unlink(file)
        return
    try:
        os.replace(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # another file system
            raise
        with atomic(target) as temporary:
            shutil.copy2(file, temporary)
        os.unlink(file)


def _with_sidecars(files: Sequence[str], case: str, ending: str) -> list[str]:
    """Return the files of a case with the JSON file beside a TIFF image, which holds its spacing."""
    sidecars = {Path(name.removesuffix(ending) + ".json") for name in files} | {
        Path(files[0]).with_name(f"{case}.json")
    }
    return [*files, *(str(file) for file in sorted(sidecars) if ending in TIFF and file.is_file())]


def _with_cases(entry: Entry, cases: Sequence[str], groups: Mapping[str, str]) -> Entry:
    """Return a fold with further labeled cases, without dividing a group."""
    known = {case for key in KEYS for case in entry.get(key, [])}
    validated = {groups[case] for case in entry["val"] if case in groups}
    new = [case for case in cases if case not in known]
    validation = [case for case in new if groups.get(case) in validated]
    training = [case for case in new if case not in validation]
    return {**entry, "train": [*entry["train"], *training], "val": [*entry["val"], *validation]}
