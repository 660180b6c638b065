"""Reads the labels and images of ordinary folders: which classes they have, and whether they fit each other."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from tqdm import tqdm

from nnunetv2_micd.data.image_defects import AGAIN, find_file_defect
from nnunetv2_micd.data.new_dataset_files import PHOTOGRAPHS, SUPPORTED, TIFF, Files
from nnunetv2_micd.data.orientations import are_alike, orientation

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
        has_colored_labels: Whether a label was saved with colors, though they are gray.
    """

    values: list[int]
    num_channels: int
    is_2d: bool
    has_colored_labels: bool = False

    @property
    def has_consecutive_values(self) -> bool:
        """Whether the values are 1, 2 and so on, as nnU-Net wants."""
        return self.values == list(range(1, len(self.values) + 1))

    @property
    def has_usable_labels(self) -> bool:
        """Whether nnU-Net can read the labels as they are; otherwise they are written anew."""
        return self.has_consecutive_values and not self.has_colored_labels


def read_content(files: Files) -> Content:
    """Read all labeled images and their labels.

    Raises:
        ValueError: A file is damaged, or does not fit the others. The message names it.
    """
    values: set[int] = set()
    is_2d, has_colored_labels = True, False
    channels: dict[int, str] = {}
    for case, images in tqdm(files.labeled.items(), desc="reading images and labels"):
        image, label, found = read_case(case, images, files.labels[case])
        values.update(found)
        has_colored_labels |= len(label) > 1
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
    return Content(sorted(values - {0}), next(iter(channels)), is_2d, has_colored_labels)


def read_case(
    case: str, images: Sequence[str], label_file: str, reader: Any = None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Read a labeled image. Warn of a label in another orientation, which need not lie on its image.

    Args:
        case: Its name, for messages.
        images: Its files, one for each channel, or one for all colors.
        label_file: File of its label.
        reader: nnU-Net's reader for them; by default the first that can read the image.

    Returns:
        The image ``(channels, z, y, x)``, the label ``(1 or 3, z, y, x)``, and the sorted values of the label.

    Raises:
        ValueError: A file is damaged, they do not fit each other, or the label is none.
    """
    for file in (*images, label_file):
        if defect := find_file_defect(file):
            raise ValueError(f"{file} {defect}")
    try:
        reader = reader or find_reader(images[0])
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
    # As nnU-Net compares them. That of a TIFF it reads from a file that is named as in a dataset.
    if not label_file.endswith(TIFF) and not np.allclose(spacing, its_spacing):
        raise ValueError(
            f"{case} has the spacing {spacing}, but its label {its_spacing}; save the label with that of its image"
        )
    axes, its_axes = orientation(image_properties), orientation(label_properties)
    if axes is not None and its_axes is not None and not are_alike(axes, its_axes):
        print(
            f"Warning: by its header, the label {label_file} lies in another orientation than its image, which nnU-Net "
            "does not correct; look whether it is flipped or turned, and export it again then",
            file=sys.stderr,
        )
    if len(label) > 1 and (label != label[:1]).any():
        raise ValueError(f"{label_file} is a colored image; export it with the number of the class as gray value")
    found = np.unique(label)
    if (found != found.astype(int)).any() or found.min() < 0:
        raise ValueError(f"{label_file} is no label: its values are not whole numbers from 0 on")
    if label_file.endswith(PHOTOGRAPHS) and found.max() == WHITE and len(found) > MOST_GRAY_CLASSES:
        raise ValueError(
            f"{label_file} has {len(found)} different gray values, so it looks like a mask with soft edges; save it "
            "without smoothing, as 0 and 255 or as 0, 1, 2 and so on"
        )
    return image, label, found.astype(int).tolist()


def find_reader(file: str) -> Any:
    """Return an instance of nnU-Net's reader for a file."""
    ending = next(ending for ending in SUPPORTED if file.endswith(ending))
    with redirect_stderr(StringIO()):  # nnU-Net prints what keeps a reader from an image
        return determine_reader_writer_from_file_ending(ending, file, verbose=False)()


def _size(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape[1:]))
