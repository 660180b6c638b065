"""Finds what is wrong with a raw image: its channels, its files, its spacing and its content."""

import gzip
import math
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnunetv2_micd.utils.files import read_json_object, shorten

AGAIN = "copy or export it again, or remove it"
"""What to do about a damaged file, for the end of a message."""

MOST_ENLARGED = 8
"""Length of an image relative to a typical labeled one, averaged over the axes, from which its cost is worth a word.
With the wrong unit of the spacing, such as cm for mm, an image is at least 10 times as long."""

WRONG_UNIT = 5
"""Ratio of an image's spacing to that of the plans, averaged over the axes, at which a long image has the wrong unit
rather than showing more than the labeled ones do."""

MOST_VOXELS = 2**31
"""Number of voxels that fit into no memory while they are resampled, 8 GiB for each of several copies."""


def find_defect(case: str, files: Sequence[str], num_channels: int) -> str | None:
    """Return what is wrong with the image files of a case, judged by names and sizes, or None."""
    if case.endswith("_seg"):
        return "is named like a segmentation of nnU-Net, the name of which ends in _seg; rename or remove it"
    channels = [re.findall(r"_([0-9]{4})\.", os.path.basename(file))[-1] for file in files]
    # Fewer files may hold all channels: an RGB image has three in one.
    if channels != _channels(num_channels)[: len(channels)]:
        return _wrong_channels(channels, num_channels)
    return next((f"{file} {defect}" for file in files if (defect := find_file_defect(file))), None)


def find_spacing_defect(case: str, file: str, is_needed: bool) -> str | None:
    """Return what is wrong with the file that holds the spacing of a 3D TIFF image, ``CASE.json`` beside it, or None.

    Args:
        case: Identifier of the image.
        file: File of the image.
        is_needed: Whether the labeled images have such files. Without one, nnU-Net takes a spacing of 1.
    """
    path = os.path.join(os.path.dirname(file), f"{case}.json")
    form = 'write into it {"spacing": [z, y, x]} with the three numbers in mm'
    if not os.path.isfile(path):
        return f"has no {path}, from which nnU-Net reads its spacing; {form}" if is_needed else None
    try:
        spacing = read_json_object(path).get("spacing")
    except ValueError as error:
        return f"{error}; {form}"
    is_sound = isinstance(spacing, list) and len(spacing) == 3 and all(map(_is_length, spacing))
    return None if is_sound else f"{path} has the spacing {spacing!r}; {form}"


def find_data_defect(
    case: str,
    data: np.ndarray,
    spacing: Sequence[float],
    axes: Sequence[int],
    target_spacing: Sequence[float],
    typical_shape: Sequence[float],
    num_channels: int,
) -> str | None:
    """Return what makes an image useless for training, or None. Warn of an image that is far larger than labeled ones.

    Args:
        case: Identifier of the image.
        data: Image of shape ``(channels, *spatial)`` as nnU-Net read it.
        spacing: Spacing of ``data`` in mm.
        axes: Spatial axes of ``data`` in the order of the plans (``transpose_forward``).
        target_spacing: Spacing of the plans in mm, with two entries for a 2D configuration.
        typical_shape: Median shape of the labeled images at the target spacing.
        num_channels: Number of channels of the dataset.
    """
    if len(data) != num_channels:
        transparency = (
            " (the fourth of a photograph is its transparency)" if (len(data), num_channels) == (4, 3) else ""
        )
        return _wrong_channels(_channels(len(data)), num_channels, transparency)
    if data.size == 0:
        return "has no voxels; remove it, or export it again"
    if not all(0 < number < math.inf for number in spacing):
        return f"has the spacing {_times(spacing)}; correct it in its header, or export it again"
    if all(channel.min() == channel.max() for channel in data):
        return f"has the value {data.flat[0]:g} everywhere; remove it, or export it again"
    spacing = [spacing[axis] for axis in axes]
    size = [data.shape[1 + axis] for axis in axes]
    # nnU-Net's readers give a two-dimensional image one slice with 999 times the spacing.
    if len(target_spacing) == 3 and size[0] == 1 and spacing[0] >= 999 * max(spacing[1:]):
        return "is two-dimensional, which a 3D configuration cannot use; remove it, or preprocess for -c 2d only"
    # A 2D configuration does not resample across slices.
    resampled = slice(-len(target_spacing), None)
    ratios = [old / new for old, new in zip(spacing[resampled], target_spacing, strict=True)]
    shape = [round(number * ratio) for number, ratio in zip(size[resampled], ratios, strict=True)]
    voxels, typical = math.prod(shape), math.prod(typical_shape)
    is_long = voxels > MOST_ENLARGED ** len(shape) * typical
    sizes = (
        f"would have {_times(f'{number:.9g}' for number in shape)} voxels at the spacing of the plans, labeled images "
        f"have about {_times(round(number) for number in typical_shape)}"
    )
    if voxels == 0 or (is_long and math.prod(ratios) > WRONG_UNIT ** len(ratios)):
        # A 2D image has one slice of a spacing that nnU-Net made up.
        own = spacing[resampled] if size[0] == 1 else spacing
        return f"{sizes}; correct its spacing, which is {_times(f'{number:g}' for number in own)} in the plans' order"
    if voxels > MOST_VOXELS:
        return f"{sizes}, and fits into no memory; cut it into parts, or crop it as the labeled images are"
    if is_long:
        print(
            f"Warning: {case} {sizes}; it takes as much longer to preprocess and to load, unless you crop it as the "
            "labeled images are",
            file=sys.stderr,
        )
    return None


def find_file_defect(file: str) -> str | None:
    """Return what is wrong with a file, or None.

    NIfTI and GIPL files are read to the end, because SimpleITK reads truncated ones without an error.
    """
    if not os.path.exists(file):
        return "is a link to a file that does not exist; restore that file, or remove the link"
    if not os.path.isfile(file):  # reading a pipe or a device need not end
        return "is no ordinary file; replace it by an image, or remove it"
    with open(file, "rb") as stream:
        start = stream.read(2)
    if not start:
        return f"is empty; {AGAIN}"
    if not file.endswith((".nii", ".gz", ".gipl")):
        return None
    try:
        with (gzip.open if start == b"\x1f\x8b" else open)(file, "rb") as stream:
            header = stream.read(348)
            size = len(header)
            while block := stream.read(1 << 24):
                size += len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return f"is cut off or damaged; {AGAIN}"
    smallest = _gipl_size(header) if file.endswith(".gipl") else _nifti_size(header)
    return f"is cut off; {AGAIN}" if size < smallest else None


@contextmanager
def whole(file: str) -> Iterator[None]:
    """Check that a block writes a whole file: on a full disk SimpleITK raises errors of its own, or none at all.

    Raises:
        OSError: The file could not be written, or not to its end.
    """
    try:
        yield
    except RuntimeError as error:
        if "ITK" not in str(error):
            raise
        reason = " ".join(str(error).split())
    else:
        if find_file_defect(file) is None:
            return
        reason = "it is cut off"
    raise OSError(
        f"Cannot write {file} ({reason}), most often because the disk is full; make room and run the same command again"
    )


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _times(numbers: Iterable[object]) -> str:
    return " x ".join(map(str, numbers))


def _channels(number: int) -> list[str]:
    return [f"{channel:04d}" for channel in range(number)]


def _wrong_channels(channels: Sequence[str], num_channels: int, hint: str = "") -> str:
    needed = shorten(_channels(num_channels))
    return f"has the channels {shorten(channels)}{hint}, but needs {needed}; export it with these, or remove it"


def _nifti_size(header: bytes) -> int:
    """Return the smallest possible size of a NIfTI file in bytes according to its header, 0 for other files."""
    for order in "<>":
        if header[:4] == struct.pack(f"{order}i", 348):
            fields = struct.unpack_from(f"{order}8h 16x h 34x f", header.ljust(348, b"\0"), 40)
            dimensions, *sizes, bits, offset = fields
            if not math.isfinite(offset):
                return sys.maxsize  # no file is as long as this header says
            return max(348, int(offset) + math.prod(sizes[:dimensions]) * bits // 8)
    return 0


def _gipl_size(header: bytes) -> int:
    """Return the size of a GIPL file in bytes according to its header, 0 for other files and types of pixels."""
    if header[252:256] not in (b"\xef\xff\xe9\xb0", b"\x2a\xe3\x89\xb8"):
        return 0
    *sizes, pixel_type = struct.unpack_from(">5H", header)
    pixel_size = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}.get(pixel_type, 0)
    return 256 + math.prod(max(1, size) for size in sizes) * pixel_size
