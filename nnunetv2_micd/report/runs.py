"""A finished run as the report sees it: its record, its predictions and the labels of the test cases."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.benchmark.records import ALL_LABELS, Result, Run, evaluated_folders
from nnunetv2_micd.training.registry import STOCK
from nnunetv2_micd.utils.files import read_json_object
from nnunetv2_micd.utils.wording import counted

CONTROL = " (control)"
"""End of the name of a control: a trainer other than the baseline that used no unlabeled images."""

TUNED = ", tuned ("
"""Part of the name of a method with a tuned weight."""

MEAN_OF_BOTH = ", mean of both networks"
"""Part of the name of a method that predicts with the mean of both networks."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that has trained and predicted.

    Predictions of the mean of both networks make a second finished run of the same training.

    Attributes:
        settings: How the run was made.
        result: What came of it.
        folder: Folder of the fold on this machine.
        trainer: Trainer as the report names it, see :func:`collect.collect_runs`.
    """

    settings: Run
    result: Result
    folder: Path
    trainer: str

    def __str__(self) -> str:
        return f"{self.trainer}, {self.settings.budget} labeled, seed {self.settings.seed}"

    @property
    def is_mean(self) -> bool:
        """True if the mean of both networks predicted."""
        return self.result.predictions == self.result.mean_predictions

    @property
    def place(self) -> str:
        """Where the run lies, for messages."""
        return f"{self.folder.parent.name}/{self.folder.name}" + (MEAN_OF_BOTH if self.is_mean else "")

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """Description of the dataset that the training used."""
        return read_json_object(self.folder.parent / "dataset.json")

    @cached_property
    def plans_manager(self) -> Any:
        """The plans that the training used, as nnU-Net reads them."""
        return PlansManager(read_json_object(self.folder.parent / "plans.json"))

    @property
    def ending(self) -> str:
        """File ending of the segmentations, such as ``.nii.gz``."""
        return str(self.dataset_json["file_ending"])

    @property
    def unit(self) -> str:
        """Unit of distances: millimeters, or pixels for photographs, which have no spacing."""
        return "pixels" if self.plans_manager.image_reader_writer_class is NaturalImage2DIO else "mm"

    @property
    def truth_folder(self) -> Path:
        """Folder of the labels of the test cases."""
        if self.settings.test_labels is None:  # they may have been moved since the run
            return Path(evaluated_folders(self.settings)[1])
        return self.folder / self.result.truth

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The predicted cases, sorted."""
        return list_cases(self.folder / self.result.predictions, self.ending)

    @cached_property
    def ignore_label(self) -> int | None:
        """Label of the voxels that are not scored, if there is one."""
        label: int | None = self.plans_manager.get_label_manager(self.dataset_json).ignore_label
        return label

    def prediction_file(self, case: str) -> Path:
        """Return the predicted segmentation of a case."""
        return self.folder / self.result.predictions / f"{case}{self.ending}"

    def truth_file(self, case: str) -> Path:
        """Return the labels of a case."""
        return self.truth_folder / f"{case}{self.ending}"

    def read_pair(self, case: str) -> tuple[Any, Any, list[float]]:
        """Return the labels and the prediction of a case, of three axes, and their spacing."""
        truth, spacing = self.read_segmentation(self.truth_file(case))
        prediction, its_spacing = self.read_segmentation(self.prediction_file(case))
        return truth, prediction, its_spacing if self.has_sidecars else spacing

    @property
    def has_sidecars(self) -> bool:
        """Whether the spacing lies in a file beside an image. nnU-Net copies the labels without these files."""
        return issubclass(self.plans_manager.image_reader_writer_class, Tiff3DIO)

    def read_segmentation(self, file: Path) -> tuple[Any, list[float]]:
        """Return a label map of three axes and its spacing, as nnU-Net reads them."""
        labels, properties = self.plans_manager.image_reader_writer_class().read_seg(str(file))
        return labels[0], list(properties["spacing"])


def list_cases(folder: Path, ending: str) -> tuple[str, ...]:
    """Return the sorted names of the files in a folder that have an ending, without it."""
    names = sorted(path.name for path in folder.iterdir())
    return tuple(name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith("."))


def is_baseline(trainer: str) -> bool:
    """Return True for the baseline of a report, of any training length."""
    return trainer.partition(",")[0] == STOCK


def is_control(trainer: str) -> bool:
    """Return True for a trainer other than the baseline that used no unlabeled images."""
    return trainer.endswith(CONTROL)


def name_of_longer(trainer: str, epochs: int) -> str:
    """Return the name of a run of the baseline or a control that was trained longer than the methods.

    Examples:
        >>> name_of_longer("nnUNetTrainerEMA (control)", 30)
        'nnUNetTrainerEMA, 30 epochs (control)'
    """
    return f"{trainer.removesuffix(CONTROL)}, {epochs} epochs{CONTROL if is_control(trainer) else ''}"


def name_of_usual(trainer: str) -> str:
    """Return the name of a trainer without the length of a longer training.

    Examples:
        >>> name_of_usual("nnUNetTrainerEMA, 30 epochs (control)")
        'nnUNetTrainerEMA (control)'
    """
    return re.sub(r", [0-9]+ epochs(?=$| \()", "", trainer)


def is_method(trainer: str) -> bool:
    """Return True for a trainer that used unlabeled images: neither the baseline nor a control."""
    return not is_baseline(trainer) and not is_control(trainer)


def is_mean_of_both(trainer: str) -> bool:
    """Return True for a row that is predicted with the mean of both networks."""
    return MEAN_OF_BOTH in trainer


def is_tuned(trainer: str) -> bool:
    """Return True for a trainer whose weight was chosen with the labels of further cases."""
    return TUNED in trainer


def is_candidate(trainer: str) -> bool:
    """Return True for a method that may be called the best: it has used no more labels than the others."""
    return is_method(trainer) and not is_tuned(trainer)


def display_name(trainer: str) -> str:
    """Return the name of a trainer in tables and figures.

    Examples:
        >>> display_name("nnUNetTrainerMICD"), display_name("nnUNetTrainer, 30 epochs")
        ('MICD', 'nnU-Net, 30 epochs')
    """
    return trainer.replace(STOCK, "nnU-Net", 1) if is_baseline(trainer) else trainer.removeprefix(STOCK)


def describe_budget(budget: str, num_labeled: int | None = None) -> str:
    """Return the labels of a budget in words.

    Args:
        budget: The budget, which counts groups where ``groups.json`` names some.
        num_labeled: Number of labeled cases, if it is to be told.

    Examples:
        >>> describe_budget("6"), describe_budget("6", 6), describe_budget("6", 12)
        ('6 labeled', '6 labeled cases', '6 labeled groups, 12 cases')
        >>> describe_budget("10%"), describe_budget("f0")
        ('10% labeled', 'labels of fold 0')
    """
    if budget.startswith("f"):
        return f"labels of fold {budget[1:]}"
    if budget == ALL_LABELS:
        return "all labels"
    if num_labeled is None or not budget.isdecimal():
        return f"{budget} labeled"
    if num_labeled == int(budget):
        return counted(num_labeled, "labeled case")
    return f"{counted(int(budget), 'labeled group')}, {counted(num_labeled, 'case')}"


def find_classes(run: FinishedRun) -> dict[str, tuple[int, ...]]:
    """Return each class that nnU-Net evaluates, a foreground label or a region, by its name with its labels."""
    manager = run.plans_manager.get_label_manager(run.dataset_json)
    values = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    evaluated = {_as_tuple(value) for value in values}
    classes = {name: _as_tuple(value) for name, value in manager.label_dict.items() if name != "ignore"}
    return {name: labels for name, labels in classes.items() if labels in evaluated}


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(label) for label in (value if isinstance(value, Iterable) else [value]))
