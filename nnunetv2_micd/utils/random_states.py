"""Saves, restores and seeds the global random states from which nnU-Net, batchgenerators and PyTorch draw."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


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


def get_dropout_states() -> list[Tensor]:
    """Return the states from which PyTorch draws dropout: on the CPU and on the current GPU."""
    return [module.get_rng_state() for module in _modules_with_states()]


@contextmanager
def dropout_repeated(states: Sequence[Tensor]) -> Iterator[None]:
    """Draw the same dropout in the block as after these states, and go on after it as if nothing had been drawn.

    Args:
        states: What :func:`get_dropout_states` returned.

    Examples:
        >>> states, ones = get_dropout_states(), torch.ones(100)
        >>> dropped = torch.nn.functional.dropout(ones)
        >>> with dropout_repeated(states):
        ...     torch.equal(torch.nn.functional.dropout(ones), dropped)
        True
    """
    later = get_dropout_states()
    _set_dropout_states(states)
    try:
        yield
    finally:
        _set_dropout_states(later)


def _set_dropout_states(states: Sequence[Tensor]) -> None:
    for module, state in zip(_modules_with_states(), states, strict=True):
        module.set_rng_state(state)


def _modules_with_states() -> list[Any]:
    gpus = [(torch.cuda, torch.cuda.is_initialized()), (torch.mps, torch.backends.mps.is_available())]
    return [torch, *(module for module, is_used in gpus if is_used)]
