"""The runs of a benchmark on disk: which there are, and whether they can be compared."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.benchmark.records import STOCK
from nnunetv2_micd.data.folders import dataset_id, find_dataset
from nnunetv2_micd.utils.files import shorten

BASELINE = STOCK
"""Supervised training with the same labels, against which the methods are tested; what a report calls its baseline."""


@dataclass(frozen=True)
class Run:
    """One finished training and its predictions: the fields of ``benchmark.json`` that the report needs."""

    dataset: str
    configuration: str
    plans: str
    plans_hash: str
    trainer: str
    budget: str
    num_labeled: int
    num_unlabeled: int
    labeled: list
    seed: int
    epochs: int
    iterations: int
    test_images: str | None
    test_labels: str | None
    predictions: str
    truth: str
    checkpoint: str
    training_seconds: int | float
    prediction_seconds: int | float
    peak_memory_bytes: int
    peak_gpu_bytes: int | None
    device: str
    machine: str
    versions: dict
    transductive: bool
    folder: Path

    def __str__(self) -> str:
        return f"{self.trainer}, {self.budget} labeled, seed {self.seed}"

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """The description of the dataset that the training used."""
        return dict(json.loads((self.folder.parent / "dataset.json").read_text()))

    @cached_property
    def plans_manager(self) -> Any:
        """nnU-Net's view of the plans that the training used."""
        return PlansManager(str(self.folder.parent / "plans.json"))

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The predicted cases."""
        return _list_cases(self.folder / self.predictions, self.dataset_json["file_ending"])

    def prediction_file(self, case: str) -> Path:
        """Return the predicted segmentation of a case."""
        return self.folder / self.predictions / f"{case}{self.dataset_json['file_ending']}"

    def truth_file(self, case: str) -> Path:
        """Return the labels of a case."""
        return self.folder / self.truth / f"{case}{self.dataset_json['file_ending']}"

    def read_segmentation(self, file: Path) -> tuple[Any, list[float]]:
        """Return a label map and its spacing, as nnU-Net reads it."""
        labels, properties = self.plans_manager.image_reader_writer_class().read_seg(str(file))
        return labels[0], list(properties["spacing"])


def collect_runs(
    dataset: str | int,
    configuration: str | None = None,
    plans: str | None = None,
    epochs: int | None = None,
    baseline: str = BASELINE,
) -> tuple[list[Run], list[Run], list[str]]:
    """Return the finished runs of a dataset, longer ones of the baseline, and, in a sentence each, what was left out.

    A baseline of another name is called :data:`BASELINE` in the runs; what its name has more, such as ``_250epochs``,
    is taken off those of the methods as well.

    Args:
        dataset: name or number of the dataset.
        configuration: such as ``3d_fullres``; needed where there are runs of several.
        plans: name of the plans; needed where there are runs of several.
        epochs: only runs of this length, and longer ones of the baseline.
        baseline: the trainer that learned from the labels alone.

    Raises:
        FileNotFoundError: there are no finished runs.
        ValueError: there are runs of several configurations or plans, or runs that cannot be compared.
    """
    name = find_dataset(dataset)
    if not nnUNet_results.get():
        raise ValueError("The environment variable nnUNet_results is not set; the trained models lie there")
    runs, left_out = [], []
    for file in _choose(sorted(Path(nnUNet_results, name).glob("*__*__*/fold_*/benchmark.json")), configuration, plans):
        try:
            run = _load_run(file)
        except (ValueError, OSError) as error:
            left_out.append(f"{file.parent.parent.name}/{file.parent.name} is left out: {error}")
            continue
        if run.trainer == BASELINE != baseline:
            left_out.append(f"{file.parent.parent.name}/{file.parent.name} is left out: the baseline is {baseline}")
            continue
        run = replace(run, trainer=_rename(run.trainer, baseline))
        if epochs in (None, run.epochs) or (run.trainer == BASELINE and run.epochs > epochs):
            runs.append(run)
    if not runs:
        damage = f" ({left_out[0]})" if left_out else ""
        raise FileNotFoundError(
            f"There are no finished runs of {name} in {nnUNet_results}{damage}; make some first: "
            f"nnUNetv2_micd benchmark -d {dataset_id(name)}"
        )
    runs, longer = _split_longer(runs)
    check_comparable(runs)
    check_same_conditions([*runs, *longer])
    return runs, longer, left_out


def _rename(trainer: str, baseline: str) -> str:
    if trainer == baseline:
        return BASELINE
    return trainer.removesuffix(baseline.removeprefix(BASELINE)).removesuffix("_")  # MICD_NoMirroring has one more


def _split_longer(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Separate the runs of the baseline that are longer than those of the methods, and name their length."""
    methods = [run for run in runs if run.trainer != BASELINE]
    reference = max(methods, key=attrgetter("epochs")) if methods else min(runs, key=attrgetter("epochs"))
    longer = [
        run
        for run in runs
        if run.trainer == BASELINE and run.epochs > reference.epochs and run.iterations == reference.iterations
    ]
    usual = [run for run in runs if run not in longer]
    return usual, [replace(run, trainer=f"{BASELINE}, {run.epochs} epochs") for run in longer]


def _choose(files: list[Path], configuration: str | None, plans: str | None) -> list[Path]:
    """Return the files of one configuration and one plans, by the name of nnU-Net's folder."""
    wanted = {"-p": plans, "-c": configuration}
    for position, (option, value) in enumerate(wanted.items(), start=1):
        found = {file: file.parent.parent.name.rsplit("__", 2)[position] for file in files}
        several = sorted(set(found.values()))
        if value is None and len(several) > 1:
            raise ValueError(f"There are runs of {' and '.join(several)}; choose one with {option}")
        files = [file for file in files if value in (None, found[file])]
    return files


def _load_run(file: Path) -> Run:
    """Return a finished run.

    Raises:
        ValueError: it is not finished, or its file or its predictions are damaged.
        OSError: a file is missing.
    """
    try:
        record = json.loads(file.read_text())
        status = record["status"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"its benchmark.json is damaged ({error!r}); run it again") from None
    if status == "failed":
        raise ValueError(f"it failed: {record.get('error')}")
    if status != "done":
        raise ValueError(f"it is not finished (status {status!r}): still running, or interrupted; run it again")
    record["folder"] = file.parent
    for name, kind in get_type_hints(Run).items():
        if not isinstance(record.get(name, ...), kind):
            raise ValueError(f"{name} in its benchmark.json is {record.get(name, 'missing')!r}; run it again")
    run = Run(**{name: record[name] for name in get_type_hints(Run)})
    _check_cases(run)
    return run


def _check_cases(run: Run) -> None:
    if not run.cases:
        raise ValueError(f"there are no predictions in {run.folder / run.predictions}; run it again")
    without_truth = [case for case in run.cases if not run.truth_file(case).is_file()]
    if without_truth:
        raise ValueError(f"{run.folder / run.truth} has no labels of {shorten(without_truth)}")
    if run.test_labels is not None:
        truth = _list_cases(run.folder / run.truth, run.dataset_json["file_ending"])
        without_prediction = sorted(set(truth) - set(run.cases))
        if without_prediction:
            raise ValueError(f"there are no predictions of {shorten(without_prediction)}; run it again")


def _list_cases(folder: Path, ending: str) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir())
    return tuple(name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith("."))


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise a ``ValueError`` unless the runs differ only in what a benchmark compares."""
    check_same_conditions(runs)
    _refuse_mixed(
        runs,
        lambda run: f"{run.epochs} epochs of {run.iterations} iterations",
        "lengths of training",
        "choose one with --epochs, or move the other runs away",
    )


def check_same_conditions(runs: Sequence[Run]) -> None:
    """Raise a ``ValueError`` unless the runs have the same plans and cases; their lengths may differ."""
    _refuse_mixed(runs, lambda run: run.plans_hash, "plans", "use -p, or delete the runs with the plans of before")
    _refuse_mixed(
        runs, lambda run: run.cases, "test cases", "run all on the same test images, or move the other runs away"
    )
    for one in runs:
        for other in runs:
            if (one.budget, one.seed) != (other.budget, other.seed) or one is other:
                continue
            if one.trainer == other.trainer:
                raise ValueError(f"There are two runs of {one}: {one.folder} and {other.folder}; delete one of them")
            if sorted(one.labeled) != sorted(other.labeled):
                raise ValueError(
                    f"{one} and {other} have different labeled cases, so they cannot be compared; run one of them again"
                )


def _refuse_mixed(runs: Sequence[Run], key: Callable[[Run], Any], what: str, advice: str) -> None:
    for run in runs:
        if key(run) != key(runs[0]):
            first, second = (str(key(each)) for each in (runs[0], run))
            shown = f" ({_cut(first)} and {_cut(second)})" if what != "test cases" else _differing(runs[0], run)
            raise ValueError(
                f"{runs[0]} and {run} have different {what}{shown}, so they cannot be in one table; {advice}"
            )


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}..."


def _differing(one: Run, other: Run) -> str:
    return f" ({shorten(sorted(set(one.cases) ^ set(other.cases)))})"


def is_baseline(trainer: str) -> bool:
    """Return whether this is what a report calls its baseline, of whatever length."""
    return trainer.partition(",")[0] == BASELINE


def display_name(trainer: str) -> str:
    """Return what tables and figures call a trainer."""
    return trainer.replace(BASELINE, "nnU-Net", 1) if is_baseline(trainer) else trainer.removeprefix(BASELINE)


def find_classes(run: Run) -> dict[str, tuple[int, ...]]:
    """Return what nnU-Net evaluates: each foreground label or region by its name, with its labels."""
    manager = run.plans_manager.get_label_manager(run.dataset_json)
    values = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    evaluated = {_as_tuple(value) for value in values}
    names = {name: _as_tuple(value) for name, value in manager.label_dict.items() if name != "ignore"}
    return {name: labels for name, labels in names.items() if labels in evaluated}


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(label) for label in (value if isinstance(value, Iterable) else [value]))
