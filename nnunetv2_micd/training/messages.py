"""Commands to run after a training, or before it."""

import os

from nnunetv2_micd.training.protocols import TrainerLike


def next_commands(trainer: TrainerLike) -> str:
    """Return the commands that predict with a trained model and compare it with nnU-Net's own."""
    dataset, plans, name = trainer.plans_manager.dataset_name, trainer.plans_manager.plans_name, type(trainer).__name__
    options = f"-c {trainer.configuration_name} -p {plans}"
    text = (
        "\nPredict with this model:\n"
        f"    nnUNetv2_predict -d {dataset} {options} -tr {name} -f {trainer.fold} -i INPUT_FOLDER -o OUTPUT_FOLDER\n"
    )
    if trainer.fold != "all":
        text += (
            "Compare it with nnU-Net's own, once the same folds of both have been trained with --npz:\n"
            f"    nnUNetv2_find_best_configuration {dataset} {options} -tr nnUNetTrainer {name} -f {trainer.fold}\n"
        )
    variable = os.environ.get("nnUNet_extTrainer", "")
    return text + f'nnU-Net finds the trainer by this variable:\n    export nnUNet_extTrainer="{variable}"\n'


def previous_stage_command(trainer: TrainerLike) -> str:
    """Return the command with which the first stage of a cascade segments the images for the second."""
    plans, stage = trainer.plans_manager, trainer.configuration_manager.previous_stage_name
    return f"nnUNetv2_train {plans.dataset_name} {stage} FOLD -tr {type(trainer).__name__} -p {plans.plans_name} --val"
