"""Makes a raw dataset from ordinary folders of images and labels."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from tqdm import tqdm

from nnunetv2_micd.data.derive import check_number
from nnunetv2_micd.data.folders import raw_folder
from nnunetv2_micd.data.raw_images import AGAIN, IMAGE_ENDINGS, IMAGES_FOLDER, group_images
from nnunetv2_micd.utils.files import atomic_folder, shorten

Cases = dict[str, list[str]]

SUPPORTED = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff")
"""File endings that nnU-Net's readers know."""

MOST_CLASSES = 255
"""More values than this are those of an image, not of a label."""

WHITE, MOST_GRAY_CLASSES = 255, 16
"""A mask of 0 and 255 that was turned or made smaller has soft edges, of many gray values up to white."""

PHOTOGRAPH_CHANNELS = {1: ["gray"], 3: ["R", "G", "B"]}
"""Names of the channels of a photograph by their number; nnU-Net's normalization does not depend on them."""


@dataclass(frozen=True)
class Sources:
    """Folders that a dataset is made from.

    Attributes:
        images: One folder for each channel, with files of the same names; or one folder with names as in nnU-Net,
            ``CASE_0000.nii.gz``.
        labels: Folder of the labels, named like their images, or with an addition such as ``CASE_seg.nii.gz``.
        unlabeled: Like ``images``, of the images without labels; often none.
    """

    images: Sequence[str]
    labels: str
    unlabeled: Sequence[str] = ()


@dataclass(frozen=True)
class Content:
    """What was found in the folders.

    Attributes:
        ending: File ending of all images and labels.
        labeled: Image files of each labeled case, one for each channel.
        labels: Label file of each labeled case.
        unlabeled: Image files of each unlabeled case.
        values: Values of the labels but 0, sorted.
        num_channels: Number of channels.
        is_2d: Whether all labeled images have a single slice, so that nnU-Net makes no 3D configuration.
    """

    ending: str
    labeled: Cases
    labels: dict[str, str]
    unlabeled: Cases
    values: list[int] = field(default_factory=list)
    num_channels: int = 1
    is_2d: bool = False

    @property
    def default_channels(self) -> list[str] | None:
        """Names of the channels, where they have no meaning for the normalization; None if the user has to say it."""
        return PHOTOGRAPH_CHANNELS.get(self.num_channels) if self.ending in (".png", ".bmp") else None

    @property
    def has_consecutive_values(self) -> bool:
        """Whether the values are 1, 2 and so on, as nnU-Net wants; otherwise the labels are written anew."""
        return self.values == list(range(1, len(self.values) + 1))


def inspect(sources: Sources) -> Content:
    """Find the images and labels, and read them: which values the labels have, and whether they fit their images.

    Raises:
        ValueError: Files do not belong together. The message names them.
        OSError: A folder or file cannot be read.
    """
    labels_of_names = _files(sources.labels, _ending(sources.labels))
    # Photographs may have names that end in four digits; then their labels have the same names.
    has_channels = labels_of_names.keys().isdisjoint(_files(sources.images[0], _ending(sources.images[0])))
    labeled, ending = _find_cases(sources.images, has_channels)
    unlabeled: Cases = {}
    if sources.unlabeled:
        if len(sources.unlabeled) != len(sources.images):
            raise ValueError(
                f"There are {len(sources.images)} folders of labeled images, one for each channel, but "
                f"{len(sources.unlabeled)} of unlabeled ones; name as many, in the same order"
            )
        unlabeled, its_ending = _find_cases(sources.unlabeled, has_channels)
        if its_ending != ending:
            raise ValueError(
                f"The labeled images are {ending} files, the unlabeled ones {its_ending} files; convert one"
            )
    counts = {len(files) for files in (*labeled.values(), *unlabeled.values())}
    if len(counts) > 1:
        raise ValueError(
            f"Some images have {min(counts)} and others {max(counts)} files, one for each channel; name all as in "
            f"nnU-Net, CASE_0000{ending}, CASE_0001{ending} and so on, or put each channel into a folder of its own"
        )
    if both := sorted(labeled.keys() & unlabeled.keys()):
        raise ValueError(f"Images of the same name are labeled and unlabeled ({shorten(both)}); rename or remove some")
    labels = _find_labels(sources.labels, ending, labeled)
    values, channels, is_2d = _read(labeled, labels, ending)
    return Content(ending, labeled, labels, unlabeled, values, channels, is_2d)


def make_dataset(
    number: int, name: str, content: Content, channels: Sequence[str], classes: Sequence[str] = (), copy: bool = False
) -> Path:
    """Make the raw dataset: links to the images, or copies, and its ``dataset.json``.

    Labels whose values are not 0, 1, 2 and so on, such as masks of 0 and 255, are written anew with these values.

    Args:
        number: Number of the dataset.
        name: Name without the number, such as ``Hippocampus``.
        content: What is in it.
        channels: Name of each channel. nnU-Net chooses the normalization by it: ``CT`` has one of its own.
        classes: Name of each value of the labels but 0; by default ``class_1`` and so on.
        copy: Whether to copy the files instead of linking to them.

    Returns:
        Folder of the dataset.

    Raises:
        ValueError: The number is taken, or names do not fit.
        OSError: The files cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"The name of a dataset has letters, digits, - and _ only, not {name!r}")
    classes = list(classes) or [f"class_{value}" for value in content.values]
    for given, expected, what in (
        (channels, content.num_channels, "channels of the images"),
        (classes, len(content.values), f"values of the labels ({', '.join(map(str, content.values))})"),
    ):
        if not expected == len(given) == len(set(given)):
            raise ValueError(
                f"The number of {what} is {expected}; they need as many different names, not {' '.join(given)}"
            )
    if "background" in classes:
        raise ValueError("The value 0 is called background; give another name to the other values")
    full_name = f"Dataset{number:03d}_{name}"
    check_number(number, full_name)
    folder = raw_folder(full_name)
    description = {
        "channel_names": {str(index): channel for index, channel in enumerate(channels)},
        "labels": {"background": 0, **{one: index for index, one in enumerate(classes, start=1)}},
        "numTraining": len(content.labeled),
        "file_ending": content.ending,
    }
    with atomic_folder(folder) as incomplete:
        for target, cases in (("imagesTr", content.labeled), (IMAGES_FOLDER, content.unlabeled)):
            for case, files in cases.items():
                for channel, file in enumerate(files):
                    _place(file, incomplete / target / f"{case}_{channel:04d}{content.ending}", copy)
        for case, file in content.labels.items():
            _place_label(file, incomplete / "labelsTr" / f"{case}{content.ending}", content, copy)
        (incomplete / "dataset.json").write_text(json.dumps(description, indent=4))
    return folder


def _find_cases(folders: Sequence[str], has_channels: bool) -> tuple[Cases, str]:
    """Return the files of each case and their ending.

    Args:
        folders: One folder, or one for each channel.
        has_channels: Whether ``_0000`` at the end of all names in a single folder is the number of the channel.
    """
    endings = {folder: _ending(folder) for folder in folders}
    if len(set(endings.values())) > 1:
        raise ValueError(f"The folders hold different kinds of files ({', '.join(endings.values())}); convert some")
    ending = endings[folders[0]]
    if len(folders) == 1:
        files = _files(folders[0], ending)
        named = group_images(folders[0], ending)
        numbered = {f"{case}_{channel:04d}" for case in named for channel in range(len(named[case]))}
        if has_channels and files.keys() == numbered:
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


def _files(folder: str, ending: str) -> dict[str, str]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(ending) and not name.startswith("."))
    return {name.removesuffix(ending): os.path.join(folder, name) for name in names}


def _ending(folder: str) -> str:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder}; name an existing one")
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    found = {next(end for end in IMAGE_ENDINGS if name.lower().endswith(end)) for name in names if _is_image(name)}
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
    if others := sorted(name for name in names if _is_image(name) and not name.endswith(ending)):
        raise ValueError(f"nnU-Net wants the ending {ending} in small letters; rename {shorten(others)} in {folder}")
    return ending


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _find_labels(folder: str, ending: str, cases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    if (own := _ending(folder)) != ending:
        raise ValueError(
            f"The images are {ending} files and the labels {own} files; nnU-Net wants one kind, convert some"
        )
    files = _files(folder, ending)
    labels = {case: files.pop(case) for case in cases if case in files}
    for case in sorted(cases, key=len, reverse=True):
        # With an addition, such as _seg. The labels of longer names were found before.
        added = [name for name in files if re.match(re.escape(case) + r"[_.-]", name)]
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


def _read(cases: Cases, labels: Mapping[str, str], ending: str) -> tuple[list[int], int, bool]:
    """Return the values of all labels but 0, the number of channels, and whether there is only one slice of each."""
    values: set[int] = set()
    is_2d = True
    channels: dict[int, str] = {}
    for case, files in tqdm(cases.items(), desc="reading images and labels"):
        if odd := [file for file in (*files, labels[case]) if not os.path.isfile(file)]:
            raise ValueError(f"{odd[0]} is no file, or a link to none; replace or remove it")
        try:
            with redirect_stderr(StringIO()):  # nnU-Net prints what keeps a reader from an image
                reader: Any = determine_reader_writer_from_file_ending(ending, files[0], verbose=False)()
            image, image_properties = reader.read_images(files)
            label, label_properties = reader.read_seg(labels[case])
        except Exception as error:  # readers raise various types for damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{files[0]} or {labels[case]} cannot be read ({reason}); {AGAIN}") from None
        if image.shape[1:] != label.shape[1:]:
            raise ValueError(
                f"{case} has {_size(image)} voxels, but its label {labels[case]} has {_size(label)}; export it again"
            )
        spacing, its_spacing = image_properties["spacing"], label_properties["spacing"]
        # nnU-Net looks for the spacing of a TIFF beside a file that is named as in a dataset.
        if not ending.startswith(".tif") and not np.allclose(spacing, its_spacing, rtol=1e-3):
            raise ValueError(f"{case} has the spacing {spacing}, but its label {its_spacing}; export it again")
        if len(label) > 1 and (label != label[:1]).any():
            raise ValueError(f"{labels[case]} is a colored image; export it with the number of the class as gray value")
        found = np.unique(label)
        if (found != found.astype(int)).any() or found.min() < 0:
            raise ValueError(f"{labels[case]} is no label: its values are not whole numbers from 0 on")
        if ending in (".png", ".bmp") and found.max() == WHITE and len(found) > MOST_GRAY_CLASSES:
            raise ValueError(
                f"{labels[case]} has {len(found)} different gray values, so it looks like a mask with soft edges; "
                "save it without smoothing, as 0 and 255 or as 0, 1, 2 and so on"
            )
        values.update(found.astype(int).tolist())
        if len(values) > MOST_CLASSES:
            raise ValueError(f"The labels have more than {MOST_CLASSES} values up to {labels[case]}; are they images?")
        channels[len(image)] = case
        is_2d &= image.shape[1] == 1
    if len(channels) > 1:
        counts = ", ".join(f"{case} has {number}" for number, case in channels.items())
        raise ValueError(f"The images have different numbers of channels: {counts}; export them alike")
    if not values - {0}:
        raise ValueError("All labels are empty, as they have no value but 0; name the folder of the labels with -l")
    return sorted(values - {0}), next(iter(channels)), is_2d


def _size(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape[1:]))


def _place(file: str, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    pairs = {target: Path(file)}
    if target.suffix in (".tif", ".tiff"):  # with the spacing, which is that of all channels
        for sidecar in (_without_channel(Path(file)), Path(file).with_suffix(".json")):
            if sidecar.is_file():
                pairs[_without_channel(target)] = sidecar
    for place, source in pairs.items():
        if place.exists():  # the spacing came with the first channel
            continue
        if copy:
            shutil.copyfile(source, place)
        else:
            place.symlink_to(os.path.realpath(source))


def _without_channel(file: Path) -> Path:
    return file.with_name(re.sub(r"(_[0-9]{4})?$", "", file.stem) + ".json")


def _place_label(file: str, target: Path, content: Content, copy: bool) -> None:
    if content.has_consecutive_values:
        _place(file, target, copy)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    reader: Any = determine_reader_writer_from_file_ending(content.ending, file, verbose=False)()
    label, properties = reader.read_seg(file)
    consecutive = np.searchsorted([0, *content.values], label[0])
    reader.write_seg(consecutive.astype(np.uint8), str(target), properties)
