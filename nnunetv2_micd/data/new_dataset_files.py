"""Finds the images and labels in ordinary folders: which files belong together. None is read."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnunetv2_micd.data.raw_images import IMAGE_ENDINGS, group_images, is_image
from nnunetv2_micd.utils.files import shorten

Cases = dict[str, list[str]]

SUPPORTED = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff")
"""File endings that nnU-Net's readers know."""

PHOTOGRAPHS = (".png", ".bmp")
"""File endings of photographs, of which one file may have several channels, its colors."""

TIFF = (".tif", ".tiff")
"""File endings of images whose spacing nnU-Net reads from a JSON file beside them."""

ADDITION = "[_.-]"
"""Pattern of how an addition to the name of a label begins, such as ``_seg``."""

MAY_HAVE_COLORS = (*PHOTOGRAPHS, ".tif")
"""File endings of images whose number of channels only their content tells."""


@dataclass(frozen=True)
class Sources:
    """Folders that a dataset is made from.

    Attributes:
        images: One folder for each channel, with files of the same names; or one folder with names as in nnU-Net,
            ``CASE_0000.nii.gz``.
        labels: Folder of the labels, named like their images, or with an addition such as ``CASE_seg.nii.gz``.
        unlabeled: Like ``images``, of the images without labels; often none.
        test: Like ``images``, of images to predict; often none.
    """

    images: Sequence[str]
    labels: str
    unlabeled: Sequence[str] = ()
    test: Sequence[str] = ()


@dataclass(frozen=True)
class Files:
    """Files that were found in the folders.

    Attributes:
        ending: File ending of all images and labels.
        labeled: Image files of each labeled case, one for each channel.
        labels: Label file of each labeled case.
        unlabeled: Image files of each unlabeled case.
        test: Image files of each case to predict.
    """

    ending: str
    labeled: Cases
    labels: dict[str, str]
    unlabeled: Cases
    test: Cases

    @property
    def num_channels(self) -> int | None:
        """Number of channels; None if an image has to be read to tell it."""
        number = len(next(iter(self.labeled.values())))
        return None if self.ending in MAY_HAVE_COLORS and number == 1 else number


def find_files(sources: Sources) -> Files:
    """Find the images and the label of each labeled one.

    Raises:
        ValueError: Files do not belong together. The message names them.
        OSError: A folder cannot be read.
    """
    labels_of_names = _files(sources.labels, _ending(sources.labels))
    # Photographs may have names that end in four digits; then their labels have the same names, or begin with them.
    image_ending = _ending(sources.images[0])
    names = _files(sources.images[0], image_ending).keys()
    begins = {name[: match.start()] for name in labels_of_names for match in re.finditer(ADDITION, name)}
    has_channels = labels_of_names.keys().isdisjoint(names) and not names <= begins
    cases_have_labels = not labels_of_names.keys().isdisjoint(group_images(sources.images[0], image_ending))
    labeled, ending = _find_cases(sources.images, has_channels, is_certain=cases_have_labels)
    counts = Counter(map(len, labeled.values()))
    num_channels = max(counts, key=lambda number: (counts[number], number))
    others: dict[str, Cases] = {"unlabeled": {}, "test": {}}
    for part, folders in (("unlabeled", sources.unlabeled), ("test", sources.test)):
        if not folders:
            continue
        if len(folders) != len(sources.images):
            raise ValueError(
                f"There are {len(sources.images)} folders of labeled images, one for each channel, but "
                f"{len(folders)} of {part} ones; name as many, in the same order"
            )
        others[part], its_ending = _find_cases(folders, has_channels, is_certain=num_channels > 1)
        if its_ending != ending:
            raise ValueError(f"The labeled images are {ending} files, the {part} ones {its_ending} files; convert one")
        if both := sorted(labeled.keys() & others[part].keys()):
            raise ValueError(f"Images of the same name are labeled and {part} ({shorten(both)}); rename or remove some")
    if len(sources.images) == 1:
        _check_channels((labeled, *others.values()), num_channels, ending)
    return Files(ending, labeled, _find_labels(sources.labels, ending, labeled), others["unlabeled"], others["test"])


def _find_cases(folders: Sequence[str], has_channels: bool, is_certain: bool) -> tuple[Cases, str]:
    """Return the files of each case and their ending.

    Args:
        folders: One folder, or one for each channel.
        has_channels: Whether ``_0000`` at the end of names in a single folder may be the number of the channel.
        is_certain: Whether it is then, even if most cases lack channels.
    """
    endings = {folder: _ending(folder) for folder in folders}
    if len(set(endings.values())) > 1:
        raise ValueError(f"The folders hold different kinds of files ({', '.join(endings.values())}); convert some")
    ending = endings[folders[0]]
    if len(folders) == 1:
        files = _files(folders[0], ending)
        named = group_images(folders[0], ending)
        numbered = set().union(*named.values())
        others = {name: file for name, file in files.items() if file not in numbered}
        complete = [case for case in named if _names(named[case]) == _channels(case, len(named[case]), ending)]
        if has_channels and (is_certain or 2 * len(complete) >= len(named) + len(others)):
            for name, file in others.items():
                named.setdefault(name, []).append(file)
            return named, ending
        return {case: [file] for case, file in files.items()}, ending
    channels = [_files(folder, ending) for folder in folders]
    for folder, files in zip(folders, channels, strict=True):
        if different := sorted(files.keys() ^ channels[0].keys()):
            raise ValueError(
                f"The channels in {folders[0]} and {folder} are not of the same images ({shorten(different)} in one of "
                "them only); each image needs a file of the same name in each folder"
            )
    return {case: [files[case] for files in channels] for case in channels[0]}, ending


def _check_channels(parts: Sequence[Cases], num_channels: int, ending: str) -> None:
    """Check that the files of each case are its channels 0, 1 and so on. A single one need not be numbered."""
    wrong = [
        f"{case} ({shorten(_names(files))})"
        for cases in parts
        for case, files in cases.items()
        if _names(files) != _channels(case, num_channels, ending)
        and (num_channels > 1 or _names(files) != [case + ending])
    ]
    if wrong:
        raise ValueError(
            f"The files of an image are {shorten(_channels('CASE', num_channels, ending))}, but these images have "
            f"others: {shorten(wrong)}; add or rename their files, or remove these images"
        )


def _channels(case: str, number: int, ending: str) -> list[str]:
    return [f"{case}_{channel:04d}{ending}" for channel in range(number)]


def _names(files: Sequence[str]) -> list[str]:
    return [os.path.basename(file) for file in files]


def _files(folder: str, ending: str) -> dict[str, str]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(ending) and not name.startswith("."))
    return {name.removesuffix(ending): os.path.join(folder, name) for name in names}


def _ending(folder: str) -> str:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder}; name an existing one")
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    found = {next(end for end in IMAGE_ENDINGS if name.lower().endswith(end)) for name in names if is_image(name)}
    if not found:
        raise FileNotFoundError(f"There are no images in {folder}; nnU-Net reads {', '.join(SUPPORTED)}")
    if len(found) > 1:
        raise ValueError(
            f"The folder {folder} holds files of several kinds ({', '.join(sorted(found))}); keep one kind"
        )
    [ending] = found
    if ending not in SUPPORTED:
        raise ValueError(
            f"The images in {folder} are {ending} files, which nnU-Net does not read; convert them, without loss of "
            f"quality, to one of {', '.join(SUPPORTED)}"
        )
    if others := sorted(name for name in names if is_image(name) and not name.endswith(ending)):
        raise ValueError(f"nnU-Net wants the ending {ending} in small letters; rename {shorten(others)} in {folder}")
    return ending


def _find_labels(folder: str, ending: str, cases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    if (own := _ending(folder)) != ending:
        raise ValueError(
            f"The images are {ending} files and the labels {own} files; nnU-Net wants one kind, convert some"
        )
    files = _files(folder, ending)
    labels = {case: files.pop(case) for case in cases if case in files}
    for case in sorted(cases, key=len, reverse=True):
        # With an addition, such as _seg. The labels of longer names were found before.
        added = [name for name in files if re.match(re.escape(case) + ADDITION, name)]
        if case not in labels and len(added) == 1:
            labels[case] = files.pop(added[0])
    if missing := sorted(cases.keys() - labels.keys()):
        raise ValueError(
            f"These images have no label in {folder}: {shorten(missing)}; name the labels like the images, and move "
            "images without one to the folder of the unlabeled ones (-u)"
        )
    if files:
        raise ValueError(f"These labels in {folder} have no image: {shorten(sorted(files))}; rename or remove them")
    return labels
