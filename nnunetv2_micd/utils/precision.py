"""Computations that half precision would spoil."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast, for matrix products of float32 tensors.

    Examples:
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    # Older PyTorch has no autocast on mps.
    return nullcontext() if device.type == "mps" else torch.autocast(device.type, enabled=False)
