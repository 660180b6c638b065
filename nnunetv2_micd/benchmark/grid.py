"""Which runs a benchmark consists of, after everything that could be wrong with it has been checked."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunetv2_micd.benchmark.folds import add_fold, budget_entry, check_different, check_validation
from nnunetv2_micd.benchmark.records import ALL_LABELS, STOCK, Run, read_record
from nnunetv2_micd.benchmark.test_set import check_test_set
from nnunetv2_micd.benchmark.trainers import OWN_LENGTH, Length, Trainer, check_lengths, find_trainer
from nnunetv2_micd.data.budgets import list_cases
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import find_damaged
from nnunetv2_micd.data.splits import Entry
from nnunetv2_micd.data.unlabeled import find_unlabeled_cases
from nnunetv2_micd.utils.files import shorten


@dataclass(frozen=True)
class Grid:
    """What a benchmark compares.

    Attributes:
        dataset: name or number of the dataset.
        configuration: such as ``3d_fullres``.
        trainers: names of trainers; the baseline is added.
        budgets: how many cases are labeled, ``"6"``, ``"10%"`` or ``"all"``, or which, ``"f0"``: those of fold 0.
        seeds: each draws other labeled cases, but for those of a fold.
        plans: name of the plans.
        val_fraction: the share of the cases for validation.
        length: another length of the trainings than the trainers' own.
        test: the folders of test images and of their labels; by default the validation cases are for testing.
        transductive: whether test images may be among the unlabeled ones.
        baseline: trained on the same labels alone in every benchmark, the row that all others are compared with.
        longer: how many times as long the baseline is trained as well, for a comparison at equal time.
    """

    dataset: str
    configuration: str
    trainers: Sequence[str]
    budgets: Sequence[str]
    seeds: Sequence[int]
    plans: str = "nnUNetPlans"
    val_fraction: float = 0.2
    length: Length = OWN_LENGTH
    test: tuple[str, str] | None = None
    transductive: bool = False
    baseline: str = STOCK
    longer: Sequence[int] = ()


@dataclass(frozen=True)
class _Cell:
    """A run before it has a fold."""

    budget: str
    seed: int
    entry: Entry
    trainer: Trainer
    unlabeled: list[str]


def plan_runs(grid: Grid) -> list[Run]:
    """Return the runs of a grid, after everything about it has been checked; only folds are added to the splits.

    Raises:
        ValueError: something is wrong with the grid or the data, or a run of before was another one.
        OSError: something is missing.
    """
    if not nnUNet_results.get():
        raise ValueError("The environment variable nnUNet_results is not set; the trained models would lie there")
    data = _load_data(grid)
    test_cases = check_test_set(grid.test, data.plans, data.dataset_json) if grid.test else []
    cells = _plan_cells(grid, data)
    for cell in cells:
        _check_leaks(grid, test_cases, cell)
    folds = {
        (cell.budget, cell.seed): add_fold(data.name, grid.val_fraction, cell.budget, cell.seed, cell.entry)
        for cell in cells
    }
    images, labels = (str(Path(folder).resolve()) for folder in grid.test) if grid.test else (None, None)
    runs = [
        Run(
            dataset=data.name,
            configuration=grid.configuration,
            plans=grid.plans,
            trainer=cell.trainer.name,
            trainer_class=cell.trainer.class_name,
            fold=folds[cell.budget, cell.seed],
            budget=cell.budget,
            seed=cell.seed,
            labeled=tuple(cell.entry["train"]),
            num_unlabeled=len(cell.unlabeled),
            epochs=cell.trainer.epochs,
            iterations=cell.trainer.iterations,
            test_images=images,
            test_labels=labels,
            transductive=not set(test_cases).isdisjoint(cell.unlabeled),
            plans_hash=_hash(data.plans.get_configuration(grid.configuration).configuration),
        )
        for cell in cells
    ]
    for run in runs:
        _check_folder(run, test_cases, data.dataset_json["file_ending"])
    return runs


def _plan_cells(grid: Grid, data: Dataset) -> list[_Cell]:
    """Return the grid, seeds outermost: a benchmark that was interrupted is still one of equals."""
    trainers = [_find_trainer(name, grid.length, grid, data) for name in dict.fromkeys([grid.baseline, *grid.trainers])]
    check_lengths(trainers)
    baseline = trainers[0]
    if baseline.needs_unlabeled:
        raise ValueError(f"The baseline is to learn from the labels alone, but {baseline.name} uses unlabeled images")
    trainers += [
        _find_trainer(baseline.name, _times(baseline, times, grid), grid, data) for times in sorted(set(grid.longer))
    ]
    cases = _find_cases(data, grid)
    keys = [(budget, seed) for seed in dict.fromkeys(grid.seeds) for budget in dict.fromkeys(grid.budgets)]
    for _, seed in keys:
        if not 0 <= seed < 2**32:
            raise ValueError(f"A seed must lie between 0 and {2**32 - 1}, not {seed}")
    entries = {(budget, seed): budget_entry(data.name, cases, budget, seed, grid.val_fraction) for budget, seed in keys}
    check_different(entries)
    if grid.test is None:
        check_validation(entries)
    return [
        _Cell(*key, entry, trainer, _find_unlabeled(data, grid.configuration, entry) if trainer.needs_unlabeled else [])
        for key, entry in entries.items()
        for trainer in trainers
        if key[0] != ALL_LABELS or trainer == baseline
    ]


def _find_trainer(name: str, length: Length, grid: Grid, data: Dataset) -> Trainer:
    return find_trainer(name, length, data.plans.plans, grid.configuration, data.dataset_json)


def _times(trainer: Trainer, times: int, grid: Grid) -> Length:
    if times < 2:
        raise ValueError(f"The baseline is trained at least 2 times as long, not {times}")
    return replace(grid.length, epochs=times * trainer.epochs)


def _find_cases(data: Dataset, grid: Grid) -> list[str]:
    cases = list_cases(data.name)
    labeled_folder = str(data.labeled_folder(grid.configuration))
    damaged = find_damaged(labeled_folder, cases, data.dataset_json)
    if damaged:
        raise ValueError(
            f"Preprocessed cases in {labeled_folder} are damaged ({shorten(damaged)}); run: nnUNetv2_preprocess "
            f"-d {data.number} -c {grid.configuration} -plans_name {grid.plans}"
        )
    return cases


def _find_unlabeled(data: Dataset, configuration: str, entry: Entry) -> list[str]:
    """Return the images that a semi-supervised trainer uses without labels in a fold."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # half of the images would make a benchmark of something else
        try:
            return [case.identifier for case in find_unlabeled_cases(data, configuration, entry)]
        except UserWarning as warning:
            raise ValueError(str(warning)) from None


def _load_data(grid: Grid) -> Dataset:
    data = Dataset.find(grid.dataset, grid.plans)
    if data.configuration(grid.configuration).previous_stage_name is not None:
        raise ValueError(f"{grid.configuration} is the second stage of a cascade, for which there is no benchmark")
    if not data.labeled_folder(grid.configuration).is_dir():
        raise FileNotFoundError(
            f"{grid.configuration} of {data.name} is not preprocessed; run this first: nnUNetv2_preprocess "
            f"-d {data.number} -c {grid.configuration} -plans_name {grid.plans}"
        )
    return data


def _check_leaks(grid: Grid, test_cases: Sequence[str], cell: _Cell) -> None:
    seen = sorted(set(test_cases).intersection(cell.entry["train"]))
    if seen:
        raise ValueError(f"Test images are labeled training cases, too ({shorten(seen)}); remove or rename them")
    seen = sorted(set(test_cases).intersection(cell.unlabeled))
    if seen and not grid.transductive:
        raise ValueError(
            f"Test images are among the unlabeled ones, too ({shorten(seen)}); remove or rename them, or, if they are "
            "to be learned from, add --transductive"
        )


def _hash(configuration: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def _check_folder(run: Run, test_cases: Sequence[str], ending: str) -> None:
    """Refuse to continue, or to take for done, what was another run."""
    folder = run.folder
    record = read_record(folder)
    if record is None:
        if any(folder.glob("checkpoint_*.pth")):
            raise ValueError(f"{folder} holds a training that no benchmark has started; move it elsewhere")
        return
    for name, value in run.settings().items():
        if record.get(name) != value:
            shown = [str(each) for each in (record.get(name), value)]
            raise ValueError(
                f"The run in {folder} was made with {name} {_shorten(shown[0])}, not {_shorten(shown[1])}; move the "
                "folder elsewhere, or repeat the benchmark as it was"
            )
    if record["status"] == "done" and test_cases:
        predicted = {path.name.removesuffix(ending) for path in (folder / record["predictions"]).glob(f"*{ending}")}
        if predicted != set(test_cases):
            differing = shorten(sorted(predicted.symmetric_difference(test_cases)))
            raise ValueError(
                f"The run in {folder} was tested on other images ({differing}); move the folder elsewhere, or restore "
                "the test images"
            )


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def is_done(run: Run) -> bool:
    """Return whether nothing is left to do for a run."""
    record = read_record(run.folder)
    return record is not None and record["status"] == "done"
