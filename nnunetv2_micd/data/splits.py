"""nnU-Net's ``splits_final.json``: one entry for each fold, with the cases for training and for validation.

An entry may also name cases under ``unlabeled``, whose images are used without their labels. nnU-Net ignores that key.
"""

import json
import os
from pathlib import Path

from nnunetv2_micd.utils.files import atomic

Entry = dict[str, list[str]]


def load_splits(splits_file: str | os.PathLike[str]) -> list[Entry]:
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


def load_split_unlabeled(splits_file: str | os.PathLike[str], fold: int | str) -> list[str]:
    """Return the cases that the entry ``fold`` of ``splits_final.json`` uses without their labels, often none.

    Raises:
        ValueError: see `load_splits`.
    """
    if not isinstance(fold, int) or not os.path.isfile(splits_file):
        return []
    splits = load_splits(splits_file)
    return list(splits[fold].get("unlabeled", [])) if fold < len(splits) else []


def default_splits(cases: list[str]) -> list[Entry]:
    """Return what ``nnUNetTrainer.do_split`` would write."""
    if len(cases) < 5:
        raise ValueError(
            f"nnU-Net's default split needs at least 5 cases, but there are {len(cases)}; write a split first"
        )
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # takes seconds

    splits = generate_crossval_split(cases, seed=12345, n_splits=5)
    return [{key: [str(case) for case in names] for key, names in entry.items()} for entry in splits]


def write_splits(splits: list[Entry], path: Path) -> None:
    """Replace ``splits_final.json`` at once."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(splits, indent=4) + "\n")
