"""Checkpoint files: nnU-Net's own content, and under one key what semi-supervised training needs beside it."""

import os
from io import BytesIO
from typing import Any

import torch

import nnunetv2_micd

KEY = "nnunetv2_micd"


FINAL = "checkpoint_final.pth"


def write(filename: str, nnunet_checkpoint: BytesIO, state: dict[str, Any]) -> None:
    """Write what nnU-Net saved together with our state, beside its place first, so that an old file stays whole.

    The final checkpoint keeps no momentum: no step is taken after it, and it would make up a third of the file.

    Args:
        filename: of the checkpoint.
        nnunet_checkpoint: what ``nnUNetTrainer.save_checkpoint`` wrote.
        state: our part.

    Raises:
        OSError: the file cannot be written.
    """
    nnunet_checkpoint.seek(0)
    checkpoint = torch.load(nnunet_checkpoint, map_location="cpu", weights_only=False)
    if os.path.basename(filename) == FINAL:
        checkpoint["optimizer_state"]["state"] = {}
    checkpoint[KEY] = {"version": nnunetv2_micd.__version__, **state}
    incomplete = filename + ".tmp"
    try:
        torch.save(checkpoint, incomplete)
        os.replace(incomplete, filename)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if os.path.exists(incomplete):
            os.remove(incomplete)
        raise OSError(
            f"Cannot write {filename} ({' '.join(str(error).split())}), most often because the disk is full; make room "
            f"and continue with --c, the checkpoints written before are whole."
        ) from error


def read_state(filename: str, trainer_name: str) -> dict[str, Any]:
    """Return our part of a checkpoint, on the CPU.

    Raises:
        ValueError: if another trainer, or an incompatible version of this package, wrote the file.
    """
    checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
    writer = checkpoint["trainer_name"]
    if KEY not in checkpoint or writer != trainer_name:
        raise ValueError(
            f"{filename} was written by {writer} and cannot be continued by {trainer_name}; to start a new training "
            f"from its weights, use: -pretrained_weights {filename}"
        )
    version = checkpoint[KEY]["version"]
    if _release(version) != _release(nnunetv2_micd.__version__):
        raise ValueError(
            f"{filename} was written by version {version} of nnunetv2-micd, this is {nnunetv2_micd.__version__}; to "
            f"continue it, run: pip install nnunetv2-micd=={version}"
        )
    return checkpoint[KEY]


def _release(version: str) -> list[str]:
    """Return major and minor version: patches keep the content of a checkpoint."""
    return version.split(".")[:2]
