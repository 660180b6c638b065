"""Checks the device that a command is to compute on, copies to it, and counts cores."""

import os

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor from the CPU to a device. For a CUDA GPU the CPU does not wait for the end of the copy.

    Elsewhere it does: on MPS a copy that nobody waits for may read the memory of a tensor that is gone by then (PyTorch
    issues 139550 and 189690).
    """
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def count_cores() -> int:
    """Return the number of cores that this process may use, which need not be all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_device(device: str) -> None:
    """Check that there is a GPU if one is asked for, before any time is spent.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ValueError: It is ``cuda``, and PyTorch sees none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no CUDA GPU; add -device cpu, or -device mps on a Mac")
