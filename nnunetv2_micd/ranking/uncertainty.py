"""How unsure predictions of an image are: entropy, and disagreement of two predictions. Pure functions of tensors."""

import math

import torch
from torch import Tensor

FOREGROUND = 0.05
"""Probability of any foreground from which a voxel counts for the mean entropy. Sure background is most of an image."""


def mean_entropy(probabilities: Tensor, has_regions: bool) -> float:
    """Return the mean entropy of the voxels that may be foreground, 0 if there are none.

    Args:
        probabilities: ``(K, *spatial)``: of classes, the background first, or of regions.
        has_regions: Whether they are of regions, which are independent of each other.

    Examples:
        >>> mean_entropy(torch.tensor([[0.5, 1.0], [0.5, 0.0]]), has_regions=False)
        1.0
    """
    foreground = probabilities.amax(0) if has_regions else 1 - probabilities[0]
    counted = foreground > FOREGROUND
    return float(entropy(probabilities, has_regions)[counted].mean()) if counted.any() else 0.0


def entropy(probabilities: Tensor, has_regions: bool) -> Tensor:
    """Return the entropy of each voxel ``(*spatial)``, as a share of the largest possible one.

    Args:
        probabilities: See :func:`mean_entropy`.
        has_regions: Likewise. The entropy of regions is the mean over them.
    """
    if has_regions:
        return (_entropy_terms(probabilities) + _entropy_terms(1 - probabilities)).mean(0) / math.log(2)
    return _entropy_terms(probabilities).sum(0) / math.log(len(probabilities))


def _entropy_terms(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities)


def disagreement(first: Tensor, second: Tensor) -> list[float]:
    """Return one minus the Dice of two predictions for each class; NaN if a class is in neither.

    Dice between predictions of one image tells how good they are (Roy et al., NeuroImage 2019, "Bayesian QuickNAT",
    sec. 2.4).

    Args:
        first: Masks of the classes ``(classes, *spatial)``, bool.
        second: The same of the other prediction.

    Examples:
        >>> disagreement(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]]))[0]  # 1 - 2 / 3
        0.3333...
    """
    first, second = first.flatten(1), second.flatten(1)
    size = first.sum(1) + second.sum(1)
    return (1 - 2 * (first & second).sum(1) / size).tolist()


def mean_of_classes(by_class: list[float]) -> float:
    """Return the mean over the classes that are in either prediction, 0 if none is."""
    present = [value for value in by_class if not math.isnan(value)]
    return sum(present) / len(present) if present else 0.0
