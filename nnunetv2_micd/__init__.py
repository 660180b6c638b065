"""Semi-supervised training for nnU-Net v2 as an installable plugin.

Importing the package tells nnU-Net where the trainers are, in this process and its children, so that notebooks and
``nnUNetPredictor`` find them. On the command line the environment variable is set once, see ``nnUNetv2_micd path``.
"""

import os
from pathlib import Path

__version__ = "0.1.0"
__all__ = ["TRAINER_FOLDER", "__version__"]

TRAINER_FOLDER = str(Path(__file__).parent / "ext_trainers")
"""The folder that nnU-Net searches: one file that re-exports the trainers."""

EXT_TRAINER_BEFORE_IMPORT = os.environ.get("nnUNet_extTrainer", "")
"""Where nnU-Net's own commands search for trainers, as they do not import this package first."""


def _add_trainer_folder() -> None:
    folders = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    if TRAINER_FOLDER not in folders:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*filter(None, folders), TRAINER_FOLDER])


_add_trainer_folder()
