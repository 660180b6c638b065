"""The trainers of a benchmark, and classes of them that train for another time.

The name of a class is the name of an experiment in nnU-Net, so another length of training is another class, in a small
file that stays: prediction needs it too.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_micd.benchmark.records import Run
from nnunetv2_micd.benchmark.run import trainers_folder
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer

TRAINING_STEPS = 5
"""nnU-Net takes one step of online validation for so many steps of training."""

_FILE = '''"""Made by nnUNetv2_micd benchmark: {base} in another length."""

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name


class {name}(recursive_find_trainer_class_by_name("{base}")):
    """{base} in another length."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        {lines}
'''


@dataclass(frozen=True)
class Length:
    """Another length than the trainers' own, where it is not None.

    Attributes:
        epochs: of the training.
        iterations: of an epoch.
    """

    epochs: int | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("iterations", self.iterations)):
            if value is not None and value < 1:
                raise ValueError(f"The number of {name} must be at least 1, not {value}")

    @property
    def suffix(self) -> str:
        """What a class of this length is called after the trainer's name."""
        letters = {"e": self.epochs, "i": self.iterations}
        return "".join(f"_{letter}{number}" for letter, number in letters.items() if number is not None)

    @property
    def lines(self) -> list[str]:
        """The lines of the constructor of such a class."""
        lines = [] if self.epochs is None else [f"self.num_epochs = {self.epochs}"]
        if self.iterations is not None:
            steps = max(1, self.iterations // TRAINING_STEPS)
            lines.append(f"self.num_iterations_per_epoch = {self.iterations}")
            lines.append(f"self.num_val_iterations_per_epoch = min(self.num_val_iterations_per_epoch, {steps})")
        return lines


OWN_LENGTH = Length()


@dataclass(frozen=True)
class Trainer:
    """A trainer of a benchmark.

    Attributes:
        name: as after ``-tr``.
        class_name: the class that is trained.
        epochs: that it trains.
        iterations: of an epoch.
        needs_unlabeled: whether it uses unlabeled images.
    """

    name: str
    class_name: str
    epochs: int
    iterations: int
    needs_unlabeled: bool


def find_trainer(
    name: str, length: Length, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> Trainer:
    """Find a trainer as nnU-Net will.

    Raises:
        ValueError: there is none of that name, or it cannot be used.
    """
    try:
        with redirect_stdout(StringIO()):  # nnU-Net tells where it searches
            found = recursive_find_trainer_class_by_name(name)
            epochs, iterations = _own_length(found, plans, configuration, dataset_json)
    except Exception as error:  # nnU-Net imports all files in the folders of trainers, also those of others
        if not str(error).startswith("Could not find"):
            raise ValueError(f"{name} is no trainer that can be used ({error!r}); see: nnUNetv2_micd list") from None
        raise ValueError(
            f"There is no trainer {name}; see: nnUNetv2_micd list ; or, if it is one of your own, name its folder in "
            "nnUNet_extTrainer"
        ) from None
    needs_unlabeled = issubclass(found, SemiSupervisedTrainer) and found.config.ramp_peak > 0
    return Trainer(
        name, name + length.suffix, length.epochs or epochs, length.iterations or iterations, needs_unlabeled
    )


def _own_length(
    trainer_class: type, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> tuple[int, int]:
    """Return epochs and iterations of a trainer, which its constructor alone knows; that also makes a folder."""
    with tempfile.TemporaryDirectory() as folder, environment(nnUNet_results=folder, nnUNet_wandb_enabled="0"):
        content = {**json.loads(json.dumps(plans)), "continue_training": False}
        trainer = trainer_class(content, configuration, 0, dataset_json, torch.device("cpu"))
        return trainer.num_epochs, trainer.num_iterations_per_epoch


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_lengths(trainers: Sequence[Trainer]) -> None:
    """Raise a ``ValueError`` unless all trainers train as long as the first."""
    first, *others = trainers
    for other in others:
        lengths = [f"{each.epochs} epochs of {each.iterations} iterations" for each in (other, first)]
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"{other.name} trains {lengths[0]}, {first.name} {lengths[1]}, which is no comparison; train all "
                f"alike: --epochs {other.epochs} --iterations {other.iterations}"
            )


def _written_length(run: Run) -> Length:
    """Return the length that makes the class of a run another one than its trainer; its name tells."""
    suffix = run.trainer_class.removeprefix(run.trainer)
    lengths = (Length(run.epochs), Length(None, run.iterations), Length(run.epochs, run.iterations))
    return next(length for length in lengths if length.suffix == suffix)


def write_trainers(runs: Iterable[Run]) -> Path | None:
    """Write the classes of another length that runs need; return their folder, or None where there is none."""
    lengths = {
        run.trainer_class: (run.trainer, _written_length(run)) for run in runs if run.trainer_class != run.trainer
    }
    if not lengths:
        return None
    folder = trainers_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, (base, length) in lengths.items():
        path = folder / f"{name}.py"
        text = _FILE.format(name=name, base=base, lines="\n        ".join(length.lines))
        if path.exists() and path.read_text() == text:
            continue
        temporary = path.with_name(f"{path.name}.{os.getpid()}")  # not ending in .py, so that nnU-Net does not see it
        temporary.write_text(text)
        os.replace(temporary, path)
    return folder
