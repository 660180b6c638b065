"""Collects the finished runs of a benchmark and refuses runs that cannot be compared."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from nnunetv2_micd.benchmark.records import RECORD, Run, read_record, was_trained_again
from nnunetv2_micd.data.folders import dataset_id, find_dataset
from nnunetv2_micd.data.results import results_root
from nnunetv2_micd.report.runs import (
    CONTROL,
    MEAN_OF_BOTH,
    TUNED,
    FinishedRun,
    find_classes,
    is_method,
    list_cases,
    name_of_longer,
)
from nnunetv2_micd.training.registry import STOCK
from nnunetv2_micd.utils.files import shorten

MEASURED = ("training_seconds", "prediction_seconds")


def collect_runs(
    dataset: str | int,
    configuration: str | None = None,
    plans: str | None = None,
    epochs: int | None = None,
    baseline: str = STOCK,
) -> tuple[list[FinishedRun], list[FinishedRun], list[str]]:
    """Collect the finished runs of a dataset.

    The report names every baseline ``nnUNetTrainer``. If another trainer is the baseline, what its name has more, such
    as ``_250epochs``, is also removed from the names of the methods. Trainers with a tuned weight, and the mean of
    both networks, have names of their own; those of controls end with `runs.CONTROL`. Runs that tune are no part of it.

    Args:
        dataset: Name or number of the dataset.
        configuration: Name of the configuration; needed if there are runs of several.
        plans: Name of the plans; needed if there are runs of several.
        epochs: Number of epochs of the runs to take. Longer runs of the baseline and the controls are taken as
            well.
        baseline: Name of the trainer that learned from the labels alone.

    Returns:
        The runs, the longer runs of the baseline and the controls, and a sentence about each run that was left out.

    Raises:
        FileNotFoundError: There are no finished runs.
        ValueError: There are runs of several configurations or plans, or runs that cannot be compared.
    """
    name, root = find_dataset(dataset), results_root()
    runs, left_out = [], []
    files = [file for file in sorted((root / name).glob(f"*__*__*/fold_*/{RECORD}")) if not _is_tuning(file.parent)]
    for file in _choose(files, configuration, plans):
        try:
            found = _load_runs(file.parent, baseline)
        except (ValueError, OSError) as error:
            left_out.append(f"{file.parent.parent.name}/{file.parent.name} is left out: {error}")
            continue
        for run in found:
            try:
                _check(run)
            except (ValueError, OSError) as error:
                left_out.append(f"{run.place} is left out: {error}")
                continue
            if epochs in (None, run.settings.epochs) or (not is_method(run.trainer) and run.settings.epochs > epochs):
                runs.append(run)
    if not runs:
        damage = f" ({left_out[0]})" if left_out else ""
        raise FileNotFoundError(
            f"There are no finished runs of {name} in {root}{damage}; make some first: "
            f"nnUNetv2_micd benchmark -d {dataset_id(name)} -c CONFIG -tr TRAINER -n COUNT"
        )
    runs, longer = _split_longer(runs)
    check_same_conditions([*runs, *longer])
    check_same_length(runs)
    return runs, longer, left_out


def _is_tuning(folder: Path) -> bool:
    """Return True if a run only served to choose a setting, so that it belongs in no report."""
    try:
        record = read_record(folder)
    except (ValueError, OSError):
        return False  # named when it is loaded
    return record is not None and record.run.is_tuning


def _choose(files: list[Path], configuration: str | None, plans: str | None) -> list[Path]:
    """Return the files of one configuration and one plans, judged by nnU-Net's name of their folder."""
    wanted = ((1, "-p", plans), (2, "-c", configuration))

    def part(file: Path, position: int) -> str:
        return file.parent.parent.name.rsplit("__", 2)[position]

    files = [file for file in files if all(value in (None, part(file, position)) for position, _, value in wanted)]
    for position, option, _ in wanted:
        several = sorted({part(file, position) for file in files})
        if len(several) > 1:
            raise ValueError(f"There are runs of {' and '.join(several)}; choose one with {option}")
    return files


def _load_runs(folder: Path, baseline: str) -> list[FinishedRun]:
    """Load a finished run, and as a second one what the mean of both networks predicted.

    Raises:
        ValueError: The run is not finished, or its record is damaged.
        OSError: A file is missing.
    """
    record = read_record(folder)
    assert record is not None
    settings, result = record
    if result.status == "failed" and not result.is_complete:
        raise ValueError(f"it failed: {result.error}")
    if not result.is_complete:
        raise ValueError(f"it is not finished (status {result.status!r}): still running, or interrupted; run it again")
    if was_trained_again(folder, result):
        raise ValueError(
            f"it was trained again after the benchmark; move {folder} elsewhere, and the same benchmark does the run "
            "again"
        )
    if settings.trainer == STOCK != baseline:
        raise ValueError(f"the baseline is {baseline}")
    runs = [FinishedRun(settings, result, folder, trainer=_name_in_report(settings, baseline))]
    if result.mean_predictions is not None and runs[0].trainer != STOCK:  # the baseline is one row, of one network
        mean = replace(result, predictions=result.mean_predictions, prediction_seconds=result.mean_prediction_seconds)
        runs.append(FinishedRun(settings, mean, folder, _name_in_report(settings, baseline, MEAN_OF_BOTH)))
    return runs


def _name_in_report(settings: Run, baseline: str, addition: str = "") -> str:
    if settings.trainer == baseline:
        return STOCK
    # nnUNetTrainer_250epochs and nnUNetTrainerMICD_250epochs, but nnUNetTrainerNoMirroring and
    # nnUNetTrainerMICD_NoMirroring: the name of a method may have an underscore more.
    name = settings.trainer.removesuffix(baseline.removeprefix(STOCK)).removesuffix("_")
    weight = "" if settings.weight == "1" else f"{TUNED}weight x {settings.weight})"
    return name + weight + addition + (CONTROL if settings.num_unlabeled == 0 else "")


def _check(run: FinishedRun) -> None:
    """Raise a ``ValueError`` if a measured value, all predictions, or predictions or labels of a case are missing."""
    again = f"restore it, or delete {run.folder}, and the same benchmark does the run again"
    for name in MEASURED:
        if getattr(run.result, name) is None:
            raise ValueError(f"{name} is missing in its {RECORD}; {again}")
    try:
        _ = run.ending, run.ignore_label, find_classes(run), run.plans_manager.image_reader_writer_class
    except Exception as error:  # nnU-Net does not check its files, so damage shows as any type of error
        raise ValueError(
            f"plans.json or dataset.json in {run.folder.parent} is not as nnU-Net writes it ({error!r}); restore it"
        ) from None
    if not run.cases:
        raise ValueError(f"there are no predictions in {run.folder / run.result.predictions}; {again}")
    without_truth = [case for case in run.cases if not run.truth_file(case).is_file()]
    if without_truth:
        remedy = (
            "copy them there from labelsTr of the raw dataset, or set nnUNet_preprocessed to the folder that has them"
            if run.settings.test_labels is None
            else f'put them back there, or let "truth" in {run.folder / RECORD} name their folder'
        )
        raise ValueError(f"{run.truth_folder} has no labels of {shorten(without_truth)}; {remedy}")
    if run.settings.test_labels is not None:  # the validation cases are only some of those in their folder
        without_prediction = sorted(set(list_cases(run.truth_folder, run.ending)) - set(run.cases))
        if without_prediction:
            raise ValueError(f"there are no predictions of {shorten(without_prediction)}; {again}")


def _split_longer(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[FinishedRun]]:
    """Separate the runs of baseline and controls that are longer than those of the methods, named by their length."""
    methods = [run for run in runs if is_method(run.trainer)]
    by_epochs = attrgetter("settings.epochs")
    reference = (max(methods, key=by_epochs) if methods else min(runs, key=by_epochs)).settings
    usual, longer = [], []
    for run in runs:
        is_longer = run.settings.epochs > reference.epochs and run.settings.iterations == reference.iterations
        if is_longer and not is_method(run.trainer):
            longer.append(replace(run, trainer=name_of_longer(run.trainer, run.settings.epochs)))
        else:
            usual.append(run)
    return usual, longer


def check_same_length(runs: Sequence[FinishedRun]) -> None:
    """Raise a ``ValueError`` unless all runs were trained for as many steps."""
    differ = len({run.settings.epochs for run in runs}) > 1
    _refuse_mixed(
        runs,
        lambda run: f"{run.settings.epochs} epochs of {run.settings.iterations} iterations",
        "lengths of training",
        "choose one with --epochs, or move the other runs away" if differ else "move the runs with one of them away",
    )


def check_same_conditions(runs: Sequence[FinishedRun]) -> None:
    """Raise a ``ValueError`` unless the runs have the same plans and cases; their training lengths may differ."""
    _refuse_mixed(
        runs, lambda run: run.settings.plans_hash, "plans", "use -p, or delete the runs with the earlier plans"
    )
    for run in runs:
        if run.cases != runs[0].cases:
            differing = shorten(sorted(set(run.cases) ^ set(runs[0].cases)))
            raise ValueError(
                f"{runs[0]} and {run} have different test cases ({differing}), so they cannot be in one table; run all "
                "on the same test images, or move the other runs away"
            )
        for kind, key in (("images", attrgetter("settings.test_images")), ("labels", attrgetter("truth_folder"))):
            if key(run) != key(runs[0]):
                raise ValueError(
                    f"{runs[0]} and {run} have test {kind} of the same names in different folders ({key(runs[0])} and "
                    f"{key(run)}), so they cannot be in one table; move the runs with one of them away"
                )
    of_key: dict[tuple[str, int], list[FinishedRun]] = {}
    of_row: dict[tuple[str, str], dict[str, tuple[Any, FinishedRun]]] = {}
    for run in runs:
        for other in of_key.setdefault((run.settings.budget, run.settings.seed), []):
            _check_pair(other, run)
        of_key[run.settings.budget, run.settings.seed].append(run)
        _check_settings(run, of_row.setdefault((run.trainer, run.settings.budget), {}))


def _check_pair(run: FinishedRun, other: FinishedRun) -> None:
    """Raise a ``ValueError`` if two runs of one budget and seed are the same or learned from different labels."""
    if run.trainer == other.trainer:
        raise ValueError(f"There are two runs of {run}: {run.folder} and {other.folder}; delete one of them")
    if sorted(run.settings.labeled) != sorted(other.settings.labeled):
        raise ValueError(
            f"{run} and {other} have different labeled cases, so they cannot be compared; run one of them again"
        )


def _check_settings(run: FinishedRun, known: dict[str, tuple[Any, FinishedRun]]) -> None:
    """Raise a ``ValueError`` if a run of a row, whose mean the tables show, had other settings than those before.

    Args:
        run: The run.
        known: Each setting of the runs before, with one of them; this one's are added. A setting that only some know
            came or went with a version of this package, which the report names.
    """
    for name, value in sorted(json.loads(run.settings.config or "{}").items()):
        first, other = known.setdefault(name, (value, run))
        if first != value:
            raise ValueError(
                f"{other} and {run} were trained with different settings ({name} {first} and {value}), so they cannot "
                "be in one row; run one of them again, or move it away"
            )


def _refuse_mixed(runs: Sequence[FinishedRun], key: Callable[[FinishedRun], Any], meaning: str, advice: str) -> None:
    for run in runs:
        if key(run) != key(runs[0]):
            values = " and ".join(_cut(str(key(differing))) for differing in (runs[0], run))
            raise ValueError(
                f"{runs[0]} and {run} have different {meaning} ({values}), so they cannot be in one table; {advice}"
            )


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}..."
