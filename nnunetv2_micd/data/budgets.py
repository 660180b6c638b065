"""Splits that use the labels of a few cases only, to see what the other cases are worth without theirs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunetv2_micd.data.folders import find_dataset, labeled_folders, preprocessed_folder
from nnunetv2_micd.data.splits import Entry, default_splits, load_splits, write_splits

VALIDATION_SEED = 12345
"""nnU-Net's own seed for splits. The same validation cases for all budgets and seeds make the results comparable."""


def add_budget_splits(
    dataset: str | int, count: str, seeds: Sequence[int] = (0,), val_fraction: float = 0.2
) -> list[tuple[int, int, Entry]]:
    """Add to ``splits_final.json`` one entry for each seed in which only some training cases keep their labels.

    The labeled cases of one seed are nested: those of a small budget are among those of a larger one. Entries that are
    there stay as they are; where there is no file yet, nnU-Net's default entries come first, so that folds 0 to 4 mean
    what they always do.

    Args:
        dataset: name or number of the dataset.
        count: how many cases keep their labels, ``"6"``, or ``"10%"`` of the cases that are not for validation.
        seeds: one entry for each; different seeds draw different labeled cases.
        val_fraction: the share of the cases for validation, between 0 and 1.

    Returns:
        For each seed the fold, the seed and the entry, also where the entry was there before.

    Raises:
        ValueError: the arguments leave no labeled, no unlabeled or no validation case, or are no numbers.
        OSError: the dataset is not preprocessed, or the file cannot be written.
    """
    name = find_dataset(dataset)
    cases = list_cases(name)
    path = Path(preprocessed_folder(name), "splits_final.json")
    splits = load_splits(str(path)) if path.is_file() else default_splits(cases)
    before = len(splits) if path.is_file() else 0
    added = []
    for seed in seeds:
        entry = make_entry(cases, count, seed, val_fraction)
        if entry not in splits:
            splits.append(entry)
        added.append((splits.index(entry), seed, entry))
    if len(splits) > before:
        write_splits(splits, path)
    return added


def list_cases(dataset_name: str) -> list[str]:
    """Return the cases that nnU-Net would split, which must not depend on the configuration that is trained."""
    folders = labeled_folders(dataset_name)
    first, cases = next(iter(folders.items()))
    for folder, others in folders.items():
        if others != cases:
            raise ValueError(
                f"The preprocessed folders {first} and {folder} of {dataset_name} hold different cases "
                f"({len(cases)} and {len(others)}); preprocess again or delete the one that is out of date"
            )
    return cases


def make_entry(cases: list[str], count: str, seed: int, val_fraction: float) -> Entry:
    """Divide sorted cases; see :func:`add_budget_splits` for what the arguments mean and what is raised."""
    if not 0 < val_fraction < 1:
        raise ValueError(f"The share of validation cases must lie between 0 and 1, not {val_fraction}")
    num_val = max(1, round(val_fraction * len(cases)))
    order = np.random.RandomState(VALIDATION_SEED).permutation(cases).tolist()
    val, rest = order[:num_val], sorted(order[num_val:])
    num_labeled = _parse_count(count, len(rest))
    order = np.random.RandomState(seed).permutation(rest).tolist()
    return {
        "train": sorted(order[:num_labeled]),
        "val": sorted(val),
        "unlabeled": sorted(order[num_labeled:]),
    }


def _parse_count(count: str, num_cases: int) -> int:
    """Return the number of labeled cases, at least one and fewer than ``num_cases``."""
    try:
        is_percent = count.endswith("%")
        number = max(1, round(float(count[:-1]) / 100 * num_cases)) if is_percent else int(count)
        if float(count.rstrip("%")) <= 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f'The number of labeled cases must be like "6" or "10%", not "{count}"') from None
    if number >= num_cases:
        raise ValueError(
            f"{count} labeled cases leave none unlabeled: besides the validation cases there are {num_cases}"
        )
    return number
