"""Which images are unlabeled, and where their preprocessed data lies.

There are two sources. Images without labels (raw: ``imagesUn``) are preprocessed into a folder beside the labeled one,
because nnU-Net takes every case in the labeled folder for a labeled one. And an entry of ``splits_final.json`` may name
labeled cases under ``"unlabeled"``: these are used as if they had no label. Nothing here opens a label, and of an image
only its header is read.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_micd.data.raw_images import group_images, shorten

IMAGES_FOLDER = "imagesUn"
"""The folder of a raw dataset that holds the images without labels, named like nnU-Net's ``imagesTr``."""

FINGERPRINT_FILE = "unlabeled.json"
"""The file in the folder of the preprocessed images that says which preprocessing made them."""


@dataclass(frozen=True)
class UnlabeledCase:
    """One preprocessed image: its data is ``<folder>/<identifier>.b2nd``, its properties ``<identifier>.pkl``."""

    identifier: str
    folder: str


def unlabeled_folder(labeled_folder: str) -> str:
    """Return the folder of the preprocessed unlabeled images that belongs to nnU-Net's folder of labeled ones."""
    return os.path.normpath(labeled_folder) + "_unlabeled"


def preprocessing_fingerprint(
    plans_manager: PlansManager, configuration_manager: ConfigurationManager, dataset_json: dict[str, Any]
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
    try:
        image = blosc2.open(file, mode="r")
        return image.ndim == 4 and image.shape[0] == num_channels and all(image.shape) and image.dtype.kind == "f"
    except Exception:  # whatever blosc2 makes of a damaged file
        return False


def load_splits(splits_file: str) -> list[dict[str, list[str]]]:
    """Return the entries of ``splits_final.json``.

    Raises:
        ValueError: the file is not as nnU-Net and this package need it.
    """
    expected = f'{splits_file} is not a list of {{"train": [...], "val": [...]}}'
    try:
        splits = json.loads(Path(splits_file).read_text())
    except ValueError as error:
        name = os.path.basename(splits_file)
        raise ValueError(f"{expected}, as {name} is not valid JSON ({error}); correct it or delete it") from None
    if not isinstance(splits, list):
        raise ValueError(f"{expected}; correct it or delete it")
    for fold, entry in enumerate(splits):
        if not isinstance(entry, dict) or not {"train", "val"} <= entry.keys():
            raise ValueError(f"{expected}, see fold {fold}; correct it or delete it")
        for key in ("train", "val", "unlabeled"):
            cases = entry.get(key, [])
            if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
                raise ValueError(f'"{key}" of fold {fold} in {splits_file} is not a list of names of cases; correct it')
    return splits


def load_split_unlabeled(splits_file: str, fold: int | str) -> list[str]:
    """Return the cases that the entry ``fold`` of ``splits_final.json`` uses without their labels, often none.

    Raises:
        ValueError: see `load_splits`.
    """
    if not isinstance(fold, int) or not os.path.isfile(splits_file):
        return []
    splits = load_splits(splits_file)
    return list(splits[fold].get("unlabeled", [])) if fold < len(splits) else []


def find_unlabeled_cases(
    labeled_folder: str,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict[str, Any],
    train: Sequence[str],
    val: Sequence[str],
    split_unlabeled: Sequence[str] = (),
) -> list[UnlabeledCase]:
    """Find the unlabeled images that a training may use.

    Args:
        labeled_folder: nnU-Net's folder of preprocessed labeled cases, ``nnUNet_preprocessed/<dataset>/<identifier>``.
        plans_manager: the plans of the training.
        configuration_manager: the configuration of the training.
        dataset_json: the content of ``dataset.json``.
        train: identifiers of the labeled training cases.
        val: identifiers of the validation cases.
        split_unlabeled: identifiers in ``labeled_folder`` to use without their labels, see `load_split_unlabeled`.

    Returns:
        The cases of both sources, sorted by identifier; never empty.

    Raises:
        ValueError: there are none; one is also a training or validation case; one has no data or damaged data; or the
            images were preprocessed with other plans. The message says what to do.
    """
    labeled_folder = os.path.normpath(labeled_folder)
    folder = unlabeled_folder(labeled_folder)
    command = _preprocess_command(labeled_folder, plans_manager, configuration_manager)
    preprocessed = list_preprocessed(folder)
    if preprocessed and read_fingerprint(folder) != preprocessing_fingerprint(
        plans_manager, configuration_manager, dataset_json
    ):
        raise ValueError(
            f"The unlabeled images in {folder} were preprocessed with other plans than those of this training; "
            f"preprocess them again: {command} --overwrite"
        )
    _check_preprocessed(preprocessed, folder, {*train, *val})
    damaged = find_damaged(folder, preprocessed, dataset_json)
    if damaged:
        raise ValueError(
            f"Preprocessed unlabeled images in {folder} are damaged ({shorten(damaged)}); delete their .b2nd and .pkl "
            f"files, or preprocess them again: {command}"
        )
    _check_split(split_unlabeled, labeled_folder, dataset_json, {*train, *val, *preprocessed})

    missing = sorted(set(_raw_cases(labeled_folder, dataset_json)) - set(preprocessed))
    cases = [UnlabeledCase(name, folder) for name in preprocessed]
    cases += [UnlabeledCase(name, labeled_folder) for name in dict.fromkeys(split_unlabeled)]
    if not cases and missing:
        raise ValueError(f"The {len(missing)} unlabeled images are not preprocessed yet; run: {command}")
    if not cases:
        raise ValueError(
            f"There are no unlabeled images: put some into {IMAGES_FOLDER} of the raw dataset and run: {command} ; or "
            "train a fold that uses labeled cases without their labels, see: nnUNetv2_micd split -h"
        )
    if missing:
        warnings.warn(
            f"{len(missing)} of the images in {IMAGES_FOLDER} are not preprocessed and not used ({shorten(missing)}); "
            f"to use them, run: {command}",
            stacklevel=2,
        )
    return sorted(cases, key=lambda case: case.identifier)


def dataset_id(dataset_name: str) -> str:
    """Return the number in a dataset's name, as commands take it after ``-d``."""
    match = re.match(r"Dataset0*(\d+)_", dataset_name)
    return match[1] if match else dataset_name


def _check_preprocessed(preprocessed: Sequence[str], folder: str, others: set[str]) -> None:
    both = sorted(others.intersection(preprocessed))
    if both:
        raise ValueError(
            f"Unlabeled images are also labeled cases of this fold ({shorten(both)}); if they have a label now, delete "
            f"their .b2nd and .pkl files in {folder}"
        )


def _check_split(
    split_unlabeled: Sequence[str], labeled_folder: str, dataset_json: dict[str, Any], others: set[str]
) -> None:
    both = sorted(others.intersection(split_unlabeled))
    if both:
        raise ValueError(
            f'Cases under "unlabeled" in splits_final.json are also training, validation or {IMAGES_FOLDER} cases '
            f"({shorten(both)}); a case can be only one of these"
        )
    absent = find_damaged(labeled_folder, split_unlabeled, dataset_json)
    if absent:
        raise ValueError(
            f'Cases under "unlabeled" in splits_final.json have no data in {labeled_folder} or damaged data '
            f"({shorten(absent)}); correct the split or run: "
            f"nnUNetv2_preprocess -d {dataset_id(_dataset_name(labeled_folder))}"
        )


def _raw_cases(labeled_folder: str, dataset_json: dict[str, Any]) -> list[str]:
    """The raw data need not be on the machine that trains, so a missing folder only means that nothing is known."""
    if not nnUNet_raw.is_set():
        return []
    folder = os.path.join(nnUNet_raw, _dataset_name(labeled_folder), IMAGES_FOLDER)
    return list(group_images(folder, dataset_json["file_ending"])) if os.path.isdir(folder) else []


def _preprocess_command(
    labeled_folder: str, plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> str:
    # a configuration does not know its name; those that share a data identifier share the data, so any of them is right
    identifier = configuration_manager.data_identifier
    names = plans_manager.available_configurations
    name = next(name for name in names if plans_manager.get_configuration(name).data_identifier == identifier)
    dataset = dataset_id(_dataset_name(labeled_folder))
    return f"nnUNetv2_micd preprocess -d {dataset} -c {name} -p {plans_manager.plans_name}"


def _dataset_name(labeled_folder: str) -> str:
    return os.path.basename(os.path.dirname(labeled_folder))
