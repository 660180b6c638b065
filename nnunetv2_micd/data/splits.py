"""nnU-Net's ``splits_final.json``: one entry for each fold, with its training and validation cases.

An entry may also list cases under ``unlabeled``. Their images are used without their labels. nnU-Net ignores that key.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from nnunetv2_micd.data.groups import copy_groups, group_cases
from nnunetv2_micd.utils.files import atomic, read_json, shorten
from nnunetv2_micd.utils.locks import hold_lock

SPLITS_FILE = "splits_final.json"
"""Name of the file in the folder of the preprocessed dataset."""

SPLITS_SEED = 12345
"""nnU-Net's seed for splits."""

DEFAULT_FOLDS = 5

KEYS = ("train", "val", "unlabeled")
"""Lists of cases in an entry."""

Entry = dict[str, list[str]]


def load_splits(splits_file: str | os.PathLike[str]) -> list[Entry]:
    """Return the entries of ``splits_final.json``.

    Raises:
        ValueError: The file is not a list of folds with lists of case names.
    """
    expected = f'{splits_file} is not a list of {{"train": [...], "val": [...]}}'
    try:
        splits = read_json(splits_file)
    except ValueError as error:
        raise ValueError(f"{expected}: {error}; correct it or delete it") from None
    if not isinstance(splits, list):
        raise ValueError(f"{expected}; correct it or delete it")
    for fold, entry in enumerate(splits):
        if not isinstance(entry, dict) or not {"train", "val"} <= entry.keys():
            raise ValueError(f"{expected}, see fold {fold}; correct it or delete it")
        for key in KEYS:
            cases = entry.get(key, [])
            if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
                raise ValueError(f'"{key}" of fold {fold} in {splits_file} is not a list of names of cases; correct it')
            twice = sorted(case for case, count in Counter(cases).items() if count > 1)
            if twice:
                raise ValueError(
                    f'"{key}" of fold {fold} in {splits_file} names cases twice ({shorten(twice)}); correct it'
                )
        for key in sorted(entry.keys() - {*KEYS, "labeled"}):
            if meant := get_close_matches(key.lower(), KEYS, n=1):
                raise ValueError(f'Fold {fold} in {splits_file} has "{key}", which is spelled "{meant[0]}"; correct it')
    return splits


def load_split_unlabeled(splits_file: str | os.PathLike[str], fold: int | str) -> list[str]:
    """Return the cases that a fold of ``splits_final.json`` uses without their labels, often none.

    Args:
        splits_file: Path of the file, which need not exist.
        fold: Number of the fold, or ``"all"``, which never has such cases.

    Raises:
        ValueError: There is no such fold, for which nnU-Net would draw cases of its own; or see `load_splits`.
    """
    if isinstance(fold, int) and fold < 0:  # Python would count from the last one
        raise ValueError(f"There is no fold {fold}; folds count from 0")
    if not isinstance(fold, int) or not os.path.isfile(splits_file):
        return []
    splits = load_splits(splits_file)
    if not splits:
        raise ValueError(f"{splits_file} has no folds; delete it, and the next training makes nnU-Net's own")
    if fold >= len(splits):
        raise ValueError(f"{splits_file} has no fold {fold}, but folds 0 to {len(splits) - 1}; train one of these")
    return list(splits[fold].get("unlabeled", []))


def default_splits(cases: Sequence[str], groups: Mapping[str, str] | None = None) -> list[Entry]:
    """Return the five folds that nnU-Net makes of sorted cases when there is no file yet.

    Of two to four cases, of which nnU-Net makes none, each is the validation case of a fold. Groups of cases, such as
    those of a patient, are kept together, which nnU-Net does not do: then the folds are made of groups.

    Args:
        cases: The labeled cases, sorted.
        groups: Group of each case, see `data.groups`; None or empty if each case stands for itself.

    Raises:
        ValueError: There are fewer than two cases, or groups; or some of the cases have no group.

    Examples:
        >>> default_splits(["a", "b"])
        [{'train': ['b'], 'val': ['a']}, {'train': ['a'], 'val': ['b']}]
    """
    units = list(group_cases(cases, groups or {}).values())
    if len(units) < 2:
        raise ValueError(
            f"There is {len(units) or 'no'} {'group of labeled cases' if groups else 'labeled case'}, so none is left "
            "for validation; train with it as fold all, or label another"
        )
    # This is what scikit-learn's KFold does in nnU-Net's generate_crossval_split, but importing it takes a second.
    is_enough = len(units) >= DEFAULT_FOLDS
    order = np.random.RandomState(SPLITS_SEED).permutation(len(units)) if is_enough else range(len(units))
    folds = [
        {case for index in part for case in units[index]}
        for part in np.array_split(order, min(DEFAULT_FOLDS, len(units)))
    ]
    return [
        {
            "train": [case for case in cases if case not in validation],
            "val": [case for case in cases if case in validation],
        }
        for validation in folds
    ]


def can_nnunet_split(cases: Sequence[str], groups: Mapping[str, str]) -> bool:
    """Return True if nnU-Net makes folds of these cases by itself, and divides no group by them."""
    return len(group_cases(cases, groups)) == len(cases) >= DEFAULT_FOLDS


def write_folds_unlike_nnunet(cases: Sequence[str], path: Path, groups: Mapping[str, str]) -> int:
    """Write the folds of few cases or of groups, unless there are folds already or those of nnU-Net will do.

    Returns:
        Number of folds that were written.

    Raises:
        ValueError: See `default_splits`.
    """
    if path.is_file() or can_nnunet_split(cases, groups):
        return 0
    with lock_splits(path):
        if path.is_file():
            return 0
        folds = default_splits(cases, groups)
        write_splits(folds, path)
        return len(folds)


def lock_splits(path: Path) -> AbstractContextManager[None]:
    """Keep other processes from ``splits_final.json`` from before it is read until it is written."""
    path = _behind_links(path)
    return hold_lock(path.with_name(f".{path.name}.lock"), f"changing {path}")


def write_splits(splits: Sequence[Entry], path: Path) -> None:
    """Write ``splits_final.json``, and beside it the groups by which it was made; readers see no half of a file."""
    copy_groups(path.parent.name)
    with atomic(_behind_links(path)) as temporary:
        temporary.write_text(json.dumps(splits, indent=4) + "\n")


def _behind_links(path: Path) -> Path:
    """Return the file that a link leads to, so that the link stays one; the link itself if it leads nowhere."""
    return path.resolve() if path.exists() else path
