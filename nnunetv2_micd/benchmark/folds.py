"""The folds of a benchmark: labeled cases that a seed draws or that are published, and their place in the splits."""

import re
from collections.abc import Mapping, Sequence

from nnunetv2_micd.benchmark.records import ALL_LABELS, Run
from nnunetv2_micd.data.budgets import list_cases, make_entry
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.folders import preprocessed_folder
from nnunetv2_micd.data.groups import group_cases, load_groups
from nnunetv2_micd.data.splits import SPLITS_FILE, Entry, default_splits, load_splits, lock_splits, write_splits
from nnunetv2_micd.utils.files import shorten
from nnunetv2_micd.utils.wording import counted


def budget_entry(dataset: Dataset, cases: Sequence[str], budget: str, seed: int, val_fraction: float) -> Entry:
    """Return the labeled, unlabeled and validation cases of a budget.

    Args:
        dataset: The dataset.
        cases: All preprocessed labeled cases, sorted.
        budget: ``"6"``, ``"10%"``, ``"all"``, or ``"f0"`` for fold 0 of ``splits_final.json`` as it stands there.
        seed: Seed that draws the labeled cases; ignored for a fold.
        val_fraction: Share of the cases for validation; ignored for a fold.

    Raises:
        ValueError: The budget is malformed or exceeds the data, or the fold does not exist.
    """
    if re.fullmatch(r"f[0-9]{1,9}", budget):
        return _published_entry(dataset, cases, int(budget[1:]))
    if budget != ALL_LABELS:
        return make_entry(cases, budget, seed, val_fraction, load_groups(dataset.name))
    # All training cases of any other budget, so that the validation cases are the same.
    entry = make_entry(cases, "1", seed, val_fraction, load_groups(dataset.name))
    return {"train": sorted(entry["train"] + entry["unlabeled"]), "val": entry["val"], "unlabeled": []}


def tuning_entry(dataset: Dataset, cases: Sequence[str], budget: str, seed: int, val_fraction: float) -> Entry:
    """Divide the cases outside the reported validation cases again, with as many labeled ones as are reported.

    Args:
        dataset: The dataset.
        cases: All preprocessed labeled cases, sorted.
        budget: See `budget_entry`; ``"all"`` cannot be tuned.
        seed: Seed that draws the labeled cases, also for a fold.
        val_fraction: Share of the cases for validation, of those that are left for the tuning as well.

    Raises:
        ValueError: The budget is wrong, or too few cases are left.
    """
    if budget == ALL_LABELS:
        raise ValueError(f"-n {ALL_LABELS} leaves no unlabeled images, so there is no weight to tune; leave it out")
    reported = budget_entry(dataset, cases, budget, seed, val_fraction)
    rest = sorted({*reported["train"], *reported["unlabeled"]} - {*reported["val"]})
    groups = load_groups(dataset.name)
    num_labeled = len(group_cases(reported["train"], groups))
    try:
        return make_entry(rest, str(num_labeled), seed, val_fraction, groups)
    except ValueError:
        unit = " or groups" if groups else ""
        raise ValueError(
            f"-n {budget} labels {num_labeled} of the {len(group_cases(rest, groups))} cases{unit} outside the "
            "reported validation cases, which leaves too few for the validation of a tuning; label fewer"
        ) from None


def _published_entry(dataset: Dataset, cases: Sequence[str], fold: int) -> Entry:
    splits = _load_splits(dataset, cases)
    if fold >= len(splits):
        raise ValueError(
            f"-n f{fold}: splits_final.json of {dataset.name} has no fold {fold}, only {counted(len(splits), 'fold')}"
        )
    entry = {key: sorted(splits[fold].get(key, [])) for key in ("train", "val", "unlabeled")}
    unknown = sorted(set().union(*entry.values()) - set(cases))
    if unknown:
        raise ValueError(f"Fold {fold} names cases that are not preprocessed ({shorten(unknown)}); preprocess them")
    return entry


def _load_splits(dataset: Dataset, cases: Sequence[str]) -> list[Entry]:
    splits = dataset.splits()
    return default_splits(cases, load_groups(dataset.name)) if splits is None else splits


def is_drawn(budget: str) -> bool:
    """Return True if each seed draws other labeled cases."""
    return budget != ALL_LABELS and not budget.startswith("f")


def check_different(entries: Mapping[tuple[str, int], Entry]) -> None:
    """Raise a ``ValueError`` if two entries have the same cases, as both would be the same fold, see `add_fold`."""
    seen: dict[tuple[object, ...], tuple[str, int]] = {}
    for (budget, seed), entry in entries.items():
        fold = (*map(tuple, entry.values()), None if is_drawn(budget) else seed)
        first = seen.setdefault(fold, (budget, seed))
        if first != (budget, seed):
            raise ValueError(
                f"-n {first[0]} with seed {first[1]} and -n {budget} with seed {seed} label the same cases; leave out "
                "one of them"
            )


def add_fold(dataset: Dataset, budget: str, seed: int, entry: Entry) -> int:
    """Add an entry to ``splits_final.json`` unless it is there already; return its number."""
    cases = list_cases(dataset.name)
    # nnU-Net has one folder for a fold. Seeds that label the same cases get separate ones by an entry for each.
    fold = entry if is_drawn(budget) else {**entry, "seed": seed}
    if dataset.splits_file.is_file() and fold in (splits := _load_splits(dataset, cases)):
        return splits.index(fold)  # type: ignore[arg-type]  # without the lock, which a shared folder may refuse
    with lock_splits(dataset.splits_file):
        splits = _load_splits(dataset, cases)
        if fold not in splits:
            splits.append(fold)  # type: ignore[arg-type]
            write_splits(splits, dataset.splits_file)
    return splits.index(fold)  # type: ignore[arg-type]


def read_entry(run: Run) -> Entry:
    """Return the cases of a run's fold.

    Raises:
        ValueError: ``splits_final.json`` was changed since the run was planned.
    """
    splits = load_splits(preprocessed_folder(run.dataset) / SPLITS_FILE)
    if run.fold >= len(splits) or splits[run.fold]["train"] != list(run.labeled):
        raise ValueError(f"Fold {run.fold} of {SPLITS_FILE} no longer labels the cases of {run}; restore the file")
    return splits[run.fold]
