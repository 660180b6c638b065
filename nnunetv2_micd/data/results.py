"""The folder in ``nnUNet_results`` that holds a trained model."""

from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier

from nnunetv2_micd.data.folders import dataset_id, find_dataset

FINAL = "checkpoint_final.pth"
"""File name of the checkpoint that nnU-Net writes at the end of a training."""

CHECKPOINTS = (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth")
"""File names of all checkpoints, in the order in which ``--c`` looks for them."""


def results_root() -> Path:
    """Return nnU-Net's folder of all trained models.

    Raises:
        ValueError: ``nnUNet_results`` is not set.
    """
    root = nnUNet_results.get()
    if not root:
        raise ValueError("The environment variable nnUNet_results is not set; it must name the folder of the models")
    return Path(root)


@dataclass(frozen=True)
class ModelFolder:
    """The folder of a trained model, named as on nnU-Net's command line.

    Attributes:
        dataset: Name or number of the dataset.
        configuration: Name of the configuration, such as ``3d_fullres``.
        trainer: Name of the trainer's class.
        plans: Name of the plans.

    Examples:
        >>> model = ModelFolder("Dataset004_Hippocampus", "3d_fullres")
        >>> model.path()  # doctest: +SKIP
        PosixPath('.../Dataset004_Hippocampus/nnUNetTrainerSelfTraining__nnUNetPlans__3d_fullres')
        >>> model.train_command(fold=0)  # doctest: +SKIP
        'nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSelfTraining'
    """

    dataset: str | int
    configuration: str
    trainer: str = "nnUNetTrainerSelfTraining"
    plans: str = "nnUNetPlans"

    def path(self) -> Path:
        """Return the folder, which need not exist.

        Raises:
            ValueError: ``nnUNet_results`` is not set, or there is no such dataset.
        """
        identifier = convert_trainer_plans_config_to_identifier(self.trainer, self.plans, self.configuration)
        return results_root() / find_dataset(self.dataset) / identifier

    def train_command(self, fold: int | str) -> str:
        """Return the command that trains a fold."""
        number = dataset_id(find_dataset(self.dataset))
        plans = "" if self.plans == "nnUNetPlans" else f" -p {self.plans}"
        return f"nnUNetv2_train {number} {self.configuration} {fold} -tr {self.trainer}{plans}"
