"""Reads checkpoints as data: nothing in them is run, whoever made them."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

# NumPy's pickles of a number and of an array name these functions, in NumPy 2 and in NumPy 1.
_NUMPY_FUNCTIONS: list[Any] = [
    (value.__reduce__()[0], f"numpy.{package}.multiarray.{name}")
    for name, value in (("scalar", np.float64()), ("_reconstruct", np.zeros(0)))
    for package in ("_core", "core")
]
_ALLOWED = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdU"), *_NUMPY_FUNCTIONS]
"""What the checkpoints of nnU-Net and of this package hold beside tensors, numbers and text: numbers of NumPy."""


def read_checkpoint(path: str | os.PathLike[str], mapped: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint of nnU-Net or of this package, with tensors on the CPU.

    A checkpoint is a pickle, which may hold any function of any module and run it. Here a pickle may hold tensors,
    numbers and text only. Needs PyTorch 2.6: older versions run code in spite of ``weights_only`` (CVE-2025-32434).

    Args:
        path: File to read.
        mapped: Map the weights into memory instead of reading them, for a look at the rest.

    Raises:
        FileNotFoundError: There is no such file.
        PermissionError: It may not be read.
        ValueError: The file is damaged, no checkpoint, or holds something that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except PermissionError:
        raise
    except Exception as error:  # a damaged pickle raises any type of error
        raise ValueError(_explain(path, error)) from error
    lacking = _lacking(checkpoint)
    if lacking:
        raise ValueError(f"{path} is no checkpoint of nnU-Net: it has no {lacking}; {_others(path)}")
    return checkpoint


def epoch_times(path: str | os.PathLike[str]) -> list[tuple[float, float]]:
    """Return begin and end of each epoch of a training in seconds, also of those before an interruption.

    Args:
        path: The checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds no times, such as a model that was exported without its history.
    """
    log = read_checkpoint(path, mapped=True).get("logging", {})
    starts, ends = log.get("epoch_start_timestamps", []), log.get("epoch_end_timestamps", [])
    if not starts or len(starts) != len(ends):
        raise ValueError(f"{path} does not hold the times of its epochs")
    return list(zip(starts, ends, strict=True))


def forbidden_object(error: BaseException | None) -> str | None:
    """Return what kept a checkpoint from being read as data, such as "pathlib.PosixPath", if that was the reason."""
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in text:
        return text.partition("GLOBAL ")[2].partition(" ")[0] or "function"
    return None


def _explain(path: Path, error: Exception) -> str:
    if name := forbidden_object(error):
        return (
            f"{path} is not read, because it holds {name}, which could run code and is in no checkpoint of nnU-Net; "
            "take one from someone whom you trust"
        )
    return f"{path} is damaged or no checkpoint ({type(error).__name__}); {_others(path)}"


def _lacking(checkpoint: Any) -> str:
    """Return what a content lacks to be a checkpoint, or nothing."""
    if not isinstance(checkpoint, dict):
        return "entries"
    types = {"network_weights": Mapping, "trainer_name": str, "init_args": Mapping}
    for name, kind in types.items():
        if not isinstance(checkpoint.get(name), kind):
            return name
    weights = checkpoint["network_weights"]
    return "" if weights and all(isinstance(weight, torch.Tensor) for weight in weights.values()) else "weights"


def _others(path: Path) -> str:
    others = sorted(other.name for other in path.parent.glob("checkpoint_*.pth") if other != path)
    return f"there is also {' and '.join(others)} beside it" if others else "take another, or train again"
