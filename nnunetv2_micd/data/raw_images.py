"""Finds raw images, named ``<case>_<four digits of the channel><file ending>`` as in nnU-Net."""

import os
import re
import sys
from collections.abc import Sequence

from nnunetv2_micd.utils.files import shorten

IMAGES_FOLDER = "imagesUn"
"""Folder of a raw dataset for images without labels, named like nnU-Net's ``imagesTr``."""

IMAGE_ENDINGS = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".dcm", ".mgz"),
    *(".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".npy", ".npz"),
)
"""Endings of files that are meant as images, whether or not they are named as nnU-Net wants."""


def group_images(folder: str | os.PathLike[str], file_ending: str) -> dict[str, list[str]]:
    """Return the image files of each case in a folder, cases and files sorted; files with other names are left out.

    Names of invalid Unicode are left out, too: SimpleITK ends the whole process if it meets one.
    """
    pattern = re.compile(r"(.+)_[0-9]{4}" + re.escape(file_ending), re.DOTALL)
    cases: dict[str, list[str]] = {}
    for name in _list_folder(folder):
        match = pattern.fullmatch(name)
        if match and _is_unicode(name):
            cases.setdefault(match[1], []).append(os.path.join(folder, name))
    return cases


def find_images(folders: Sequence[str], file_ending: str) -> dict[str, list[str]]:
    """Return the image files of each case in all ``folders``.

    Folders among the images, and files that are none, are reported on the standard error stream.

    Raises:
        FileNotFoundError: A folder is missing or holds no files.
        ValueError: No file in a folder is named like an image, or a case lies in several folders.
    """
    images: dict[str, list[str]] = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f"There is no folder {folder}; put the unlabeled images there, or name another with -i"
            )
        cases = group_images(folder, file_ending)
        used = {os.path.basename(file) for files in cases.values() for file in files}
        used |= {f"{case}.json" for case in cases}  # nnU-Net keeps the spacing of a TIFF image in such a file
        others = [name for name in _list_folder(folder) if name not in used]
        if not cases:
            raise _no_images(folder, file_ending, others)
        if no_images := [name for name in others if not is_image(name)]:
            print(f"Warning: not used, as they are no images: {shorten(no_images)} in {folder}", file=sys.stderr)
        twice = sorted(images.keys() & cases.keys())
        if twice:
            raise ValueError(f"Some cases are in several folders ({shorten(twice)}), the second time in {folder}")
        images.update(cases)
    return images


def find_unused(folders: Sequence[str], file_ending: str) -> list[str]:
    """Return the files that look like images of all ``folders`` but are not named like one of this dataset."""
    unused = []
    for folder in folders:
        used = {file for files in group_images(folder, file_ending).values() for file in files}
        files = [os.path.join(folder, name) for name in _list_folder(folder) if is_image(name)]
        unused += [file for file in files if file not in used]
    return unused


def is_image(name: str) -> bool:
    """Return True if a file is meant as an image, by its ending."""
    return name.lower().endswith(IMAGE_ENDINGS)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_folder(folder: str | os.PathLike[str]) -> list[str]:
    """Return the sorted names in a folder, those of folders with a slash at the end.

    Hidden files are left out, such as the ``._case_0000.nii.gz`` that macOS leaves on foreign disks.
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [f"{name}/" if os.path.isdir(os.path.join(folder, name)) else name for name in names]


def _no_images(folder: str, file_ending: str, others: Sequence[str]) -> Exception:
    files = [name for name in others if not name.endswith("/")]
    if not files:
        content = f"holds no images, only folders ({shorten(others)})" if others else "is empty"
        return FileNotFoundError(
            f"The folder {folder} {content}; put the unlabeled images there, or name another with -i"
        )
    named = [name for name in files if name.endswith(file_ending)]
    if named:
        return ValueError(
            f"No file in {folder} is named CASE_0000{file_ending}, such as {shorten(named[:1])}; add the channel"
        )
    return ValueError(
        f"The images of this dataset are {file_ending} files, but those in {folder} are others, such as "
        f"{shorten(files[:1])}; convert them, or name another folder with -i"
    )
