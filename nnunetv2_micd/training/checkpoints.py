"""Checkpoint files: nnU-Net's own content, and the further state of a semi-supervised training under one key."""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import torch

import nnunetv2_micd
from nnunetv2_micd.data.results import CHECKPOINTS, FINAL
from nnunetv2_micd.utils.checkpoint_files import forbidden_object, read_checkpoint
from nnunetv2_micd.utils.files import atomic

KEY = "nnunetv2_micd"


def write(filename: str, nnunet_checkpoint: BytesIO, state: dict[str, Any]) -> None:
    """Write nnU-Net's content together with the further state; an old file stays whole until the new one is.

    The final checkpoint keeps no momentum, which would make up a third of the file: only a training that is continued
    with more epochs takes a step after it.

    Args:
        filename: File of the checkpoint.
        nnunet_checkpoint: Content that ``nnUNetTrainer.save_checkpoint`` wrote.
        state: Further state of the training.

    Raises:
        OSError: the file cannot be written.
        TypeError: the state holds objects with which no checkpoint is read again.
    """
    nnunet_checkpoint.seek(0)
    checkpoint = torch.load(nnunet_checkpoint, map_location="cpu", weights_only=False)
    if os.path.basename(filename) == FINAL:
        checkpoint["optimizer_state"]["state"] = {}
    checkpoint[KEY] = {"version": nnunetv2_micd.__version__, **state}
    try:
        with atomic(filename) as temporary:
            torch.save(checkpoint, str(temporary))
            _check_readable(temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(
            f"Cannot write {filename} ({' '.join(str(error).split())}), most often because the disk is full; make room "
            f"and continue with --c, the checkpoints written before are whole."
        ) from error


def _check_readable(path: Path) -> None:
    try:
        read_checkpoint(path, mapped=True)
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            return  # such as a file system on which no file can be mapped
        name = forbidden_object(error.__cause__) or "an object"
        raise TypeError(
            f"The training cannot be saved: its method_state() or configuration holds {name}, which nobody could read "
            "again; keep tensors, arrays of numbers, numbers and text only, in dictionaries, lists, tuples or sets"
        ) from None


def set_aside(folder: str) -> list[str]:
    """Rename the checkpoints of an earlier training, which ``--c`` would continue instead of the one that starts now.

    The first such training is kept as ``checkpoint_final_earlier_1.pth`` and so on, the next as number 2.

    Args:
        folder: Results folder of the training.

    Returns:
        The new names.

    Raises:
        OSError: A file cannot be renamed.
    """
    found = [path for path in (Path(folder, name) for name in CHECKPOINTS) if path.is_file()]
    number = next(number for number in count(1) if not any(Path(folder).glob(f"checkpoint_*_earlier_{number}.pth")))
    return [path.rename(path.with_stem(f"{path.stem}_earlier_{number}")).name for path in found]


def read_state(filename: str, trainer_name: str) -> dict[str, Any]:
    """Return the further state in a checkpoint, on the CPU.

    nnU-Net reads the file after this, in a way that runs what is in it; so it has to pass here first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: if another trainer, or an incompatible version of this package, wrote the file, or if it is not a
            checkpoint that can be trusted, see :func:`utils.checkpoint_files.read_checkpoint`.
    """
    checkpoint = read_checkpoint(filename)
    writer = checkpoint["trainer_name"]
    if KEY not in checkpoint or writer != trainer_name:
        raise ValueError(
            f"{filename} was written by {writer} and cannot be continued by {trainer_name}; to start a new training "
            f"from its weights, use: -pretrained_weights {filename}"
        )
    version = checkpoint[KEY].get("version") if isinstance(checkpoint[KEY], dict) else None
    if not isinstance(version, str):
        raise ValueError(f"{filename} is damaged: it does not say which version wrote it; continue from another")
    if _release(version) != _release(nnunetv2_micd.__version__):
        raise ValueError(
            f"{filename} was written by version {version} of nnunetv2-micd, this is {nnunetv2_micd.__version__}; "
            f"install version {version} to use it, or train anew without --c"
        )
    return checkpoint[KEY]


def list_changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return in words which settings differ from the saved ones; those that only one of them has are left out.

    Examples:
        >>> list_changes({"ema_decay": 0.99, "old": 1}, {"ema_decay": 0.5, "new": 2})
        'ema_decay is 0.5 and was 0.99'
    """
    changed = [name for name, value in saved.items() if config.get(name, value) != value]
    return ", ".join(f"{name} is {config[name]} and was {saved[name]}" for name in changed)


@contextmanager
def fitting(filename: str) -> Iterator[None]:
    """Name the checkpoint when its content does not fit the training that it is loaded into.

    Raises:
        ValueError: something is missing in it, or its networks are others.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{filename} does not fit this training ({reason[:200]}); continue from another checkpoint, with the plans "
            "that it was trained with, or train anew without --c"
        ) from error


def _release(version: str) -> list[str]:
    """Return major and minor version: patches keep the content of a checkpoint."""
    return version.split(".")[:2]
