"""Commands to run after a training, or before it."""

import os

from nnunetv2_micd.training.protocols import TrainerLike


def next_commands(trainer: TrainerLike) -> str:
    """Return the commands that predict with a trained model and compare it with nnU-Net's own."""
    dataset, plans, name = trainer.plans_manager.dataset_name, trainer.plans_manager.plans_name, type(trainer).__name__
    options = f"-c {trainer.configuration_name} -p {plans}"
    text = "\nPredict with this model:\n" + "".join(f"    {command}\n" for command in _predict_commands(trainer))
    if trainer.fold != "all":
        text += (
            "Compare it with nnU-Net's own, once the same folds of both have been trained with --npz:\n"
            f"    nnUNetv2_find_best_configuration {dataset} {options} -tr nnUNetTrainer {name} -f {trainer.fold}\n"
        )
    variable = os.environ.get("nnUNet_extTrainer", "")
    return text + f'nnU-Net finds the trainer by this variable:\n    export nnUNet_extTrainer="{variable}"\n'


def _predict_commands(trainer: TrainerLike) -> list[str]:
    """Return the command that predicts; in a cascade after those of the stages before, as it needs their output."""
    plans, name = trainer.plans_manager, type(trainer).__name__
    commands: list[str] = []
    stage, fold, output = trainer.configuration_name, str(trainer.fold), "OUTPUT_FOLDER"
    while stage is not None:
        command = (
            f"nnUNetv2_predict -d {plans.dataset_name} -c {stage} -p {plans.plans_name} -tr {name} -f {fold} "
            f"-i INPUT_FOLDER -o {output}"
        )
        stage = plans.get_configuration(stage).previous_stage_name
        fold, output = "FOLDS", f"OUTPUT_FOLDER_{stage}"
        commands.insert(0, command if stage is None else f"{command} -prev_stage_predictions {output}")
    return commands


def previous_stage_command(trainer: TrainerLike) -> str:
    """Return the command with which the first stage of a cascade segments the images for the second."""
    plans, stage = trainer.plans_manager, trainer.configuration_manager.previous_stage_name
    return f"nnUNetv2_train {plans.dataset_name} {stage} FOLD -tr {type(trainer).__name__} -p {plans.plans_name} --val"
