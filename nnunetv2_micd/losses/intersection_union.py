"""The contrast of C3S3 between the features of two networks, by what both of them, or at least one, segment."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def intersection_union_contrast(
    cosine: Tensor, pseudo_a: Tensor, pseudo_b: Tensor, num_classes: int, temperature: float
) -> Tensor:
    """Outcome-driven contrast: the features of both networks are alike where they agree about a class.

    C3S3 (He et al., ICME 2025, https://arxiv.org/abs/2506.07368), restated from the authors' ``ContrastiveLoss``
    (Y-TARL/C3S3, commit 47ee3296).

    Of one class, with ``s_i`` the cosine of both features at voxel i of the batch over the temperature, ``m_i`` one
    where both networks see the class and ``u_i`` one where at least one does, it is the mean over the voxels of::

        -log(exp(m_i s_i) / (sum_j exp((1 - m_j) s_j) + exp(m_i s_i)))
        -log(exp((1 - u_i) s_i) / (sum_j exp(u_j s_j) + exp((1 - u_i) s_i)))

    where a voxel that a mask leaves out counts as ``exp(0)``. Each foreground class is contrasted with the rest, each
    region by itself; the mean is over those that a network sees.

    Args:
        cosine: ``(B, *spatial)``, see ``losses.fused.channel_cosine``; receives gradient.
        pseudo_a: Hard labels of A, see ``losses.pseudo_label``.
        pseudo_b: Hard labels of B.
        num_classes: Number of classes K, with the background, or of regions.
        temperature: tau.

    Returns:
        Scalar in nats, float32; 0, with a graph, where the networks see nothing.

    Examples:
        >>> labels = torch.tensor([[1, 0]])  # both networks see the class in the first of two voxels
        >>> loss = intersection_union_contrast(torch.zeros(1, 2), labels, labels, num_classes=2, temperature=0.1)
        >>> print(f"{loss:.4f}")  # 2 ln 3
        2.1972
    """
    similarity = cosine.float() / temperature
    first = 0 if pseudo_a.dtype == torch.bool else 1
    # Computed again in the backward pass: with many classes autograd would keep many tensors of the size of the images.
    contrast = partial(checkpoint, _contrast_class, similarity, pseudo_a, pseudo_b, use_reentrant=False)
    losses, seen = zip(*(contrast(k, preserve_rng_state=False) for k in range(first, num_classes)), strict=True)
    return (torch.stack(losses) * torch.stack(seen)).sum() / torch.stack(seen).sum().clamp_min(1)


def _contrast_class(similarity: Tensor, pseudo_a: Tensor, pseudo_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the loss of a class, and whether a network sees it."""
    of_a, of_b = (labels[:, k] if labels.dtype == torch.bool else labels == k for labels in (pseudo_a, pseudo_b))
    union = of_a | of_b
    return _attract(similarity, of_a & of_b) + _attract(similarity, ~union), union.any()


def _attract(similarity: Tensor, positive: Tensor) -> Tensor:
    attracted = torch.where(positive, similarity, 0)
    repelled = torch.where(positive, 0, similarity).flatten().logsumexp(0)
    return F.softplus(repelled - attracted).mean()
