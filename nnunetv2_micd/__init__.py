"""Semi-supervised training for nnU-Net v2 as an installable plugin.

Importing the package tells nnU-Net where the trainers are, in this process and its children, so that notebooks and
``nnUNetPredictor`` find them. On the command line the environment variable is set once, see ``nnUNetv2_micd path``.

All trainers, the base class, its configuration and MICD's, and ``Losses`` are names of this package. Each is imported
when it is first used: torch and nnU-Net take seconds to import, and ``nnUNetv2_micd path`` needs neither.

Examples:
    >>> from nnunetv2_micd import MICDConfig
    >>> MICDConfig(ema_decay=0.9).ema_decay
    0.9
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors
    from nnunetv2_micd.ext_trainers.nnunetv2_micd_trainers import *
    from nnunetv2_micd.methods.micd import MICDConfig
    from nnunetv2_micd.training.config import SemiSupervisedConfig
    from nnunetv2_micd.training.step import Losses
    from nnunetv2_micd.training.trainer import SemiSupervisedTrainer

__version__ = "0.1.0"
__all__ = [
    "TRAINER_FOLDER",
    "Losses",
    "MICDConfig",
    "SemiSupervisedConfig",
    "SemiSupervisedTrainer",
    "__version__",
    "nnUNetTrainerMICD",
]

TRAINER_FOLDER = str(Path(__file__).parent / "ext_trainers")
"""Folder that nnU-Net searches: one file that re-exports the trainers."""

EXT_TRAINER_BEFORE_IMPORT = os.environ.get("nnUNet_extTrainer", "")
"""Folders in which nnU-Net's own commands search for trainers, as they do not import this package first."""

_MODULES = {
    "Losses": "nnunetv2_micd.training.step",
    "MICDConfig": "nnunetv2_micd.methods.micd",
    "SemiSupervisedConfig": "nnunetv2_micd.training.config",
    "SemiSupervisedTrainer": "nnunetv2_micd.training.trainer",
}

if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(importlib.import_module(_MODULES[name]), name)
        if name.startswith("nnUNetTrainer"):
            trainers = importlib.import_module("nnunetv2_micd.ext_trainers.nnunetv2_micd_trainers")
            if name in trainers.__all__:
                return getattr(trainers, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _add_trainer_folder() -> None:
    folders = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    if TRAINER_FOLDER not in folders:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*filter(None, folders), TRAINER_FOLDER])


_add_trainer_folder()
