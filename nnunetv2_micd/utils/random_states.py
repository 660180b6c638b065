"""Saves, restores and seeds the global random states from which nnU-Net, batchgenerators and PyTorch draw."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def get_states() -> dict[str, Any]:
    """Return the states of Python, NumPy and PyTorch on the CPU; they can be pickled."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def set_states(states: dict[str, Any]) -> None:
    """Restore the states that :func:`get_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on the CPU.

    Args:
        seed: Number of at most 32 bits, the limit of NumPy.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well


@contextmanager
def restored() -> Iterator[None]:
    """Restore the states at the end of the block.

    Examples:
        >>> before = torch.get_rng_state()
        >>> with restored():
        ...     seed_all(1)
        ...     numbers = torch.rand(2)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    states = get_states()
    try:
        yield
    finally:
        set_states(states)
