"""Reads the labels and images of ordinary folders: which classes they have, and whether they fit each other."""

from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from tqdm import tqdm

from nnunetv2_micd.data.new_dataset_files import PHOTOGRAPHS, Files
from nnunetv2_micd.data.raw_images import AGAIN, find_file_defect

MOST_CLASSES = 255
"""More values than this are those of an image, not of a label."""

WHITE, MOST_GRAY_CLASSES = 255, 16
"""A mask of 0 and 255 that was turned or made smaller has soft edges, of many gray values up to white."""

PHOTOGRAPH_CHANNELS = {1: ["gray"], 3: ["R", "G", "B"]}
"""Names of the channels of a photograph by their number; nnU-Net's normalization does not depend on them."""


@dataclass(frozen=True)
class Content:
    """What is in the files.

    Attributes:
        values: Values of the labels but 0, sorted.
        num_channels: Number of channels.
        is_2d: Whether all labeled images have a single slice, so that nnU-Net makes no 3D configuration.
    """

    values: list[int]
    num_channels: int
    is_2d: bool

    @property
    def has_consecutive_values(self) -> bool:
        """Whether the values are 1, 2 and so on, as nnU-Net wants; otherwise the labels are written anew."""
        return self.values == list(range(1, len(self.values) + 1))


def read_content(files: Files) -> Content:
    """Read all labeled images and their labels.

    Raises:
        ValueError: A file is damaged, or does not fit the others. The message names it.
    """
    values: set[int] = set()
    is_2d = True
    channels: dict[int, str] = {}
    for case, images in tqdm(files.labeled.items(), desc="reading images and labels"):
        image, found = _read_case(case, images, files.labels[case], files.ending)
        values.update(found)
        if len(values) > MOST_CLASSES:
            raise ValueError(
                f"The labels have more than {MOST_CLASSES} values up to {files.labels[case]}; are they images?"
            )
        channels[len(image)] = case
        is_2d &= image.shape[1] == 1
    if len(channels) > 1:
        counts = ", ".join(f"{case} has {number}" for number, case in channels.items())
        raise ValueError(f"The images have different numbers of channels: {counts}; export them alike")
    if not values - {0}:
        raise ValueError("All labels are empty, as they have no value but 0; name the folder of the labels with -l")
    return Content(sorted(values - {0}), next(iter(channels)), is_2d)


def _read_case(case: str, images: Sequence[str], label_file: str, ending: str) -> tuple[np.ndarray, list[int]]:
    """Return an image ``(channels, z, y, x)`` and the values of its label."""
    for file in (*images, label_file):
        if defect := find_file_defect(file):
            raise ValueError(f"{file} {defect}")
    try:
        with redirect_stderr(StringIO()):  # nnU-Net prints what keeps a reader from an image
            reader: Any = determine_reader_writer_from_file_ending(ending, images[0], verbose=False)()
        image, image_properties = reader.read_images(images)
        label, label_properties = reader.read_seg(label_file)
    except Exception as error:  # readers raise various types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{images[0]} or {label_file} cannot be read ({reason}); {AGAIN}") from None
    if image.shape[1:] != label.shape[1:]:
        raise ValueError(
            f"{case} has {_size(image)} voxels, but its label {label_file} has {_size(label)}; export it again"
        )
    spacing, its_spacing = image_properties["spacing"], label_properties["spacing"]
    # nnU-Net looks for the spacing of a TIFF beside a file that is named as in a dataset.
    if not ending.startswith(".tif") and not np.allclose(spacing, its_spacing, rtol=1e-3):
        raise ValueError(f"{case} has the spacing {spacing}, but its label {its_spacing}; export it again")
    if len(label) > 1 and (label != label[:1]).any():
        raise ValueError(f"{label_file} is a colored image; export it with the number of the class as gray value")
    found = np.unique(label)
    if (found != found.astype(int)).any() or found.min() < 0:
        raise ValueError(f"{label_file} is no label: its values are not whole numbers from 0 on")
    if ending in PHOTOGRAPHS and found.max() == WHITE and len(found) > MOST_GRAY_CLASSES:
        raise ValueError(
            f"{label_file} has {len(found)} different gray values, so it looks like a mask with soft edges; save it "
            "without smoothing, as 0 and 255 or as 0, 1, 2 and so on"
        )
    return image, found.astype(int).tolist()


def _size(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape[1:]))
