"""Distances between the features of two networks."""

import torch.nn.functional as F
from torch import Tensor


def cosine_distance(features: Tensor, others: Tensor) -> Tensor:
    """One minus the cosine of the angle between the features of each sample, all channels and voxels in one vector.

    Source: the high-level consistency of M3HL (https://arxiv.org/abs/2508.03752).

    Args:
        features: ``(B, C, *spatial)``; receives gradient.
        others: Same shape.

    Returns:
        Scalar between 0 and 2, the mean over the samples, float32.

    Examples:
        >>> import torch
        >>> cosine_distance(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]]))
        tensor(0.2929)
    """
    return 1 - F.cosine_similarity(features.float().flatten(1), others.float().flatten(1)).mean()


def absolute_distance(features: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference, the low-level consistency of M3HL.

    Args:
        features: ``(B, C, *spatial)``; receives gradient.
        others: Same shape.

    Returns:
        Scalar, float32.

    Examples:
        >>> import torch
        >>> absolute_distance(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]]))
        tensor(0.5000)
    """
    return F.l1_loss(features.float(), others.float())
