"""Checks that the labeled cases of a fold are there and intact, before a training takes time."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import find_damaged, is_image
from nnunetv2_micd.utils.files import shorten

MEANINGS = {"train": "labeled training case", "val": "validation case"}


def check_labeled_cases(
    dataset: Dataset,
    configuration: str,
    fold: int | str,
    key: Literal["train", "val"],
    cases: Sequence[str],
    is_blosc2: bool = True,
) -> None:
    """Check the training or validation cases of a fold. Of each image only the header is read.

    Args:
        dataset: Dataset with the plans of the training.
        configuration: Name of the configuration.
        fold: Number of the fold, or ``"all"``; only for the message.
        key: Key of the fold's entry in ``splits_final.json`` that lists the cases.
        cases: Identifiers of the cases.
        is_blosc2: Whether the cases are ``.b2nd`` files. nnU-Net's older formats have no header to check.

    Raises:
        ValueError: There are no cases, or some are missing or damaged. The message says what to do.
    """
    if not cases:
        raise ValueError(f"Fold {fold} has no {MEANINGS[key]}: add some to its '{key}' entry in {dataset.splits_file}.")
    if not is_blosc2:
        return
    damaged = find_damaged_labeled(dataset, configuration, cases)
    if damaged:
        raise ValueError(
            f"Preprocessed labeled cases in {dataset.labeled_folder(configuration)} are missing or damaged "
            f"({shorten(damaged)}); correct the split or run: nnUNetv2_preprocess -d {dataset.number} "
            f"-plans_name {dataset.plans.plans_name} -c {configuration}"
        )


def find_damaged_labeled(dataset: Dataset, configuration: str, cases: Sequence[str]) -> list[str]:
    """Return the labeled cases of which image, segmentation or properties are missing or damaged."""
    folder = dataset.labeled_folder(configuration)
    damaged = set(find_damaged(folder, cases, dataset.dataset_json))
    damaged |= {
        case for case in cases if not (is_image(folder / f"{case}_seg.b2nd") and _is_pickle(folder / f"{case}.pkl"))
    }
    return sorted(damaged)


def _is_pickle(file: Path) -> bool:
    """Return True if a file ends as a pickle does, so that it is not empty or cut off."""
    try:
        with open(file, "rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read() == pickle.STOP
    except OSError:
        return False
