"""Makes a raw dataset from ordinary folders of images and labels."""

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunetv2_micd.data.derive import check_number
from nnunetv2_micd.data.folders import raw_folder
from nnunetv2_micd.data.image_defects import whole
from nnunetv2_micd.data.new_dataset_content import Content, find_reader
from nnunetv2_micd.data.new_dataset_files import TIFF, Files
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER
from nnunetv2_micd.utils.files import atomic_folder

NO_LINKS = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What systems answer to whom a symbolic link is unknown or, on Windows, not allowed."""


def check_names(number: int, name: str, channels: Sequence[str], classes: Sequence[str]) -> None:
    """Check what can be checked before any file is read.

    Args:
        number: Number of the new dataset.
        name: Its name without the number.
        channels: Names of the channels, or none.
        classes: Names of the classes, or none.

    Raises:
        ValueError: The number is taken, a name does not fit, or ``nnUNet_raw`` is not set.
        FileNotFoundError: ``nnUNet_raw`` does not exist.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"The name of a dataset has letters, digits, - and _ only, not {name!r}")
    raw_folder(full_name(number, name))
    check_number(number, full_name(number, name))
    for names, what in ((channels, "channels"), (classes, "classes")):
        if not all(map(str.strip, names)):
            raise ValueError(f"The {what} need names, and one of them is empty")
        if len(set(names)) < len(names):
            raise ValueError(f"The {what} need different names, not {' '.join(names)}")
    if "background" in classes:
        raise ValueError("The value 0 is called background; give another name to the other values")


def check_number_of_names(names: Sequence[str], expected: int, what: str) -> None:
    """Check that there are as many names as things to name.

    Raises:
        ValueError: There are not.
    """
    if len(names) != expected:
        raise ValueError(f"The number of {what} is {expected}; they need as many names, not {' '.join(names)}")


def full_name(number: int, name: str) -> str:
    """Return the name of a dataset with its number."""
    return f"Dataset{number:03d}_{name}"


def make_dataset(
    number: int,
    name: str,
    files: Files,
    content: Content,
    channels: Sequence[str],
    classes: Sequence[str] = (),
    copy: bool = False,
) -> Path:
    """Make the raw dataset: links to the images, or copies, and its ``dataset.json``.

    Labels whose values are not 0, 1, 2 and so on, such as masks of 0 and 255, are written anew with these values. So
    are gray labels that were saved with colors.

    Args:
        number: Number of the dataset.
        name: Name without the number, such as ``Hippocampus``.
        files: Its files.
        content: What is in them.
        channels: Name of each channel. nnU-Net chooses the normalization by it: ``CT`` has one of its own.
        classes: Name of each value of the labels but 0; by default ``class_1`` and so on.
        copy: Whether to copy the files instead of linking to them.

    Returns:
        Folder of the dataset.

    Raises:
        ValueError: The number is taken, or names do not fit.
        OSError: The files cannot be written.
    """
    check_names(number, name, channels, classes)
    classes = list(classes) or [f"class_{value}" for value in content.values]
    check_number_of_names(channels, content.num_channels, "channels of the images")
    values = ", ".join(map(str, content.values))
    check_number_of_names(classes, len(content.values), f"values of the labels ({values})")
    folder = raw_folder(full_name(number, name))
    description = {
        "channel_names": {str(index): channel for index, channel in enumerate(channels)},
        "labels": {"background": 0, **{one: index for index, one in enumerate(classes, start=1)}},
        "numTraining": len(files.labeled),
        "file_ending": files.ending,
    }
    with atomic_folder(folder) as incomplete:
        for target, cases in (("imagesTr", files.labeled), (IMAGES_FOLDER, files.unlabeled), ("imagesTs", files.test)):
            for case, images in cases.items():
                for channel, file in enumerate(images):
                    _place(file, incomplete / target / f"{case}_{channel:04d}{files.ending}", case, copy)
        for case, file in files.labels.items():
            label = incomplete / "labelsTr" / f"{case}{files.ending}"
            _place_label(file, label, case, files.labeled[case][0], content, copy)
        (incomplete / "dataset.json").write_text(json.dumps(description, indent=4))
    return folder


def _place(file: str, target: Path, case: str, copy: bool) -> None:
    _link(Path(file), target, copy)
    _place_spacing([file], target, case, copy)


def _place_label(file: str, target: Path, case: str, image: str, content: Content, copy: bool) -> None:
    if content.has_usable_labels:
        _link(Path(file), target, copy)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        reader = find_reader(file)
        label, properties = reader.read_seg(file)
        consecutive = np.searchsorted([0, *content.values], label[0])
        with whole(str(target)):
            reader.write_seg(consecutive.astype(np.uint8), str(target), properties)
        target.with_name(f"{case}.json").unlink(missing_ok=True)  # the reader of TIFF has written a spacing of 1
    _place_spacing([file, image], target, case, copy)


def _place_spacing(files: Sequence[str], target: Path, case: str, copy: bool) -> None:
    """Place the file of a TIFF's spacing: the first that lies beside one of these files, for all channels."""
    place = target.with_name(f"{case}.json")
    if target.suffix not in TIFF or place.exists():
        return
    for own in (Path(file).with_suffix(".json") for file in files):
        for sidecar in (own, own.with_stem(re.sub(r"_[0-9]{4}$", "", own.stem))):
            if sidecar.is_file():
                _link(sidecar, place, copy)
                return


def _link(source: Path, place: Path, copy: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(source, place)
        return
    try:
        place.symlink_to(os.path.realpath(source))
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise OSError(f"The disk of {place.parent} has no links to files; add --copy to copy them instead") from None
