"""Semi-supervised training for nnU-Net v2 as an installable plugin.

Importing the package tells nnU-Net where the trainers are, in this process and its children, so that notebooks and
``nnUNetPredictor`` find them. On the command line the environment variable is set once, see ``nnUNetv2_micd path``.

The trainers, their configurations and the base class of all trainers are names of this package. Each is imported when
it is first used: torch and nnU-Net take seconds to import, and ``nnUNetv2_micd path`` needs neither.

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
    from nnunetv2_micd.methods.bcp import BCPConfig
    from nnunetv2_micd.methods.cps import CPSConfig
    from nnunetv2_micd.methods.dhc import DHCConfig
    from nnunetv2_micd.methods.mcf import MCFConfig
    from nnunetv2_micd.methods.mean_teacher import MeanTeacherConfig
    from nnunetv2_micd.methods.micd import MICDConfig
    from nnunetv2_micd.methods.micd_paper import MICDPaperConfig
    from nnunetv2_micd.methods.pseudo_labels.trainer import PseudoLabelsConfig
    from nnunetv2_micd.methods.uamt import UAMTConfig
    from nnunetv2_micd.methods.unimatch import UniMatchConfig
    from nnunetv2_micd.training.config import SemiSupervisedConfig
    from nnunetv2_micd.training.trainer import SemiSupervisedTrainer

__version__ = "0.1.0"
__all__ = [
    "TRAINER_FOLDER",
    "BCPConfig",
    "CPSConfig",
    "DHCConfig",
    "MCFConfig",
    "MICDConfig",
    "MICDPaperConfig",
    "MeanTeacherConfig",
    "PseudoLabelsConfig",
    "SemiSupervisedConfig",
    "SemiSupervisedTrainer",
    "UAMTConfig",
    "UniMatchConfig",
    "__version__",
    "nnUNetTrainerBCP",
    "nnUNetTrainerCPS",
    "nnUNetTrainerDHC",
    "nnUNetTrainerMCF",
    "nnUNetTrainerMICD",
    "nnUNetTrainerMICD_5epochs",
    "nnUNetTrainerMICD_50epochs",
    "nnUNetTrainerMICD_100epochs",
    "nnUNetTrainerMICD_250epochs",
    "nnUNetTrainerMICD_250epochs_NoMirroring",
    "nnUNetTrainerMICD_2000epochs_NoMirroring",
    "nnUNetTrainerMICD_4000epochs_NoMirroring",
    "nnUNetTrainerMICD_8000epochs_NoMirroring",
    "nnUNetTrainerMICD_NoMirroring",
    "nnUNetTrainerMICD_SupervisedOnly",
    "nnUNetTrainerMICD_allImages",
    "nnUNetTrainerMICD_noCFC",
    "nnUNetTrainerMICD_noCMD",
    "nnUNetTrainerMICD_noMCPC",
    "nnUNetTrainerMICD_paper",
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerPseudoLabels",
    "nnUNetTrainerUAMT",
    "nnUNetTrainerUniMatch",
]

TRAINER_FOLDER = str(Path(__file__).parent / "ext_trainers")
"""Folder that nnU-Net searches: one file that re-exports the trainers."""

EXT_TRAINER_BEFORE_IMPORT = os.environ.get("nnUNet_extTrainer", "")
"""Folders in which nnU-Net's own commands search for trainers, as they do not import this package first."""

_MODULES = {
    "BCPConfig": "nnunetv2_micd.methods.bcp",
    "CPSConfig": "nnunetv2_micd.methods.cps",
    "DHCConfig": "nnunetv2_micd.methods.dhc",
    "MCFConfig": "nnunetv2_micd.methods.mcf",
    "MICDConfig": "nnunetv2_micd.methods.micd",
    "MICDPaperConfig": "nnunetv2_micd.methods.micd_paper",
    "MeanTeacherConfig": "nnunetv2_micd.methods.mean_teacher",
    "PseudoLabelsConfig": "nnunetv2_micd.methods.pseudo_labels.trainer",
    "SemiSupervisedConfig": "nnunetv2_micd.training.config",
    "SemiSupervisedTrainer": "nnunetv2_micd.training.trainer",
    "UAMTConfig": "nnunetv2_micd.methods.uamt",
    "UniMatchConfig": "nnunetv2_micd.methods.unimatch",
}
_TRAINERS = "nnunetv2_micd.ext_trainers.nnunetv2_micd_trainers"
"""Module of all names in ``__all__`` that are neither here nor in ``_MODULES``."""


if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES.get(name, _TRAINERS)), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _add_trainer_folder() -> None:
    folders = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    if TRAINER_FOLDER not in folders:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*filter(None, folders), TRAINER_FOLDER])


_add_trainer_folder()
