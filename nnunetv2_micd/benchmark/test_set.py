"""Checks that a test set is complete: every image has all channels and a label."""

import os
from collections.abc import Sequence
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.raw_images import group_images
from nnunetv2_micd.utils.files import shorten
from nnunetv2_micd.utils.wording import counted


def check_test_set(images_folder: str, labels_folder: str, dataset: Dataset) -> list[str]:
    """Return the test cases, after a check of all names and, as a sample, of the content of the first case.

    Args:
        images_folder: Folder of the test images, named like training images.
        labels_folder: Folder of their labels.
        dataset: Dataset with the channels and the file ending that the images must have.

    Raises:
        ValueError: Images, channels and labels do not match, or the first case cannot be read.
        FileNotFoundError: A folder is missing, or there are no images.
    """
    ending = dataset.file_ending
    for folder in (images_folder, labels_folder):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"There is no folder {folder}; --test needs one of images and one of their labels")
    images = group_images(images_folder, ending)
    if not images:
        raise FileNotFoundError(f"The folder {images_folder} holds no test images, named CASE_0000{ending}")
    _check_labels(images_folder, images.keys(), labels_folder, ending)
    num_channels = dataset.num_channels
    reader_class = dataset.plans.image_reader_writer_class
    case, files = next(iter(images.items()))
    # An RGB file holds several channels, so the content of the first image tells whether the number is right.
    may_be_fewer = issubclass(reader_class, NaturalImage2DIO) and len(files) < num_channels
    _check_channels(images, ending, num_files=len(files) if may_be_fewer else num_channels)
    _check_sample(reader_class(), files, os.path.join(labels_folder, f"{case}{ending}"), num_channels)
    return list(images)


def _check_labels(images_folder: str, cases: Any, labels_folder: str, ending: str) -> None:
    names = [name for name in os.listdir(labels_folder) if name.endswith(ending) and not name.startswith(".")]
    labels = {name.removesuffix(ending) for name in names}
    for missing, content, folder in (
        (cases - labels, "labels of the test images", labels_folder),
        (labels - cases, "test images of the labels", images_folder),
    ):
        if missing:
            raise ValueError(
                f"The {content} {shorten(sorted(missing))} are missing in {folder}; add or remove the others"
            )


def _check_channels(images: dict[str, list[str]], ending: str, num_files: int) -> None:
    for case, files in images.items():
        channels = [file.removesuffix(ending)[-4:] for file in files]
        if channels != [f"{channel:04d}" for channel in range(num_files)]:
            raise ValueError(
                f"The test image {case} has the channels {shorten(channels)}, but needs {num_files} of them"
            )


def _check_sample(reader: Any, files: Sequence[str], label: str, num_channels: int) -> None:
    try:
        image, segmentation = reader.read_images(files)[0], reader.read_seg(label)[0]
    except Exception as error:  # readers report a damaged file with any type of error
        raise ValueError(f"{files[0]} or {label} cannot be read ({' '.join(str(error).split())})") from None
    if len(image) != num_channels:
        raise ValueError(f"The test image {files[0]} has {counted(len(image), 'channel')}, but needs {num_channels}")
    if image.shape[1:] != segmentation.shape[1:]:
        shapes = " and ".join(" x ".join(map(str, array.shape[1:])) for array in (image, segmentation))
        raise ValueError(f"The test image {files[0]} and its labels {label} differ in size ({shapes})")
