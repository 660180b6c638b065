"""Which images are unlabeled, and where their preprocessed data lies.

There are two sources. Images without labels (raw: ``imagesUn``) are preprocessed into a folder beside the labeled one,
because nnU-Net takes every case in the labeled folder for a labeled one. And an entry of ``splits_final.json`` may name
labeled cases under ``"unlabeled"``: these are used as if they had no label. No label is opened here, and of an image
only the header is read.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_raw

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import (
    find_damaged,
    list_preprocessed,
    preprocessing_fingerprint,
    read_fingerprint,
)
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images
from nnunetv2_micd.data.splits import Entry
from nnunetv2_micd.utils.files import shorten


@dataclass(frozen=True)
class UnlabeledCase:
    """One preprocessed image: its data is ``<folder>/<identifier>.b2nd``, its properties ``<identifier>.pkl``."""

    identifier: str
    folder: str


def find_unlabeled_cases(dataset: Dataset, configuration: str, entry: Entry) -> list[UnlabeledCase]:
    """Find the unlabeled images that a training may use.

    Args:
        dataset: the dataset with the plans of the training.
        configuration: name of the configuration.
        entry: the fold: its cases under ``train``, ``val`` and, optionally, ``unlabeled``.

    Returns:
        The cases of both sources, sorted by identifier; never empty.

    Raises:
        ValueError: there are none; one is also a training or validation case; one has no data or damaged data; or the
            images were preprocessed with other plans. The message says what to do.
    """
    labeled_folder = str(dataset.labeled_folder(configuration))
    folder = str(dataset.unlabeled_folder(configuration))
    command = f"nnUNetv2_micd preprocess -d {dataset.number} -c {configuration} -p {dataset.plans.plans_name}"
    labeled, hidden = {*entry["train"], *entry["val"]}, entry.get("unlabeled", [])
    preprocessed = list_preprocessed(folder)
    fingerprint = preprocessing_fingerprint(dataset.plans, dataset.configuration(configuration), dataset.dataset_json)
    if preprocessed and read_fingerprint(folder) != fingerprint:
        raise ValueError(
            f"The unlabeled images in {folder} were preprocessed with other plans than those of this training; "
            f"preprocess them again: {command} --overwrite"
        )
    _check_preprocessed(preprocessed, folder, labeled)
    damaged = find_damaged(folder, preprocessed, dataset.dataset_json)
    if damaged:
        raise ValueError(
            f"Preprocessed unlabeled images in {folder} are damaged ({shorten(damaged)}); delete their .b2nd and .pkl "
            f"files, or preprocess them again: {command}"
        )
    _check_split(hidden, labeled_folder, dataset, {*labeled, *preprocessed})
    missing = sorted(set(_raw_cases(dataset)) - set(preprocessed))
    cases = [UnlabeledCase(name, folder) for name in preprocessed]
    cases += [UnlabeledCase(name, labeled_folder) for name in dict.fromkeys(hidden)]
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


def _check_preprocessed(preprocessed: Sequence[str], folder: str, others: set[str]) -> None:
    both = sorted(others.intersection(preprocessed))
    if both:
        raise ValueError(
            f"Unlabeled images are also labeled cases of this fold ({shorten(both)}); if they have a label now, delete "
            f"their .b2nd and .pkl files in {folder}"
        )


def _check_split(hidden: Sequence[str], labeled_folder: str, dataset: Dataset, others: set[str]) -> None:
    both = sorted(others.intersection(hidden))
    if both:
        raise ValueError(
            f'Cases under "unlabeled" in splits_final.json are also training, validation or {IMAGES_FOLDER} cases '
            f"({shorten(both)}); a case can be only one of these"
        )
    absent = find_damaged(labeled_folder, hidden, dataset.dataset_json)
    if absent:
        raise ValueError(
            f'Cases under "unlabeled" in splits_final.json have no data in {labeled_folder} or damaged data '
            f"({shorten(absent)}); correct the split or run: nnUNetv2_preprocess -d {dataset.number}"
        )


def _raw_cases(dataset: Dataset) -> list[str]:
    """Return the raw unlabeled images; none if the raw data is not on the machine that trains."""
    if not nnUNet_raw.get():
        return []
    folder = Path(str(nnUNet_raw), dataset.name, IMAGES_FOLDER)
    return list(group_images(str(folder), dataset.dataset_json["file_ending"])) if folder.is_dir() else []
