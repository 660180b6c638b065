"""Checks of the device that a command is to compute on."""

import torch


def check_device(device: str) -> None:
    """Check that there is a GPU if one is asked for, before any time is spent.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ValueError: It is ``cuda``, and PyTorch sees none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no CUDA GPU; add -device cpu, or -device mps on a Mac")
