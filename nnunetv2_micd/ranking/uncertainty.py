"""How unsure predictions of an image are: entropy, and disagreement of two predictions. Pure functions of tensors."""

import math

import torch
from torch import Tensor

POSSIBLE = 0.05
"""Probability of a class from which a voxel counts for its mean entropy. Sure background is most of an image."""


def entropy(probabilities: Tensor, has_regions: bool) -> Tensor:
    """Return the entropy of each voxel ``(*spatial)``, as a share of the largest possible one.

    Args:
        probabilities: ``(K, *spatial)``: of classes, the background first, or of regions.
        has_regions: Whether they are of regions, which are independent of each other. Their entropy is the mean.

    Examples:
        >>> entropy(torch.tensor([[0.5, 1.0], [0.5, 0.0]]), has_regions=False).tolist()
        [1.0, 0.0]
    """
    if has_regions:
        return _binary_entropy(probabilities).mean(0)
    return _entropy_terms(probabilities).sum(0) / math.log(len(probabilities))


def mean_entropy(probabilities: Tensor, has_regions: bool) -> float:
    """Return the mean entropy of the voxels that may be foreground, 0 if there are none.

    Examples:
        >>> mean_entropy(torch.tensor([[0.5, 1.0], [0.5, 0.0]]), has_regions=False)
        1.0
    """
    foreground = probabilities.amax(0) if has_regions else 1 - probabilities[0]
    return _mean_of(entropy(probabilities, has_regions), foreground > POSSIBLE)


def entropy_by_class(probabilities: Tensor, has_regions: bool) -> list[float]:
    """Return for each class but the background the mean entropy of "it or not it" in the voxels that may be it."""
    classes = probabilities if has_regions else probabilities[1:]
    return [_mean_of(_binary_entropy(one), one > POSSIBLE) for one in classes]


def disagreement(first: Tensor, second: Tensor) -> float:
    """Return one minus the Dice of two predictions, mean of the classes that are in either; 0 if none is.

    Dice between predictions of one image tells how good they are (Roy et al., NeuroImage 2019, "Bayesian QuickNAT").

    Args:
        first: Masks of the classes ``(classes, *spatial)``, bool.
        second: The same of the other prediction.

    Examples:
        >>> disagreement(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]]))  # 1 - 2 / 3
        0.3333...
    """
    first, second = first.flatten(1), second.flatten(1)
    size = first.sum(1) + second.sum(1)
    dice = 2 * (first & second).sum(1)[size > 0] / size[size > 0]
    return float(1 - dice.mean()) if len(dice) else 0.0


def _mean_of(values: Tensor, counted: Tensor) -> float:
    return float(values[counted].mean()) if counted.any() else 0.0


def _binary_entropy(probabilities: Tensor) -> Tensor:
    return (_entropy_terms(probabilities) + _entropy_terms(1 - probabilities)) / math.log(2)


def _entropy_terms(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities)
