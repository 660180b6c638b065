"""Compares the orientations of images, which most of nnU-Net's readers do not look at.

Of an image that is saved flipped, or with its axes in another order, they give the voxels as they lie in the file. An
orientation is the ``(3, 3)`` matrix of the directions of an image's axes, unit vectors as columns.
"""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_micd.data.preprocessed import list_preprocessed
from nnunetv2_micd.utils.files import shorten

if TYPE_CHECKING:
    from nnunetv2_micd.data.dataset import Dataset

NUMPY_NAMES = ("_frombuffer", "_reconstruct", "dtype", "ndarray", "scalar")
"""What pickles of NumPy's numbers and arrays name."""

LEAST_TRACE = 1 + math.sqrt(2)
"""Trace of a rotation by 45 degrees, halfway to other axes. Oblique images of one kind differ by less."""


def describe_turned(dataset: "Dataset", configuration: str) -> tuple[str, str] | None:
    """Say which preprocessed unlabeled images lie in another orientation than every labeled case, and what to do.

    Most often the first labeled case is like all of them, and no other is read.

    Args:
        dataset: Dataset with the plans.
        configuration: Name of a configuration whose images are preprocessed.

    Returns:
        What is wrong and what to do, or None if nothing is, or if no orientation is known.
    """
    reader = dataset.plans.image_reader_writer_class
    if reader not in (SimpleITKIO, NibabelIO):  # the others turn all images alike, or read files without orientation
        return None
    turned, is_known = _read_orientations(dataset.unlabeled_folder(configuration)), False
    folder = dataset.labeled_folder(configuration)
    for case in list_preprocessed(folder):
        if not turned:
            break
        if (labeled := _read_orientation(folder / f"{case}.pkl")) is not None:
            turned = {name: its for name, its in turned.items() if not are_alike(its, labeled)}
            is_known = True
    if not (turned and is_known):
        return None
    return (
        f"unlabeled images in another orientation than every labeled one ({shorten(sorted(turned))}), which "
        f"{reader.__name__} of nnU-Net does not correct: a network sees them flipped or turned",
        f'convert them, or set "overwrite_image_reader_writer": "{reader.__name__}WithReorient" in '
        f"dataset.json of the raw dataset, and run: {dataset.plan_command} ; then: "
        f"{dataset.preprocess_command} --overwrite",
    )


def orientation(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Return the orientation of an image as nnU-Net read it; None for a 2D image, or a file without orientation.

    Args:
        properties: Properties of the image, from nnU-Net's reader.
    """
    if "sitk_stuff" in properties:
        direction = np.array(properties["sitk_stuff"]["direction"])
        matrix = direction.reshape(math.isqrt(len(direction)), -1)
    elif "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        matrix = affines.get("reoriented_affine", affines["original_affine"])
    else:
        return None
    axes = matrix[:3, :3]
    return axes / np.linalg.norm(axes, axis=0) if len(matrix) > 2 else None


def are_alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Return True unless two orientations differ by other axes or signs, up to rotations by less than 45 degrees."""
    return bool(np.trace(first.T @ second) > LEAST_TRACE)


def _read_orientations(folder: Path) -> dict[str, np.ndarray]:
    found = {case: _read_orientation(folder / f"{case}.pkl") for case in list_preprocessed(folder)}
    return {case: its for case, its in found.items() if its is not None}


def _read_orientation(file: Path) -> np.ndarray | None:
    try:
        with open(file, "rb") as stream:
            return orientation(_DataUnpickler(stream).load())
    except Exception:  # a damaged pickle raises any type of error; other checks are there to report it
        return None


class _DataUnpickler(pickle.Unpickler):
    """Reads numbers, text and arrays. Anything else in a pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in NUMPY_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")
