"""Folds in which only a few cases keep their labels, to measure what the other images are worth without labels."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from nnunetv2_micd.data.folders import labeled_folders, preprocessed_folder
from nnunetv2_micd.data.groups import group_cases, load_groups
from nnunetv2_micd.data.splits import (
    SPLITS_FILE,
    SPLITS_SEED,
    Entry,
    default_splits,
    load_splits,
    lock_splits,
    write_splits,
)


def add_budget_splits(
    dataset_name: str, count: str, seeds: Sequence[int] = (0,), val_fraction: float = 0.2
) -> list[tuple[int, int, Entry]]:
    """Add one fold for each seed to ``splits_final.json``, in which only some training cases keep their labels.

    For one seed, a larger budget contains the labeled cases of every smaller one. Existing entries stay.
    If there is no file yet, nnU-Net's five default folds come first, so that folds 0 to 4 keep their usual meaning.
    If the dataset has groups (see `data.groups`), groups are drawn and counted instead of cases.

    Args:
        dataset_name: Full name of a preprocessed dataset.
        count: Number of labeled cases, such as ``"6"``, or a share of the cases outside validation, such as ``"10%"``.
        seeds: One seed for each fold; each draws other labeled cases.
        val_fraction: Share of the cases for validation, between 0 and 1.

    Returns:
        Fold number, seed and entry for each seed. An entry that existed before is listed, too.

    Raises:
        ValueError: ``count`` is malformed, a seed is given twice, or no labeled, unlabeled or validation case is left.
        OSError: The dataset is not preprocessed, or the file cannot be written.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"A seed is given twice ({' '.join(map(str, seeds))}), which would be the same fold; name it once"
        )
    cases = list_cases(dataset_name)
    path = preprocessed_folder(dataset_name) / SPLITS_FILE
    groups = load_groups(dataset_name)
    entries = [make_entry(cases, count, seed, val_fraction, groups) for seed in seeds]
    splits = load_splits(path) if path.is_file() else []
    if any(entry not in splits for entry in entries):  # otherwise nothing is written, and the disk may be read-only
        with lock_splits(path):
            splits = load_splits(path) if path.is_file() else default_splits(cases, groups)
            splits += [entry for entry in entries if entry not in splits]
            write_splits(splits, path)
    return [(splits.index(entry), seed, entry) for seed, entry in zip(seeds, entries, strict=True)]


def list_cases(dataset_name: str) -> list[str]:
    """Return the sorted labeled cases, which nnU-Net splits into folds.

    Raises:
        ValueError: The configurations hold different cases, so that a fold would depend on the configuration.
        FileNotFoundError: There are no preprocessed cases.
    """
    folders = labeled_folders(dataset_name)
    first_folder, cases = next(iter(folders.items()))
    for folder, other_cases in folders.items():
        if other_cases != cases:
            raise ValueError(
                f"The preprocessed folders {first_folder} and {folder} of {dataset_name} hold different cases "
                f"({len(cases)} and {len(other_cases)}); preprocess again or delete the one that is out of date"
            )
    return cases


def make_entry(
    cases: Sequence[str], count: str, seed: int, val_fraction: float, groups: Mapping[str, str] | None = None
) -> Entry:
    """Divide sorted cases into labeled, validation and unlabeled ones; see `add_budget_splits` for the arguments.

    Args:
        cases: Sorted cases.
        count: Number or share of labeled cases, or of groups if there are some.
        seed: Seed that draws them, 0 to 2**32 - 1.
        val_fraction: Share of the cases, or groups, for validation.
        groups: Group of each case; None or empty if each case stands for itself.
    """
    grouped = group_cases(cases, groups or {})
    check_seed(seed)
    if not 0 < val_fraction < 1:
        raise ValueError(f"The share of validation cases must lie between 0 and 1, not {val_fraction}")
    num_val = max(1, round(val_fraction * len(grouped)))
    # The validation cases do not depend on the seed of the fold, so results of all budgets and seeds are comparable.
    shuffled = np.random.RandomState(SPLITS_SEED).permutation(list(grouped)).tolist()
    val, rest = shuffled[:num_val], sorted(shuffled[num_val:])
    num_labeled = _parse_count(count, len(rest), "groups of cases" if groups else "cases")
    shuffled = np.random.RandomState(seed).permutation(rest).tolist()
    parts = {"train": shuffled[:num_labeled], "val": val, "unlabeled": shuffled[num_labeled:]}
    return {key: sorted(case for unit in units for case in grouped[unit]) for key, units in parts.items()}


def check_seed(seed: int) -> None:
    """Raise a ``ValueError`` if NumPy does not take this seed."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"A seed must lie between 0 and {2**32 - 1}, not {seed}")


def _parse_count(count: str, num_cases: int, unit: str) -> int:
    """Return the number of labeled cases or groups, at least one and fewer than ``num_cases``."""
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)%", count)
    if match is None or float(match[1] or match[2]) <= 0:
        raise ValueError(f'The number of labeled cases must be like "6" or "10%", not "{count}"')
    number = int(match[1]) if match[1] else max(1, round(float(match[2]) / 100 * num_cases))
    if number >= num_cases:
        raise ValueError(
            f"{count} labeled {unit} leave none whose labels could be hidden: besides those for validation there are "
            f"{num_cases}; label fewer, or hold fewer back with --val"
        )
    return number
