"""Losses of large tensors, whose gradients are computed together with their value.

Feature maps and logits at full resolution are the largest tensors of a training. Of these losses autograd would keep
several more of their size in float32, or compute everything twice. Their gradients are known, though: here they are
computed in float32 where the value is, a chunk at a time, and kept in the dtype of the input.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**22
"""How many values are worked on at a time: enough that starting the kernels takes no time."""


def symmetric_kl(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Return ``0.5 (KL(A || B) + KL(B || A))`` of the softmax over channels, the mean over batch and voxels.

    With ``p`` and ``q`` the softmax of A and B and ``d = log p - log q`` the gradients are

    - with respect to A ``0.5 (p (d - sum p d) + p - q)``,
    - with respect to B ``0.5 (q (sum q d - d) + q - p)``,

    sums over channels.

    Args:
        features_a: ``(B, C, *spatial)``; receives gradient.
        features_b: The same shape; receives gradient.

    Returns:
        Scalar in nats, float32.
    """
    return _SymmetricKL.apply(features_a, features_b)


def hard_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross entropy with hard labels: ``sum_v w_{y_v} CE_v / sum_v w_{y_v}`` over all voxels of the batch.

    The gradient is that of the softmax minus one for the label, times the weight of the label.

    Args:
        logits: ``(B, K, *spatial)``; receives gradient.
        target: Classes ``(B, *spatial)``, integers.
        weight: ``(K,)``, of the classes; None for ones.

    Returns:
        Scalar in nats, float32; zero where all weights are.
    """
    return _HardCrossEntropy.apply(logits, target, None if weight is None else weight.float())


class _SymmetricKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_a: Tensor, features_b: Tensor) -> Tensor:
        features = features_a, features_b
        gradients = [torch.empty_like(a) if b else None for a, b in zip(features, ctx.needs_input_grad, strict=True)]
        total = torch.zeros((), device=features_a.device)
        for sample, voxels in _chunks(features_a.shape):
            part = sample, slice(None), voxels
            log_p, log_q = (each[part].log_softmax(0, dtype=torch.float32) for each in features)
            p, q = log_p.exp(), log_q.exp()
            d = log_p.sub_(log_q)
            p_to_q, q_to_p = (p * d).sum(0), -(q * d).sum(0)
            total += (p_to_q + q_to_p).sum()
            if gradients[0] is not None:
                gradients[0][part] = (d - p_to_q).mul_(p).add_(p).sub_(q)
            if gradients[1] is not None:
                gradients[1][part] = (d + q_to_p).mul_(q).neg_().add_(q).sub_(p)
        ctx.save_for_backward(*gradients)
        ctx.factor = 0.5 / (features_a.numel() / features_a.shape[1])
        return total * ctx.factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Not multiplied before: in half precision only a loss that a GradScaler has scaled keeps them from underflow.
        factor = gradient * ctx.factor
        return tuple(None if each is None else each * factor for each in ctx.saved_tensors)


class _HardCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss, total = torch.zeros(2, device=logits.device)
        for sample, voxels in _chunks(logits.shape):
            part = sample, slice(None), voxels
            log_p = logits[part].log_softmax(0, dtype=torch.float32)
            label = target[sample, voxels].long()[None]
            weights = torch.ones_like(label, dtype=torch.float32) if weight is None else weight[label]
            loss -= (log_p.gather(0, label) * weights).sum()
            total += weights.sum()
            if gradient is not None:
                gradient[part] = log_p.exp_().mul_(weights).scatter_add_(0, label, -weights)
        # Where DHC would divide zero by zero, a batch with nothing but classes of weight zero, it is zero.
        factor = 1 / total.clamp_min(torch.finfo(torch.float32).tiny)
        ctx.save_for_backward(gradient, factor)
        return loss * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_logits, factor = ctx.saved_tensors
        return (None if of_logits is None else of_logits * (gradient * factor)), None, None


def _chunks(shape: torch.Size) -> list[tuple[int, slice]]:
    """Return each sample with slices along its first spatial axis."""
    thickness = max(1, CHUNK // (shape[1] * math.prod(shape[3:])))
    begins = range(0, shape[2], thickness)
    return [(sample, slice(each, each + thickness)) for sample in range(shape[0]) for each in begins]
