"""Preprocessed images on disk: where they lie, which are damaged, and how they were preprocessed."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_micd.utils.files import read_json

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

FINGERPRINT_FILE = "unlabeled.json"
"""File beside the preprocessed unlabeled images that records how they were preprocessed."""


def unlabeled_folder(labeled_folder: str | os.PathLike[str]) -> str:
    """Return the folder of the preprocessed unlabeled images, beside nnU-Net's folder of the labeled ones."""
    return os.path.normpath(labeled_folder) + "_unlabeled"


def preprocessing_fingerprint(
    plans_manager: "PlansManager", configuration_manager: "ConfigurationManager", dataset_json: dict[str, Any]
) -> str:
    """Return a hash of all settings that change the voxels of a preprocessed image.

    The patch size is left out: it decides how a file is chunked, not what is in it. So is the name of the plans: in
    nnU-Net, too, plans that differ only in network or patch size share their preprocessed data.
    """
    configuration = configuration_manager.configuration
    names = ("spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name")
    settings = {name: configuration.get(name) for name in (*names, "resampling_fn_data", "resampling_fn_data_kwargs")}
    settings["transpose_forward"] = plans_manager.transpose_forward
    settings["image_reader_writer"] = plans_manager.plans["image_reader_writer"]
    settings["intensities"] = plans_manager.foreground_intensity_properties_per_channel
    settings["channels"] = channel_names(dataset_json)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def channel_names(dataset_json: dict[str, Any]) -> dict[str, str]:
    """Return the channels of ``dataset.json``, called ``modality`` in older datasets."""
    return dict(dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"])


def read_fingerprint(folder: str | os.PathLike[str]) -> str | None:
    """Return the fingerprint of the images in a folder, or None if the record is missing or damaged."""
    try:
        return str(read_json(Path(folder, FINGERPRINT_FILE))["fingerprint"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def list_preprocessed(folder: str | os.PathLike[str]) -> list[str]:
    """Return the sorted identifiers of the images in a folder; none if there is no such folder."""
    if not os.path.isdir(folder):
        return []
    names = (name.removesuffix(".b2nd") for name in os.listdir(folder) if name.endswith(".b2nd"))
    # macOS leaves a hidden file beside each file on foreign disks.
    return sorted(name for name in names if not name.endswith("_seg") and not name.startswith("."))


def find_unfinished(folder: str | os.PathLike[str], cases: Sequence[str]) -> list[str]:
    """Return the preprocessed images without the file of their properties, which is written last."""
    properties = {name.removesuffix(".pkl") for name in os.listdir(folder)} if cases else set()
    return [case for case in cases if case not in properties]


def find_damaged(folder: str | os.PathLike[str], cases: Sequence[str], dataset_json: dict[str, Any]) -> list[str]:
    """Return the preprocessed images that are missing, truncated or not in nnU-Net's format. Reads only headers."""
    num_channels = len(channel_names(dataset_json))
    return [case for case in cases if not is_image(os.path.join(folder, f"{case}.b2nd"), num_channels, "f")]


def is_image(file: str | os.PathLike[str], num_channels: int = 1, kinds: str = "fiu") -> bool:
    """Return True for an intact file of nnU-Net's format, judged by its header.

    Args:
        file: File of an image or a segmentation.
        num_channels: Number of its channels.
        kinds: Kinds of numbers that it may hold, as NumPy names them.
    """
    import blosc2  # here because it takes a third of a second, and listing folders does not need it

    try:
        image = blosc2.open(str(file), mode="r")
        return image.ndim == 4 and image.shape[0] == num_channels and all(image.shape) and image.dtype.kind in kinds
    except Exception:  # blosc2 raises various types for damaged files
        return False
