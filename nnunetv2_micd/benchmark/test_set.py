"""Whether a test set is one: images with all channels, and labels of each."""

import os
from collections.abc import Sequence
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.data.preprocessed import channel_names
from nnunetv2_micd.data.raw_images import group_images
from nnunetv2_micd.utils.files import shorten


def check_test_set(test: tuple[str, str], plans: PlansManager, dataset_json: dict[str, Any]) -> list[str]:
    """Return the cases of a test set, of which the first is read as a sample.

    Raises:
        ValueError: images, channels and labels do not match.
        FileNotFoundError: there are none.
    """
    ending = dataset_json["file_ending"]
    for folder in test:
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"There is no folder {folder}; --test needs one of images and one of their labels")
    images = group_images(test[0], ending)
    if not images:
        raise FileNotFoundError(f"The folder {test[0]} holds no test images, named CASE_0000{ending}")
    names = sorted(name for name in os.listdir(test[1]) if name.endswith(ending) and not name.startswith("."))
    labels = {name.removesuffix(ending) for name in names}
    for missing, what, folder in (
        (images.keys() - labels, "labels of the test images", test[1]),
        (labels - images.keys(), "test images of the labels", test[0]),
    ):
        if missing:
            raise ValueError(f"The {what} {shorten(sorted(missing))} are missing in {folder}; add or remove the others")
    num_channels = len(channel_names(dataset_json))
    # one RGB file holds several channels
    num_files = 1 if plans.image_reader_writer_class is NaturalImage2DIO else num_channels
    for case, files in images.items():
        channels = [file.removesuffix(ending)[-4:] for file in files]
        if channels != [f"{channel:04d}" for channel in range(num_files)]:
            raise ValueError(
                f"The test image {case} has the channels {shorten(channels)}, but needs {num_files} of them"
            )
    case, files = next(iter(images.items()))
    _check_sample(plans.image_reader_writer_class(), files, os.path.join(test[1], f"{case}{ending}"), num_channels)
    return list(images)


def _check_sample(reader: Any, files: Sequence[str], label: str, num_channels: int) -> None:
    try:
        image, segmentation = reader.read_images(files)[0], reader.read_seg(label)[0]
    except Exception as error:  # whatever a reader makes of a damaged file
        raise ValueError(f"{files[0]} or {label} cannot be read ({' '.join(str(error).split())})") from None
    if len(image) != num_channels:
        raise ValueError(f"The test image {files[0]} has {len(image)} channels, but needs {num_channels}")
    if image.shape[1:] != segmentation.shape[1:]:
        shapes = " and ".join(" x ".join(map(str, array.shape[1:])) for array in (image, segmentation))
        raise ValueError(f"The test image {files[0]} and its labels {label} differ in size ({shapes})")
