"""The online Dice of nnU-Net on the same fold, where it has been trained, to compare a training with."""

from pathlib import Path

from nnunetv2_micd.data.results import FINAL
from nnunetv2_micd.training.registry import STOCK
from nnunetv2_micd.training.terms import DICE
from nnunetv2_micd.utils.checkpoint_files import read_checkpoint


def find_reference(fold_folder: Path, epochs: int) -> list[float]:
    """Return the online Dice of each epoch of nnU-Net's training of the same length, or nothing if there is none.

    With a trainer such as ``nnUNetTrainerMICD_250epochs`` the one of nnU-Net is ``nnUNetTrainer_250epochs``.

    Args:
        fold_folder: Results folder of the training to compare, ``.../TRAINER__PLANS__CONFIGURATION/fold_0``.
        epochs: Number of epochs of that training.
    """
    trainer, *others = fold_folder.parent.name.split("__")
    _, *suffix = trainer.split("_", 1)
    for name in dict.fromkeys(("_".join([STOCK, *suffix]), STOCK)):
        path = fold_folder.parent.with_name("__".join([name, *others])) / fold_folder.name / FINAL
        try:
            dice = read_checkpoint(path, mapped=True)["logging"][DICE]
        except (OSError, ValueError, KeyError):  # not trained, or not to the end
            continue
        if name != trainer and len(dice) == epochs:
            return [float(value) for value in dice]
    return []
