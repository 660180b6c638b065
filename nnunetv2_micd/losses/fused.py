"""Memory-efficient losses for large tensors: value and gradient are computed in one pass.

Feature maps and logits at full resolution are the largest tensors of a training. For these losses autograd would keep
several more tensors of that size in float32; checkpointing would compute everything twice. But most of their gradients
have a simple closed form, and the others autograd finds for one chunk at a time. So the forward pass computes value and
gradient together, in float32 and chunk by chunk, and stores the gradient in the dtype of the input. The backward pass
scales that gradient in place, so a loss can be backpropagated only once. The cosine is no scalar; its gradient is
computed in the backward pass.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORTEST = 1e-8
"""Length of a vector from which on it has a direction, as for ``torch.nn.functional.cosine_similarity``."""

CHUNK = 2**22
"""Number of values per chunk, large enough that launching the kernels takes no noticeable time."""


def symmetric_kl(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Symmetric divergence ``0.5 (KL(A || B) + KL(B || A))`` of the softmax over channels, mean over batch and voxels.

    With ``p`` and ``q`` the softmax of A and B, ``d = log p - log q`` and sums over channels, the gradients are

    - with respect to A: ``0.5 (p (d - sum p d) + p - q)``,
    - with respect to B: ``0.5 (q (sum q d - d) + q - p)``.

    Args:
        features_a: Features ``(B, C, *spatial)``; receives gradient.
        features_b: Features of the same shape; receives gradient.

    Returns:
        Scalar in nats, float32.

    Examples:
        >>> features_a = torch.tensor([[[3.0], [1.0]]]).log()  # softmax (3/4, 1/4)
        >>> features_b = torch.zeros(1, 2, 1)  # softmax (1/2, 1/2)
        >>> symmetric_kl(features_a, features_b)  # (ln 3) / 8
        tensor(0.1373)
    """
    return _SymmetricKL.apply(features_a, features_b)


def hard_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy with hard labels: ``sum_v w_{y_v} CE_v / sum_v w_{y_v}`` over all voxels of the batch.

    The gradient of a voxel is its softmax minus the one-hot label, times ``w_{y_v} / sum_v w_{y_v}``.

    Args:
        logits: Logits ``(B, K, *spatial)``; receives gradient.
        target: Class indices ``(B, *spatial)``, integers.
        weight: Class weights ``(K,)``; None for ones.

    Returns:
        Scalar in nats, float32; zero if all weights are zero.

    Examples:
        >>> hard_cross_entropy(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 1]]))  # ln 2
        tensor(0.6931)
    """
    return _HardCrossEntropy.apply(logits, target, None if weight is None else weight.float())


def hard_binary_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross entropy of regions, which may overlap: ``sum_k w_k BCE_k / sum_k w_k``.

    ``BCE_k`` is the mean over batch and voxels. The gradient of a voxel in region k is its sigmoid minus its label,
    times ``w_k / (voxels * sum_k w_k)``.

    Args:
        logits: Logits ``(B, K, *spatial)``; receives gradient.
        target: Region masks of the same shape, bool.
        weight: Region weights ``(K,)``; None for ones.

    Returns:
        Scalar in nats, float32; zero if all weights are zero.

    Examples:
        >>> hard_binary_cross_entropy(torch.zeros(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool))  # ln 2
        tensor(0.6931)
    """
    return _HardBinaryCrossEntropy.apply(logits, target, None if weight is None else weight.float())


def channel_cosine(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Cosine of the angle between two vectors of channels at each voxel.

    With ``u`` and ``v`` the vectors divided by their lengths and ``s`` their cosine, the gradient with respect to A is
    ``(v - s u) / |a|``; the other one is alike. Nothing but the two inputs is kept for it.

    Args:
        features_a: Features or logits ``(B, C, *spatial)``; receives gradient.
        features_b: Features of the same shape; receives gradient.

    Returns:
        ``(B, *spatial)`` between -1 and 1, float32.

    Examples:
        >>> features_a = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
        >>> features_b = torch.tensor([[[3.0, 3.0], [4.0, 0.0]]])
        >>> channel_cosine(features_a, features_b)
        tensor([[0.6000, 1.0000]])
    """
    return _ChannelCosine.apply(features_a, features_b)


def chunked_mean(function: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """Mean over batch and voxels of a loss whose own graph would hold many tensors of the size of the logits.

    Args:
        function: Takes a part of the logits, in float32, and the same part of the other tensors, and returns one value
            for each of its voxels.
        logits: Logits ``(B, K, *spatial)``; receives gradient.
        others: What the loss depends on besides, ``(B, any, *spatial)``; no gradient.

    Returns:
        Scalar, float32.

    Examples:
        >>> logits = torch.tensor([[[1.0, 2.0]]], requires_grad=True)  # one class, two voxels
        >>> chunked_mean(lambda values, weight: weight * values**2, logits, torch.tensor([[[1.0, 3.0]]])).backward()
        >>> logits.grad
        tensor([[[1., 6.]]])
    """
    return _ChunkedMean.apply(function, logits, *others)


class _SymmetricKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_a: Tensor, features_b: Tensor) -> Tensor:
        features = features_a, features_b
        gradients = [
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip(features, ctx.needs_input_grad, strict=True)
        ]
        total = torch.zeros((), device=features_a.device)
        for part in _chunks(features_a.shape):
            log_p, log_q = (tensor[part].log_softmax(1, dtype=torch.float32) for tensor in features)
            p, q = log_p.exp(), log_q.exp()
            d = log_p.sub_(log_q)  # in place here and below: every copy of a chunk costs time and memory
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
        factor, *unscaled = ctx.saved_tensors
        return tuple(_scale(tensor, gradient * factor) for tensor in unscaled)


class _ChannelCosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_a: Tensor, features_b: Tensor) -> Tensor:
        cosine = torch.empty((len(features_a), *features_a.shape[2:]), device=features_a.device)
        for part in _chunks(features_a.shape):
            (u, _), (v, _) = (_direction(tensor[part]) for tensor in (features_a, features_b))
            cosine[part[0], part[2]] = (u * v).sum(1)
        ctx.save_for_backward(features_a, features_b, cosine)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *features, cosine = ctx.saved_tensors
        gradients = [
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip(features, ctx.needs_input_grad, strict=True)
        ]
        for part in _chunks(features[0].shape):
            vectors = [_direction(tensor[part]) for tensor in features]
            of_cosine, s = (values[part[0], None, part[2]] for values in (gradient, cosine))
            for of_features, (u, length), (v, _) in zip(gradients, vectors, vectors[::-1], strict=True):
                if of_features is not None:
                    of_features[part] = (v - s * u).mul_(torch.where(length > SHORTEST, of_cosine / length, 0))
        return tuple(gradients)


def _direction(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors of channels divided by their lengths, and these."""
    values = features.float()
    length = values.norm(dim=1, keepdim=True).clamp_min(SHORTEST)
    return values / length, length


class _HardLabelLoss(torch.autograd.Function):
    """`forward` saves the unscaled gradient of the logits and its scale factor."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, unscaled = ctx.saved_tensors
        return _scale(unscaled, gradient * factor), None, None


class _HardCrossEntropy(_HardLabelLoss):
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


class _HardBinaryCrossEntropy(_HardLabelLoss):
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


class _ChunkedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=logits.device)
        for part in _chunks(logits.shape):
            values = logits[part].detach().float().requires_grad_(gradient is not None)
            with torch.set_grad_enabled(gradient is not None):
                loss = function(values, *(other[part] for other in others)).sum()
            if gradient is not None:
                gradient[part] = torch.autograd.grad(loss, values)[0]
            total += loss.detach()
        factor = torch.full_like(total, logits.shape[1] / logits.numel())
        ctx.save_for_backward(factor, gradient)
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, unscaled = ctx.saved_tensors
        return None, _scale(unscaled, gradient * factor), *[None] * (len(ctx.needs_input_grad) - 2)


def _reciprocal(total: Tensor) -> Tensor:
    """Return one over a sum of weights; zero instead of infinity if all weights of the batch are zero."""
    return torch.where(total > 0, 1 / total, 0)


def _scale(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    """Multiply a gradient in place by a scalar.

    This happens in the backward pass because the factor of a large batch is tiny: in half precision the gradients would
    underflow without the factor of GradScaler, which only the backward pass knows.
    """
    # A tensor with one dimension is not rounded to the dtype of the gradient before the product; one with none is.
    return None if gradient is None else gradient.mul_(factor.view(1))


def _chunks(shape: torch.Size) -> list[tuple[slice, slice, slice]]:
    """Return indices of chunks: several whole samples or, of a larger sample, slices along its first spatial axis."""
    row = shape[1] * math.prod(shape[3:])
    rows = min(shape[2], max(1, CHUNK // row))
    samples = max(1, CHUNK // (row * shape[2]))
    return [
        (slice(first, first + samples), slice(None), slice(begin, begin + rows))
        for first in range(0, shape[0], samples)
        for begin in range(0, shape[2], rows)
    ]
