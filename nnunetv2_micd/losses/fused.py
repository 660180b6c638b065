"""Losses of large tensors, whose gradients are computed together with their value.

Feature maps and logits at full resolution are the largest tensors of a training. Of these losses autograd would keep
several more of their size in float32, or compute everything twice. Their gradients are known, though: here they are
computed in float32 where the value is, a chunk at a time, and kept in the dtype of the input. A loss can be
backpropagated once.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
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

    The gradient of a voxel is its softmax minus one for its label, times the weight of the label over the sum of all.

    Args:
        logits: ``(B, K, *spatial)``; receives gradient.
        target: Classes ``(B, *spatial)``, integers.
        weight: ``(K,)``, of the classes; None for ones.

    Returns:
        Scalar in nats, float32; zero where all weights are.
    """
    return _HardCrossEntropy.apply(logits, target, None if weight is None else weight.float())


def hard_binary_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the binary cross entropy of regions, which may overlap: ``sum_k w_k BCE_k / sum_k w_k``.

    ``BCE_k`` is the mean over batch and voxels. The gradient of a voxel is its sigmoid minus its label, times ``w_k``
    over the number of voxels and the sum of the weights.

    Args:
        logits: ``(B, K, *spatial)``; receives gradient.
        target: The same shape; bool.
        weight: ``(K,)``, of the regions; None for ones.

    Returns:
        Scalar in nats, float32; zero where all weights are.
    """
    return _HardBinaryCrossEntropy.apply(logits, target, None if weight is None else weight.float())


class _SymmetricKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_a: Tensor, features_b: Tensor) -> Tensor:
        features = features_a, features_b
        gradients = [torch.empty_like(a) if b else None for a, b in zip(features, ctx.needs_input_grad, strict=True)]
        total = torch.zeros((), device=features_a.device)
        for part in _chunks(features_a.shape):
            log_p, log_q = (each[part].log_softmax(1, dtype=torch.float32) for each in features)
            p, q = log_p.exp(), log_q.exp()
            d = log_p.sub_(log_q)
            p_to_q, q_to_p = (p * d).sum(1, keepdim=True), -(q * d).sum(1, keepdim=True)
            total += (p_to_q + q_to_p).sum()
            if gradients[0] is not None:
                gradients[0][part] = (d - p_to_q).mul_(p).add_(p).sub_(q)
            if gradients[1] is not None:
                gradients[1][part] = (d + q_to_p).mul_(q).neg_().add_(q).sub_(p)
        factor = torch.full_like(total, 0.5 * features_a.shape[1] / features_a.numel())
        ctx.save_for_backward(factor, *gradients)
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, *gradients = ctx.saved_tensors
        return tuple(_scale(each, gradient * factor) for each in gradients)


class _OfHardLabels(torch.autograd.Function):
    """What a forward saves is the gradient with respect to the logits, and the factor it lacks."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, of_logits = ctx.saved_tensors
        return _scale(of_logits, gradient * factor), None, None


class _HardCrossEntropy(_OfHardLabels):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss, total = torch.zeros(2, device=logits.device)
        target = target[:, None]
        for part in _chunks(logits.shape):
            log_p = logits[part].log_softmax(1, dtype=torch.float32)
            label = target[part].long()
            weights = torch.ones_like(label, dtype=torch.float32) if weight is None else weight[label]
            loss -= (log_p.gather(1, label) * weights).sum()
            total += weights.sum()
            if gradient is not None:
                gradient[part] = log_p.exp_().mul_(weights).scatter_add_(1, label, -weights)
        factor = _reciprocal(total)
        ctx.save_for_backward(factor, gradient)
        return loss * factor


class _HardBinaryCrossEntropy(_OfHardLabels):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        weights = torch.ones(logits.shape[1], device=logits.device) if weight is None else weight
        by_region = weights.view(-1, *[1] * (logits.ndim - 2))
        loss = torch.zeros((), device=logits.device)
        for part in _chunks(logits.shape):
            values, label = logits[part].float(), target[part].float()
            loss += (F.binary_cross_entropy_with_logits(values, label, reduction="none") * by_region).sum()
            if gradient is not None:
                gradient[part] = values.sigmoid().sub_(label).mul_(by_region)
        factor = _reciprocal(weights.sum() * (logits.numel() / logits.shape[1]))
        ctx.save_for_backward(factor, gradient)
        return loss * factor


def _reciprocal(total: Tensor) -> Tensor:
    """Return one over a sum of weights, and zero, not infinity, for a batch with nothing but weights of zero."""
    return torch.where(total > 0, 1 / total, 0)


def _scale(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    """Multiply in place by a scalar, which is not rounded to half precision: for it has a dimension.

    Only now: in half precision nothing but a loss that a GradScaler has scaled keeps gradients from underflow.
    """
    return None if gradient is None else gradient.mul_(factor.view(1))


def _chunks(shape: torch.Size) -> list[tuple[slice, slice, slice]]:
    """Return indices of several whole samples, or where these are large, of slices along their first spatial axis."""
    row = shape[1] * math.prod(shape[3:])
    rows = min(shape[2], max(1, CHUNK // row))
    samples = max(1, CHUNK // (row * shape[2]))
    return [
        (slice(first, first + samples), slice(None), slice(begin, begin + rows))
        for first in range(0, shape[0], samples)
        for begin in range(0, shape[2], rows)
    ]
