"""Looks up the trainers of a benchmark and generates subclasses with another training length or unsupervised weight.

nnU-Net names a results folder after the class of its trainer, so another setting needs another class. Each
generated class has a folder of its own in ``nnUNet_results/benchmark_trainers``. A run sees only the folder of its
class, so nothing that other benchmarks write there can disturb it. The files stay, because prediction needs them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.benchmark.records import PUBLISHED, Run
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.results import results_root
from nnunetv2_micd.training.registry import GENERATED_FOLDER, find_trainer, training_length
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.files import atomic

CONTROLS = (
    "nnUNetTrainerEMA",
    "nnUNetTrainerSelfTraining_LabeledOnly",
    "nnUNetTrainerBCP_LabeledOnly",
    "nnUNetTrainerMICD_SupervisedOnly",
)
"""Trainers that use no unlabeled images. Beside the baseline they show what a method gains without such images."""

VALIDATION_SHARE = 5
"""nnU-Net takes one step of online validation for five steps of training."""

_TEMPLATE = '''"""Made by nnUNetv2_micd benchmark: {base} with another training length or unsupervised weight."""

import dataclasses

import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

BASE = {base!r}
BASE_FOLDER = {base_folder!r}  # where the benchmark found it; None in nnU-Net itself


def __getattr__(name):
    # Defined on demand: nnU-Net imports this file in each search for any trainer, and none may fail because of it.
    if name != {name!r}:
        raise AttributeError(name)

    base = _find_base()

    class Generated(base):
        {config}def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
            super().__init__(plans, configuration, fold, dataset_json, device)
            {lines}

    Generated.__name__ = Generated.__qualname__ = name
    globals()[name] = Generated
    return Generated


def _find_base():
    # First where it was, since another folder may hold another class of this name.
    if BASE_FOLDER is not None:
        base = recursive_find_python_class(BASE_FOLDER, BASE, None, cleanup_imports_from_base_folder=True)
        if base is not None:
            return base
    try:
        return recursive_find_trainer_class_by_name(BASE)
    except RuntimeError:
        raise ImportError(
            f"{name} derives from {{BASE}}, which is neither in {{BASE_FOLDER or 'nnU-Net'}} any more nor in the "
            f"folders of nnUNet_extTrainer; add the folder of {{BASE}} to nnUNet_extTrainer"
        ) from None
'''

_CONFIG = "config = dataclasses.replace(base.config, ramp_peak=base.config.ramp_peak * {weight})"


@dataclass(frozen=True)
class Length:
    """A training length that replaces the trainers' own where a number is given.

    Attributes:
        epochs: Number of epochs, or None.
        iterations: Number of iterations in an epoch, or None.

    Examples:
        >>> Length(epochs=100).suffix
        '_e100'
    """

    epochs: int | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("iterations", self.iterations)):
            if value is not None and value < 1:
                raise ValueError(f"The number of {name} must be at least 1, not {value}")

    @property
    def suffix(self) -> str:
        """Suffix of the name of a generated class, empty for the trainers' own length."""
        letters = {"e": self.epochs, "i": self.iterations}
        return "".join(f"_{letter}{number}" for letter, number in letters.items() if number is not None)

    @property
    def assignments(self) -> list[str]:
        """Lines in the constructor of a generated class."""
        lines = [] if self.epochs is None else [f"self.num_epochs = {self.epochs}"]
        if self.iterations is not None:
            steps = max(1, self.iterations // VALIDATION_SHARE)
            lines.append(f"self.num_iterations_per_epoch = {self.iterations}")
            lines.append(f"self.num_val_iterations_per_epoch = min(self.num_val_iterations_per_epoch, {steps})")
        return lines


OWN_LENGTH = Length()


@dataclass(frozen=True)
class Competitor:
    """A trainer with a training length, as one of those that a benchmark compares.

    Attributes:
        trainer: Name of the trainer, as after ``-tr``.
        trainer_class: Name of the trained class, a generated one if the length or the weight is not the trainer's own.
        epochs: Number of epochs.
        iterations: Number of iterations in an epoch.
        needs_unlabeled: True if it uses unlabeled images.
        has_weight: True if it has an unsupervised weight.
        config: Its own settings, see `records.Run`.
        weight: Factor of its unsupervised weight, such as ``"1/3"``.
    """

    trainer: str
    trainer_class: str
    epochs: int
    iterations: int
    needs_unlabeled: bool
    has_weight: bool = True
    config: str = ""
    weight: str = PUBLISHED

    def with_weight(self, weight: str) -> "Competitor":
        """Return this trainer with its own unsupervised weight multiplied by a factor."""
        return replace(self, trainer_class=self.trainer_class + weight_suffix(weight), weight=weight)


def weight_suffix(weight: str) -> str:
    """Return the suffix that names a factor of the unsupervised weight in the name of a generated class.

    Examples:
        >>> weight_suffix("1/3"), weight_suffix("1")
        ('_w1over3', '')
    """
    return "" if weight == PUBLISHED else f"_w{weight.replace('/', 'over')}"


def find_competitor(name: str, length: Length, dataset: Dataset, configuration: str) -> Competitor:
    """Find a trainer and how long it trains.

    Raises:
        ValueError: There is no such trainer, or it cannot be used.
    """
    trainer_class = find_trainer(name).trainer_class
    epochs, iterations = training_length(trainer_class, dataset.plans.plans, configuration, dataset.dataset_json)
    own: dict[str, Any] = {"needs_unlabeled": False, "has_weight": False}
    if issubclass(trainer_class, SemiSupervisedTrainer):
        own = {
            "needs_unlabeled": trainer_class.config.ramp_peak > 0,
            "has_weight": trainer_class.has_unsupervised_losses,
            "config": json.dumps(asdict(trainer_class.config), sort_keys=True),
        }
    return Competitor(
        trainer=name,
        trainer_class=name + length.suffix,
        epochs=length.epochs or epochs,
        iterations=length.iterations or iterations,
        **own,
    )


def check_lengths(competitors: Sequence[Competitor]) -> None:
    """Raise a ``ValueError`` unless all train as long as the first."""
    first, *others = competitors
    for other in others:
        lengths = [f"{trainer.epochs} epochs of {trainer.iterations} iterations" for trainer in (other, first)]
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"{other.trainer} trains {lengths[0]}, {first.trainer} {lengths[1]}, which cannot be compared; train "
                f"all alike: --epochs {other.epochs} --iterations {other.iterations}"
            )


def write_trainers(runs: Iterable[Run]) -> dict[str, tuple[str, ...]]:
    """Write the generated classes that runs need.

    Returns:
        For each trained class the folders in which nnU-Net has to search for it, for ``nnUNet_extTrainer``.

    Raises:
        ValueError: A trainer is no longer found.
    """
    search_folders = {}
    for run in {run.trainer_class: run for run in runs}.values():
        found = find_trainer(run.trainer)
        generated = []
        if run.trainer_class != run.trainer:
            generated = [str(_write_class(run, found.folder))]
        # This package adds its own folder to the variable whenever it is imported; so runs and later commands agree.
        search_folders[run.trainer_class] = (*generated, *found.search_folders, TRAINER_FOLDER)
    return search_folders


def _write_class(run: Run, base_folder: str | None) -> Path:
    """Write the file of a generated class; return its folder."""
    length = _length_in_name(run)
    text = _TEMPLATE.format(
        name=run.trainer_class,
        base=run.trainer,
        base_folder=base_folder if base_folder is None else str(Path(base_folder).resolve()),
        config="" if run.weight == PUBLISHED else f"{_CONFIG.format(weight=run.weight)}\n\n        ",
        lines="\n            ".join(length.assignments),
    )
    folder = results_root() / GENERATED_FOLDER / run.trainer_class
    file = folder / f"{run.trainer_class}.py"
    if not file.exists() or file.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            temporary.write_text(text)
    return folder


def _length_in_name(run: Run) -> Length:
    """Return the length that the name of a run's class stands for: it may give epochs, iterations, both or none."""
    suffix = run.trainer_class.removeprefix(run.trainer).removesuffix(weight_suffix(run.weight))
    lengths = (OWN_LENGTH, Length(run.epochs), Length(None, run.iterations), Length(run.epochs, run.iterations))
    return next(length for length in lengths if length.suffix == suffix)
