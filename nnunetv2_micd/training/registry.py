"""Finds trainers by their names as nnU-Net does, and the folders of ``nnUNet_extTrainer`` that this needs.

nnU-Net imports every file of every folder in ``nnUNet_extTrainer`` until one holds the trainer. One file that cannot
be imported therefore hides all trainers in its folder and in the folders after it.
"""

import json
import os
import re
import tempfile
import traceback
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

import nnunetv2
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.utils.files import environment

STOCK = "nnUNetTrainer"
"""Name of nnU-Net's own trainer, the default baseline of every comparison."""

EXT_TRAINER = "nnUNet_extTrainer"
"""Environment variable with the folders of further trainers, separated as in ``PATH``."""

GENERATED_FOLDER = "benchmark_trainers"
"""Folder in ``nnUNet_results`` with a folder for each class that a benchmark has generated."""

_STOCK_FOLDER = Path(nnunetv2.__path__[0], "training", "nnUNetTrainer")


@dataclass(frozen=True)
class FoundTrainer:
    """A trainer and where nnU-Net finds it.

    Attributes:
        trainer_class: The class.
        folder: Folder in ``nnUNet_extTrainer`` that holds it, None for a trainer of nnU-Net itself.
        search_folders: Folders that have to be in ``nnUNet_extTrainer`` to find it.
    """

    trainer_class: type
    folder: str | None
    search_folders: tuple[str, ...]


def find_trainer(name: str) -> FoundTrainer:
    """Find a trainer as nnU-Net does: in nnU-Net itself, then in the folders of ``nnUNet_extTrainer`` in their order.

    Args:
        name: Name of the class, as after ``-tr``.

    Raises:
        ValueError: There is no such trainer, it is not a trainer, or nnU-Net cannot find it because of a broken file.

    Examples:
        >>> find_trainer("nnUNetTrainer_5epochs").search_folders
        ()
    """
    folders = external_folders()
    for folder in (None, *folders):
        candidate = _search(name, folder)
        if candidate is None:
            continue
        if not (isinstance(candidate, type) and issubclass(candidate, nnUNetTrainer)):
            raise ValueError(f"{name} cannot be used as a trainer: it is not a subclass of nnUNetTrainer")
        if folder is None:
            return FoundTrainer(candidate, None, ())
        return FoundTrainer(candidate, folder, (folder,) if _is_found_in(folder, name) else folders)
    generated = Path(nnUNet_results.get() or "", GENERATED_FOLDER, name)
    if (generated / f"{name}.py").is_file():
        raise ValueError(f"{name} was made by a benchmark; to find it, add its folder {generated} to {EXT_TRAINER}")
    exports = "".join(file.read_text(encoding="utf-8") for file in Path(TRAINER_FOLDER).glob("*.py"))
    meant = get_close_matches(name, set(re.findall(r"\bnnUNetTrainer\w+", exports)), n=1)
    question = f" (did you mean {meant[0]}?)" if meant else ""
    raise ValueError(
        f"There is no trainer {name}{question}; see: nnUNetv2_micd list ; or, if it is your own, add its folder to "
        f"{EXT_TRAINER}"
    )


def external_folders() -> tuple[str, ...]:
    """Return the existing folders in ``nnUNet_extTrainer``."""
    folders = os.environ.get(EXT_TRAINER, "").split(os.pathsep)
    return tuple(dict.fromkeys(folder for folder in folders if folder.strip() and os.path.exists(folder)))


def join_folders(folders: Iterable[str]) -> str:
    """Return folders as a value of ``nnUNet_extTrainer``, each once."""
    return os.pathsep.join(dict.fromkeys(folders))


def add_trainer_folders(folders: Iterable[str]) -> None:
    """Let nnU-Net search further folders for trainers, in this process and in those that it starts."""
    before = os.environ.get(EXT_TRAINER, "").split(os.pathsep)
    os.environ[EXT_TRAINER] = join_folders([*filter(None, before), *folders])


def training_length(
    trainer_class: type, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> tuple[int, int]:
    """Return the number of epochs of a trainer and the number of iterations in each.

    Only the constructor knows them, so a trainer is made.

    Args:
        trainer_class: The class.
        plans: Content of the plans file.
        configuration: Name of the configuration.
        dataset_json: Content of ``dataset.json``.

    Raises:
        ValueError: The constructor fails.
    """
    # The constructor makes a folder for the results and changes the plans that it is given.
    with tempfile.TemporaryDirectory() as folder, environment(nnUNet_results=folder, nnUNet_wandb_enabled="0"):
        plans = {**json.loads(json.dumps(plans)), "continue_training": False}
        try:
            with redirect_stdout(StringIO()):
                trainer = trainer_class(plans, configuration, 0, dataset_json, torch.device("cpu"))
        except Exception as error:  # whatever the code of a stranger raises
            raise ValueError(f"{trainer_class.__name__} cannot be used as a trainer ({error!r})") from None
    return trainer.num_epochs, trainer.num_iterations_per_epoch


def _search(name: str, folder: str | None) -> Any:
    """Return what has this name in a folder of trainers, or None.

    Raises:
        ValueError: A file of the folder cannot be imported.
    """
    try:
        with redirect_stdout(StringIO()):  # nnU-Net prints every file that it looks at
            if folder is None:
                module = "nnunetv2.training.nnUNetTrainer"
                return recursive_find_python_class(str(_STOCK_FOLDER), name, module, nnunetv2.__path__[0])
            return recursive_find_python_class(folder, name, None, folder, cleanup_imports_from_base_folder=True)
    except Exception as error:  # whatever the code of a stranger raises while it is imported
        file = _broken_file(error, folder or str(_STOCK_FOLDER))
        remedy = (
            "correct or remove it" if folder is None else f"correct or remove it, or take {folder} out of {EXT_TRAINER}"
        )
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"nnU-Net does not find {name}, because {file} cannot be imported ({reason}); {remedy}"
        ) from None


def _broken_file(error: Exception, folder: str) -> str:
    """Return the file of a folder in which an import failed."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:  # a file that cannot be parsed has no frame
        files.append(error.filename)
    inside = [file for file in files if os.path.abspath(file).startswith(os.path.join(os.path.abspath(folder), ""))]
    return inside[-1] if inside else folder


def _is_found_in(folder: str, name: str) -> bool:
    """Return True if nnU-Net finds a trainer without the other folders, in which its file might search for a base."""
    with environment(**{EXT_TRAINER: folder}):
        try:
            return _search(name, folder) is not None
        except ValueError:
            return False
