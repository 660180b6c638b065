"""The runs of a benchmark and their ``benchmark.json``, which says how a run was made and what came of it."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

import torch
from nnunetv2.paths import nnUNet_preprocessed

import nnunetv2_micd
from nnunetv2_micd.data.results import FINAL, ModelFolder
from nnunetv2_micd.utils.checkpoint_files import epoch_times
from nnunetv2_micd.utils.files import atomic, is_file_name, read_json

RECORD = "benchmark.json"
STATUSES = ("running", "done", "failed")

ALL_LABELS = "all"
"""Budget of a run with all labels: the ceiling, for the baseline only."""

PUBLISHED = "1"
"""Weight of a run with the trainer's own unsupervised weight."""


LARGEST = 2**63
"""Larger than any number in a record."""


@dataclass(frozen=True)
class Run:
    """One training of a benchmark. Two runs in one folder are the same run if all fields are equal.

    Attributes:
        dataset: Full name of the dataset.
        configuration: Name of the configuration, such as ``3d_fullres``.
        plans: Name of the plans.
        trainer: Name of the trainer, as after ``-tr``.
        trainer_class: Name of the trained class, a generated one if the length or weight is not the trainer's own.
        fold: Number of the entry in ``splits_final.json``.
        budget: Number of labeled cases as the user wrote it, such as ``"10%"``.
        seed: Seed that draws the labeled cases and starts all random generators.
        labeled: The labeled cases.
        num_unlabeled: Number of images that this trainer uses without labels.
        epochs: Number of epochs.
        iterations: Number of iterations in an epoch.
        test_images: Folder of the test images; None if the validation cases of the fold are the test cases.
        test_labels: Folder of their labels, or None.
        transductive: True if a test image is also an unlabeled training image.
        plans_hash: Hash of the configuration in the plans, of its preprocessing and of the labels.
        config: The trainer's own settings, empty for a trainer of nnU-Net.
        weight: Factor, such as ``"1/3"``, by which the trainer's unsupervised weight, ``ramp_peak``, is multiplied.
        is_tuning: True if the run serves to choose a setting, on cases that are never reported.
    """

    dataset: str
    configuration: str
    plans: str
    trainer: str
    trainer_class: str
    fold: int
    budget: str
    seed: int
    labeled: tuple[str, ...]
    num_unlabeled: int
    epochs: int
    iterations: int
    test_images: str | None
    test_labels: str | None
    transductive: bool
    plans_hash: str
    config: str = ""
    weight: str = PUBLISHED
    is_tuning: bool = False

    def __str__(self) -> str:
        weight = "" if self.weight == PUBLISHED else f" with {self.weight} times its unsupervised weight"
        return f"{self.trainer}{weight}, {self.budget} labeled, seed {self.seed}, {self.epochs} epochs"

    @property
    def folder(self) -> Path:
        """Folder in which nnU-Net trains the fold."""
        model = ModelFolder(self.dataset, self.configuration, self.trainer_class, self.plans)
        return model.path() / f"fold_{self.fold}"

    def to_json(self) -> dict[str, Any]:
        """Return the content of the record that describes the run."""
        content = {**asdict(self), "labeled": list(self.labeled), "num_labeled": len(self.labeled)}
        content["class"] = content.pop("trainer_class")
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Run":
        """Return the run that :meth:`to_json` described.

        Raises:
            ValueError: A field is missing, has the wrong type, or leads out of its folder.
        """
        fields = {**content, "trainer_class": content.get("class")}
        if isinstance(content.get("labeled"), list):
            fields["labeled"] = tuple(content["labeled"])
        run = cls(**_checked(cls, fields))
        if not is_file_name(run.dataset):
            raise ValueError(f"dataset is {run.dataset!r}, which is no name of a dataset")
        if not all(isinstance(case, str) for case in run.labeled):
            raise ValueError(f"labeled is {list(run.labeled)}")
        if run.config and not isinstance(_parse(run.config), dict):
            raise ValueError(f"config is {run.config!r}")
        try:
            Fraction(run.weight)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"weight is {run.weight!r}") from None
        return run


@dataclass(frozen=True)
class Result:
    """State and outcome of a run.

    Attributes:
        status: ``"running"``, ``"done"`` or ``"failed"``. A run that was interrupted stays ``"running"``.
        error: Message of the error if the run failed.
        predictions: Folder of the predicted test cases, relative to the folder of the run.
        truth: Folder of their labels. That of validation cases may have been moved since, see `evaluated_folders`.
        checkpoint: File name of the checkpoint that predicted.
        device: Device of the training, such as ``cuda``.
        machine: Description of the machine.
        versions: Versions of the software by its name.
        training_seconds: Duration of all epochs, None until the run is done.
        prediction_seconds: Duration of the prediction of all test cases, None until the run is done.
        peak_memory_bytes: Largest main memory of the process up to the end of the training, None until the run is done,
            and if an earlier process has ended the training.
        peak_gpu_bytes: Largest GPU memory of PyTorch's tensors, likewise, and None without a CUDA GPU.
        mean_predictions: Folder of the test cases as the mean of both networks predicts them, relative to the folder of
            the run; None if that was not asked for or there is one network.
        mean_prediction_seconds: Duration of that prediction, by both networks together.
    """

    status: str
    error: str | None
    predictions: str
    truth: str
    checkpoint: str
    device: str
    machine: str
    versions: dict[str, str]
    training_seconds: int | float | None = None
    prediction_seconds: int | float | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    mean_predictions: str | None = None
    mean_prediction_seconds: int | float | None = None

    @classmethod
    def start(cls, run: Run, device: str) -> "Result":
        """Return the state of a run that starts now in this process."""
        predictions, truth = evaluated_folders(run)
        return cls("running", None, predictions, truth, FINAL, device, _describe_machine(device), _versions())

    def failed(self, error: str) -> "Result":
        """Return the state after an error."""
        return replace(self, status="failed", error=error)

    def done(self, **measured: Any) -> "Result":
        """Return the state after the end, with the fields that were measured."""
        return replace(self, status="done", error=None, **measured)

    @property
    def is_complete(self) -> bool:
        """Whether the run is trained and has predicted, even if the mean of both networks failed afterwards."""
        return self.status == "done" or self.training_seconds is not None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Result":
        """Return the result in the content of a record.

        Raises:
            ValueError: A field is missing or has the wrong type.
        """
        if content.get("status") not in STATUSES:
            raise ValueError(f"status is {content.get('status')!r}")
        result = cls(**_checked(cls, content))
        for name in ("predictions", "checkpoint", "mean_predictions"):
            value = getattr(result, name)
            if value is not None and not is_file_name(value):
                raise ValueError(f"{name} is {value!r}, which is no name of a file in the folder of the run")
        return result


class Record(NamedTuple):
    """The content of a ``benchmark.json``."""

    run: Run
    result: Result


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_record(folder: Path) -> Record | None:
    """Return the record of the run in a folder, or None if there is no record.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {str(content)[:20]!r} instead of an object")
        return Record(Run.from_json(content), Result.from_json(content))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder {folder} to repeat this run") from None


def write_record(run: Run, result: Result) -> None:
    """Write the record of a run. Readers see the old file or the new one, never half of it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with atomic(run.folder / RECORD) as temporary:
        content = {"status": result.status, "error": result.error, **run.to_json(), **asdict(result)}
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def training_seconds(epochs: Sequence[tuple[float, float]]) -> float:
    """Return the duration of all epochs, which tells two trainings apart, from begin and end of each."""
    return sum(end - start for start, end in epochs)


def was_trained_again(folder: Path, result: Result) -> bool:
    """Return True if the checkpoint in the folder of a complete run is of a later training, as by ``nnUNetv2_train``.

    The record then describes a model that is gone, and predictions in ``validation`` are of the new one.
    """
    try:
        seconds = training_seconds(epoch_times(folder / result.checkpoint))
    except (OSError, ValueError):  # of a checkpoint that is gone, damaged or not ours to read, nothing is known
        return False
    return result.training_seconds is not None and seconds != result.training_seconds


def evaluated_folders(run: Run) -> tuple[str, str]:
    """Return the folder of the predictions, relative to the folder of the run, and the folder of the labels.

    The labels of validation cases are those in ``nnUNet_preprocessed`` as it is set now.
    """
    if run.test_labels is not None:
        return "benchmark_predictions", run.test_labels
    return "validation", os.path.abspath(os.path.join(str(nnUNet_preprocessed), run.dataset, "gt_segmentations"))


def _checked(kind: type, content: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass in the content of a record, which may hold more, or lack those with a default.

    Raises:
        ValueError: A field is missing, has the wrong type, or is a number that counts nothing, such as NaN or -1.
    """
    fields = {}
    for name, hint in get_type_hints(kind).items():
        if name not in content and hasattr(kind, name):  # a default is an attribute of the class
            continue
        # isinstance takes neither tuple[str, ...] nor dict[str, str], but unions such as str | None
        kinds = get_origin(hint) if get_origin(hint) in (tuple, dict) else hint
        value = content.get(name)
        if not isinstance(value, kinds) or (isinstance(value, int | float) and not 0 <= value < LARGEST):
            raise ValueError(f"{name} is {value!r}" if name in content else f"{name} is missing")
        fields[name] = value
    return fields


def _describe_machine(device: str) -> str:
    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "no GPU used"
    return f"{platform.platform()}, {os.cpu_count()} CPU cores, {gpu}"


def _versions() -> dict[str, str]:
    return {
        "nnunetv2_micd": nnunetv2_micd.__version__,
        "nnunetv2": version("nnunetv2"),
        "torch": version("torch"),
        "python": platform.python_version(),
    }
