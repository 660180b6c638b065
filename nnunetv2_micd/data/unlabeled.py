"""Finds the unlabeled images of a training and where their preprocessed data lies.

There are two sources. Images without labels (raw: ``imagesUn``) are preprocessed into a folder beside the labeled one,
because nnU-Net takes every case in the labeled folder for a labeled one. An entry of ``splits_final.json`` may also
list labeled cases under ``"unlabeled"``: these are used as if they had no label. No label is opened here, and of each
image only the header is read.
"""

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_raw

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import find_damaged, find_unfinished, list_preprocessed, read_fingerprint
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images
from nnunetv2_micd.data.sources import find_defects, find_gone, find_replaced, read_sources
from nnunetv2_micd.data.splits import SPLITS_FILE, Entry
from nnunetv2_micd.utils.files import shorten


@dataclass(frozen=True)
class UnlabeledCase:
    """A preprocessed image without a label.

    Attributes:
        identifier: Name of the case.
        folder: Folder of its files: ``<identifier>.b2nd`` holds the image, ``<identifier>.pkl`` its properties.

    Examples:
        >>> case = UnlabeledCase("image_0", "Dataset004_Hippocampus/nnUNetPlans_3d_fullres_unlabeled")
        >>> case.identifier
        'image_0'
    """

    identifier: str
    folder: str


def find_unlabeled_cases(dataset: Dataset, configuration: str, entry: Entry) -> list[UnlabeledCase]:
    """Find the unlabeled images that a training may use.

    Args:
        dataset: Dataset with the plans of the training.
        configuration: Name of the configuration.
        entry: Cases of the fold under ``train``, ``val`` and, optionally, ``unlabeled``.

    Returns:
        Cases of both sources, sorted by identifier; at least one.

    Raises:
        ValueError: There are none, or one is also a training or validation case, is missing or damaged, or was
            preprocessed with other plans. The message says what to do.

    Examples:
        >>> dataset = Dataset.find(4)  # doctest: +SKIP
        >>> cases = find_unlabeled_cases(dataset, "3d_fullres", dataset.splits()[0])  # doctest: +SKIP
    """
    # The folder tells later whether a case has a label, so its name must not depend on how the variable is written.
    labeled_folder = os.path.normpath(dataset.labeled_folder(configuration))
    folder = str(dataset.unlabeled_folder(configuration))
    command = f"nnUNetv2_micd preprocess -d {dataset.number} -c {configuration} -p {dataset.plans.plans_name}"
    labeled, hidden = {*entry["train"], *entry["val"]}, entry.get("unlabeled", [])
    preprocessed = list_preprocessed(folder)
    _check_not_labeled(preprocessed, folder, labeled)
    _check_preprocessed(preprocessed, folder, dataset, configuration, command)
    _check_hidden(hidden, labeled_folder, dataset, {*labeled, *preprocessed})
    sources = read_sources(folder)
    not_preprocessed = set(raw_cases(dataset)) - set(preprocessed)
    defects = find_defects(sources, sorted(not_preprocessed))
    missing = sorted(not_preprocessed - set(defects))
    gone = find_gone(sources, preprocessed)
    # Of replaced images that are being preprocessed again, or should have been, no properties are left.
    replaced = sorted({*find_replaced(sources, preprocessed), *find_unfinished(folder, preprocessed)})
    cases = [UnlabeledCase(name, folder) for name in preprocessed if name not in set(gone)]
    cases += [UnlabeledCase(name, labeled_folder) for name in dict.fromkeys(hidden)]
    if not cases and missing:
        raise ValueError(f"The unlabeled images are not preprocessed yet ({shorten(missing)}); run: {command}")
    if not cases and defects:
        raise ValueError(
            f"None of the unlabeled images could be preprocessed; mend these, then run {command} : {_describe(defects)}"
        )
    if not cases:
        raise ValueError(
            f"There are no unlabeled images: put some into {IMAGES_FOLDER} of the raw dataset and run: {command} ; or "
            "train a fold that uses labeled cases without their labels, see: nnUNetv2_micd split -h"
        )
    if missing:
        warnings.warn(
            f"Images in {IMAGES_FOLDER} are not preprocessed and not used ({shorten(missing)}); to use them, run: "
            f"{command}",
            stacklevel=2,
        )
    if defects:
        warnings.warn(
            f"Images in {IMAGES_FOLDER} could not be preprocessed and are not used: {_describe(defects)}",
            stacklevel=2,
        )
    if gone:
        warnings.warn(
            f"Preprocessed images are not used, because their raw files are gone ({shorten(gone)}); to remove them for "
            f"good, run: {command}",
            stacklevel=2,
        )
    if replaced:
        warnings.warn(
            f"Raw files have changed since they were preprocessed ({shorten(replaced)}); to train on the new ones, "
            f"run: {command}",
            stacklevel=2,
        )
    return sorted(cases, key=lambda case: case.identifier)


def _describe(defects: Mapping[str, str]) -> str:
    return shorten([f"{case} ({defect})" for case, defect in defects.items()])


def _check_preprocessed(
    preprocessed: Sequence[str], folder: str, dataset: Dataset, configuration: str, command: str
) -> None:
    """Check that the preprocessed images fit the plans and are intact."""
    if preprocessed and read_fingerprint(folder) != dataset.fingerprint(configuration):
        raise ValueError(
            f"The unlabeled images in {folder} were preprocessed with other plans than those of this training; "
            f"preprocess them again: {command}{_other_folders(preprocessed, folder, dataset)} --overwrite"
        )
    damaged = find_damaged(folder, preprocessed, dataset.dataset_json)
    if damaged:
        raise ValueError(
            f"Preprocessed unlabeled images in {folder} are damaged ({shorten(damaged)}); delete their .b2nd and .pkl "
            f"files, or preprocess them again: {command}"
        )


def _other_folders(preprocessed: Sequence[str], folder: str, dataset: Dataset) -> str:
    """Return the option that names the folders of the raw images, where they are not in ``imagesUn`` alone."""
    sources = read_sources(folder)
    folders = sorted({sources[case].folder for case in preprocessed if case in sources})
    if all(Path(folder).parts[-2:] == (dataset.name, IMAGES_FOLDER) for folder in folders):
        return ""
    return " -i " + " ".join(map(shlex.quote, folders))


def _check_not_labeled(preprocessed: Sequence[str], folder: str, labeled: set[str]) -> None:
    both = sorted(labeled.intersection(preprocessed))
    if both:
        raise ValueError(
            f"Unlabeled images are also labeled cases of this fold ({shorten(both)}); if they have a label now, delete "
            f"their .b2nd and .pkl files in {folder}"
        )


def _check_hidden(hidden: Sequence[str], labeled_folder: str, dataset: Dataset, others: set[str]) -> None:
    """Check the labeled cases that are used without their labels."""
    both = sorted(others.intersection(hidden))
    if both:
        raise ValueError(
            f'Cases under "unlabeled" in {SPLITS_FILE} are also training, validation or {IMAGES_FOLDER} cases '
            f"({shorten(both)}); a case can be only one of these"
        )
    absent = find_damaged(labeled_folder, hidden, dataset.dataset_json)
    if absent:
        raise ValueError(
            f'Cases under "unlabeled" in {SPLITS_FILE} have no data in {labeled_folder} or damaged data '
            f"({shorten(absent)}); correct the split or run: nnUNetv2_preprocess -d {dataset.number} "
            f"-plans_name {dataset.plans.plans_name}"
        )


def raw_cases(dataset: Dataset) -> list[str]:
    """Return the raw unlabeled images; none if the raw data is not on the machine of the training."""
    if not nnUNet_raw.get():
        return []
    folder = os.path.join(str(nnUNet_raw), dataset.name, IMAGES_FOLDER)
    try:
        return list(group_images(folder, dataset.file_ending)) if os.path.isdir(folder) else []
    except PermissionError:  # nor are they needed
        return []
