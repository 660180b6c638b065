"""Plans the runs of a benchmark and validates everything before anything starts."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_micd.benchmark.folds import add_fold, budget_entry, check_different, tuning_entry
from nnunetv2_micd.benchmark.grid import Grid
from nnunetv2_micd.benchmark.leaks import check_test_cases, check_validation
from nnunetv2_micd.benchmark.prediction import find_test_images
from nnunetv2_micd.benchmark.records import ALL_LABELS, Run
from nnunetv2_micd.benchmark.run_folder import check_folder
from nnunetv2_micd.benchmark.test_set import check_test_set
from nnunetv2_micd.benchmark.trainers import Competitor, check_lengths, find_competitor
from nnunetv2_micd.benchmark.tuned import find_tuned
from nnunetv2_micd.benchmark.tuning import parse_weights
from nnunetv2_micd.data.budgets import check_seed, list_cases
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.groups import load_groups, share_groups
from nnunetv2_micd.data.preprocessed import find_damaged
from nnunetv2_micd.data.results import results_root
from nnunetv2_micd.data.splits import Entry
from nnunetv2_micd.data.unlabeled import find_unlabeled_cases
from nnunetv2_micd.utils.files import shorten


@dataclass(frozen=True)
class _Cell:
    """A run before it has a fold.

    Attributes:
        budget: Number of labeled cases, as the user wrote it.
        seed: The seed.
        entry: Labeled, unlabeled and validation cases.
        competitor: The trainer.
        unlabeled: Images that this trainer uses without labels.
        tested: Test cases.
    """

    budget: str
    seed: int
    entry: Entry
    competitor: Competitor
    unlabeled: list[str]
    tested: Sequence[str]


def plan_runs(grid: Grid) -> list[Run]:
    """Return the runs of a grid, after a check of everything about it. Only folds are added to the splits.

    Raises:
        ValueError: The grid or the data is wrong, or the folder of a run holds another run.
        OSError: Data is missing.
    """
    results_root()  # stops here if there is no place for the trained models
    dataset = _find_dataset(grid)
    test_cases = check_test_set(*grid.test, dataset) if grid.test else []
    groups = load_groups(dataset.name)
    cells = _plan_cells(grid, dataset, test_cases, groups)
    for cell in cells:
        check_test_cases(grid, cell.tested, cell.entry, cell.unlabeled, groups)
    runs = _make_runs(grid, dataset, cells, test_cases)
    if grid.mean_of_both:
        for run in {run.fold: run for run in runs}.values():
            find_test_images(run)  # stops here if raw images are missing
    return runs


def plan_tuning(grid: Grid, weights: Sequence[str]) -> list[Run]:
    """Return the runs that choose the unsupervised weight of each trainer of a grid, as `plan_runs` does.

    Args:
        grid: The grid. Its baseline, longer trainings and test set have no part in the tuning.
        weights: Factors of the unsupervised weight, such as ``"1/3"``.

    Raises:
        ValueError: The grid, the weights or the data are wrong, or the folder of a run holds another run.
        OSError: Data is missing.
    """
    results_root()
    factors = parse_weights(weights)
    dataset = _find_dataset(grid)
    competitors = [
        find_competitor(name, grid.length, dataset, grid.configuration) for name in dict.fromkeys(grid.trainers)
    ]
    for competitor in competitors:
        if not (competitor.needs_unlabeled and competitor.has_weight):
            reason = "has no unsupervised losses" if competitor.needs_unlabeled else "uses no unlabeled images"
            raise ValueError(f"{competitor.trainer} {reason}, so it has no weight to tune; leave it out of -tr")
    cases = _list_labeled_cases(grid, dataset)
    entries = {key: tuning_entry(dataset, cases, *key, grid.val_fraction) for key in _list_keys(grid)}
    check_different(entries)
    listed = _list_unlabeled(competitors, dataset, grid.configuration, entries)
    cells = [
        _Cell(budget, seed, entry, competitor.with_weight(weight), unlabeled, entry["val"])
        for (budget, seed), entry in entries.items()
        for competitor in competitors
        for unlabeled in [listed.get((budget, seed), []) if competitor.needs_unlabeled else []]
        for weight in factors
    ]
    return _make_runs(replace(grid, test=None), dataset, cells, [], is_tuning=True)


def _find_dataset(grid: Grid) -> Dataset:
    dataset = Dataset.find(grid.dataset, grid.plans)
    if dataset.configuration(grid.configuration).previous_stage_name is not None:
        raise ValueError(f"{grid.configuration} is the second stage of a cascade, which a benchmark does not support")
    if not dataset.labeled_folder(grid.configuration).is_dir():
        raise FileNotFoundError(
            f"{grid.configuration} of {dataset.name} is not preprocessed; run this first: {_preprocess(grid, dataset)}"
        )
    return dataset


def _preprocess(grid: Grid, dataset: Dataset) -> str:
    return f"nnUNetv2_preprocess -d {dataset.number} -c {grid.configuration} -plans_name {grid.plans}"


def _make_runs(
    grid: Grid, dataset: Dataset, cells: Sequence[_Cell], test_cases: Sequence[str], is_tuning: bool = False
) -> list[Run]:
    """Add the folds of cells, and return the runs after a check of their folders."""
    folds = {(cell.budget, cell.seed): add_fold(dataset, cell.budget, cell.seed, cell.entry) for cell in cells}
    images, labels = (str(Path(folder).resolve()) for folder in grid.test) if grid.test else (None, None)
    groups = load_groups(dataset.name)
    runs = [
        Run(
            dataset=dataset.name,
            configuration=grid.configuration,
            plans=grid.plans,
            trainer=cell.competitor.trainer,
            trainer_class=cell.competitor.trainer_class,
            fold=folds[cell.budget, cell.seed],
            budget=cell.budget,
            seed=cell.seed,
            labeled=tuple(cell.entry["train"]),
            num_unlabeled=len(cell.unlabeled),
            epochs=cell.competitor.epochs,
            iterations=cell.competitor.iterations,
            test_images=images,
            test_labels=labels,
            transductive=bool(share_groups(cell.tested, cell.unlabeled, groups)),
            plans_hash=_hash_plans(grid, dataset),
            config=cell.competitor.config,
            weight=cell.competitor.weight,
            is_tuning=is_tuning,
        )
        for cell in cells
    ]
    for run in runs:
        check_folder(run, test_cases, dataset.file_ending)
    return runs


def _hash_plans(grid: Grid, dataset: Dataset) -> str:
    """Return a hash of all that decides how images and labels become batches, and batches predictions."""
    labels = {key: dataset.dataset_json.get(key) for key in ("labels", "regions_class_order")}
    fingerprint = dataset.fingerprint(grid.configuration)
    settings = (dataset.configuration(grid.configuration).configuration, fingerprint, labels)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _plan_cells(grid: Grid, dataset: Dataset, test_cases: Sequence[str], groups: Mapping[str, str]) -> list[_Cell]:
    competitors = _find_competitors(grid, dataset)
    baseline = competitors[0]
    cases = _list_labeled_cases(grid, dataset)
    entries = {key: budget_entry(dataset, cases, *key, grid.val_fraction) for key in _list_keys(grid)}
    check_different(entries)
    if grid.test is None:
        check_validation(entries, groups)
    tuned = find_tuned(grid, dataset, cases, competitors, _hash_plans(grid, dataset)) if grid.tuned else {}
    listed = _list_unlabeled(competitors, dataset, grid.configuration, entries)
    return [
        _Cell(budget, seed, entry, setting, unlabeled, test_cases if grid.test else entry["val"])
        for (budget, seed), entry in entries.items()
        for competitor in competitors
        if budget != ALL_LABELS or competitor == baseline  # with all labels there is nothing left to learn from
        for unlabeled in [listed.get((budget, seed), []) if competitor.needs_unlabeled else []]
        for setting in (competitor, *tuned.get((competitor.trainer, budget), ()))
    ]


def _list_keys(grid: Grid) -> list[tuple[str, int]]:
    """Return the pairs of a budget and a seed."""
    for seed in grid.seeds:
        check_seed(seed)
    # Seeds are outermost: if the benchmark is interrupted, the finished runs still compare all methods.
    return [(budget, seed) for seed in dict.fromkeys(grid.seeds) for budget in dict.fromkeys(grid.budgets)]


def _find_competitors(grid: Grid, dataset: Dataset) -> list[Competitor]:
    """Return the baseline, the methods, and the longer trainings of those that need no unlabeled image."""
    names = dict.fromkeys([grid.baseline, *grid.trainers])
    competitors = [find_competitor(name, grid.length, dataset, grid.configuration) for name in names]
    check_lengths(competitors)
    baseline = competitors[0]
    if baseline.needs_unlabeled:
        raise ValueError(
            f"The baseline has to learn from the labels alone, but {baseline.trainer} uses unlabeled images"
        )
    for times in sorted(set(grid.longer)):
        if times < 2:
            raise ValueError(f"A longer training must be at least 2 times as long, not {times}")
        length = replace(grid.length, epochs=times * baseline.epochs)
        competitors += [
            find_competitor(name, length, dataset, grid.configuration)
            for name, competitor in zip(names, competitors, strict=False)
            if not competitor.needs_unlabeled
        ]
    return competitors


def _list_labeled_cases(grid: Grid, dataset: Dataset) -> list[str]:
    cases = list_cases(dataset.name)
    labeled_folder = dataset.labeled_folder(grid.configuration)
    damaged = find_damaged(labeled_folder, cases, dataset.dataset_json)
    if damaged:
        raise ValueError(
            f"Preprocessed cases in {labeled_folder} are damaged ({shorten(damaged)}); run: "
            f"{_preprocess(grid, dataset)}"
        )
    return cases


def _list_unlabeled(
    competitors: Sequence[Competitor], dataset: Dataset, configuration: str, entries: Mapping[tuple[str, int], Entry]
) -> dict[tuple[str, int], list[str]]:
    """Return the images that trainers use without labels, by budget and seed; nothing if none of them uses any."""
    if not any(competitor.needs_unlabeled for competitor in competitors):
        return {}
    return {
        key: _list_unlabeled_of(dataset, configuration, entry) for key, entry in entries.items() if key[0] != ALL_LABELS
    }


def _list_unlabeled_of(dataset: Dataset, configuration: str, entry: Entry) -> list[str]:
    with warnings.catch_warnings():
        # A training only warns if some images are not preprocessed, but a benchmark would report other numbers.
        warnings.simplefilter("error", UserWarning)
        try:
            return [case.identifier for case in find_unlabeled_cases(dataset, configuration, entry)]
        except UserWarning as warning:
            raise ValueError(str(warning)) from None
