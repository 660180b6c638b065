"""Preprocessed images on disk: their folders, whether they are intact, and which preprocessing made them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

FINGERPRINT_FILE = "unlabeled.json"
"""The file in the folder of the preprocessed images that says which preprocessing made them."""


def unlabeled_folder(labeled_folder: str) -> str:
    """Return the folder of the preprocessed unlabeled images that belongs to nnU-Net's folder of labeled ones."""
    return os.path.normpath(labeled_folder) + "_unlabeled"


def preprocessing_fingerprint(
    plans_manager: "PlansManager", configuration_manager: "ConfigurationManager", dataset_json: dict[str, Any]
) -> str:
    """Return a hash of everything that the voxels of a preprocessed image depend on.

    The patch size is not among it (it decides how a file is chunked, not what is in it), nor is the name of the plans:
    plans that differ in network or patch size share their preprocessed data in nnU-Net too.
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
    """Return the channels of ``dataset.json``, which older datasets call ``modality``."""
    return dict(dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"])


def read_fingerprint(folder: str) -> str | None:
    """Return the fingerprint that the images in ``folder`` were preprocessed with, or None if it is not known."""
    try:
        return str(json.loads(Path(folder, FINGERPRINT_FILE).read_text())["fingerprint"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def list_preprocessed(folder: str) -> list[str]:
    """Return the sorted identifiers of the images in ``folder``; none if there is no such folder."""
    if not os.path.isdir(folder):
        return []
    names = (name.removesuffix(".b2nd") for name in os.listdir(folder) if name.endswith(".b2nd"))
    # a hidden file is what macOS leaves beside a file on foreign disks
    return sorted(name for name in names if not name.endswith("_seg") and not name.startswith("."))


def find_damaged(folder: str, cases: Sequence[str], dataset_json: dict[str, Any]) -> list[str]:
    """Return which preprocessed images are missing, cut off, or not such as nnU-Net writes; only headers are read."""
    num_channels = len(channel_names(dataset_json))
    return [case for case in cases if not _is_intact(os.path.join(folder, f"{case}.b2nd"), num_channels)]


def _is_intact(file: str, num_channels: int) -> bool:
    import blosc2  # takes most of a second

    try:
        image = blosc2.open(file, mode="r")
        return image.ndim == 4 and image.shape[0] == num_channels and all(image.shape) and image.dtype.kind == "f"
    except Exception:  # whatever blosc2 makes of a damaged file
        return False
