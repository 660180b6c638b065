"""The folds of a benchmark: which cases are labeled, drawn by a seed or published, and their place in the splits."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_micd.benchmark.records import ALL_LABELS
from nnunetv2_micd.data.budgets import add_budget_splits, list_cases, make_entry
from nnunetv2_micd.data.folders import preprocessed_folder
from nnunetv2_micd.data.splits import Entry, default_splits, load_splits, write_splits
from nnunetv2_micd.utils.files import shorten


def budget_entry(dataset_name: str, cases: list[str], budget: str, seed: int, val_fraction: float) -> Entry:
    """Return the labeled, unlabeled and validation cases of a budget.

    Args:
        dataset_name: full name.
        cases: all that are preprocessed, sorted.
        budget: ``"6"``, ``"10%"``, ``"all"``, or ``"f0"`` for fold 0 of ``splits_final.json`` as it stands there.
        seed: draws the cases, but for those of a fold.
        val_fraction: the share of the cases for validation, but for those of a fold.

    Raises:
        ValueError: the budget is none, or larger than the data, or there is no such fold.
    """
    if re.fullmatch(r"f\d+", budget):
        return _published_entry(dataset_name, cases, int(budget[1:]))
    if budget != ALL_LABELS:
        return make_entry(cases, budget, seed, val_fraction)
    entry = make_entry(cases, "1", seed, val_fraction)
    return {"train": sorted(entry["train"] + entry["unlabeled"]), "val": entry["val"], "unlabeled": []}


def _published_entry(dataset_name: str, cases: list[str], fold: int) -> Entry:
    splits = _load_splits(dataset_name, cases)
    if fold >= len(splits):
        raise ValueError(
            f"-n f{fold}: splits_final.json of {dataset_name} has no fold {fold}, only {len(splits)} folds"
        )
    entry = {key: sorted(splits[fold].get(key, [])) for key in ("train", "val", "unlabeled")}
    unknown = sorted(set().union(*entry.values()) - set(cases))
    if unknown:
        raise ValueError(f"Fold {fold} names cases that are not preprocessed ({shorten(unknown)}); preprocess them")
    return entry


def _load_splits(dataset_name: str, cases: list[str]) -> list[Any]:
    path = Path(preprocessed_folder(dataset_name), "splits_final.json")
    return load_splits(str(path)) if path.is_file() else list(default_splits(cases))


def is_drawn(budget: str) -> bool:
    """Return whether each seed has other labeled cases."""
    return budget != ALL_LABELS and not budget.startswith("f")


def check_validation(entries: Mapping[tuple[str, int], Entry]) -> None:
    """Raise a ``ValueError`` where the validation cases are no test cases: labeled, or not the same in all entries."""
    found = [(budget, entry) for (budget, _), entry in entries.items()]
    for budget, entry in found:
        tested_too = sorted(set(entry["train"]) & set(entry["val"]))
        if tested_too:
            raise ValueError(
                f"A fold validates on its labeled cases ({shorten(tested_too)}), which is no test; give other cases "
                "with --test"
            )
        if entry["val"] != found[0][1]["val"]:
            raise ValueError(
                f"-n {found[0][0]} and -n {budget} have other validation cases, so no report can compare them; leave "
                "out one of them, or give test cases with --test"
            )


def check_different(entries: Mapping[tuple[str, int], Entry]) -> None:
    """Raise a ``ValueError`` where two entries have the same cases, and so would be one fold, see `add_fold`."""
    seen: dict[tuple[Any, ...], tuple[str, int]] = {}
    for (budget, seed), entry in entries.items():
        fold = (*map(tuple, entry.values()), None if is_drawn(budget) else seed)
        first = seen.setdefault(fold, (budget, seed))
        if first != (budget, seed):
            raise ValueError(
                f"-n {first[0]} with seed {first[1]} and -n {budget} with seed {seed} label the same cases; leave out "
                "one of them"
            )


def add_fold(dataset_name: str, val_fraction: float, budget: str, seed: int, entry: Entry) -> int:
    """Add an entry to ``splits_final.json`` where it is not there yet; return its number."""
    if is_drawn(budget):
        return add_budget_splits(dataset_name, budget, [seed], val_fraction)[0][0]
    path = Path(preprocessed_folder(dataset_name), "splits_final.json")
    splits = _load_splits(dataset_name, list_cases(dataset_name))
    fold = {**entry, "seed": seed}  # the same cases with each seed, but a run, and so a folder, of its own
    if fold not in splits:
        splits.append(fold)
        write_splits(splits, path)
    return splits.index(fold)
