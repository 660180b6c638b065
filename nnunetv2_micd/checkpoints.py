"""Checkpoint files: nnU-Net's own content, and under one key what semi-supervised training needs beside it."""

import os
from io import BytesIO
from typing import Any

import torch

import nnunetv2_micd

KEY = "nnunetv2_micd"


def write(filename: str, nnunet_checkpoint: BytesIO, state: dict[str, Any]) -> None:
    """Write what nnU-Net saved together with our state, beside its place first, so that an old file stays whole.

    Args:
        filename: of the checkpoint.
        nnunet_checkpoint: what ``nnUNetTrainer.save_checkpoint`` wrote.
        state: our part.
    """
    nnunet_checkpoint.seek(0)
    checkpoint = torch.load(nnunet_checkpoint, map_location="cpu", weights_only=False)
    checkpoint[KEY] = {"version": nnunetv2_micd.__version__, **state}
    torch.save(checkpoint, filename + ".tmp")
    os.replace(filename + ".tmp", filename)


def read_state(filename: str, trainer_name: str) -> dict[str, Any]:
    """Return our part of a checkpoint, on the CPU.

    Raises:
        ValueError: if another trainer wrote the file.
    """
    checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
    writer = checkpoint["trainer_name"]
    if KEY not in checkpoint or writer != trainer_name:
        raise ValueError(
            f"{filename} was written by {writer} and cannot be continued by {trainer_name}; to start a new training "
            f"from its weights, use: -pretrained_weights {filename}"
        )
    return checkpoint[KEY]
