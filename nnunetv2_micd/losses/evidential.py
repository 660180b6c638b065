"""Evidential deep learning: beliefs and uncertainty from logits, their fusion, and losses that use them.

The evidence of class n is ``e_n = softplus(logit_n)``; ``alpha_n = e_n + 1`` are the parameters of a Dirichlet
distribution over class probabilities, ``S`` is their sum. The belief in class n is ``b_n = e_n / S``. The uncertainty,
which is the belief in the frame of all C classes, is ``u = C / S``. All beliefs and the uncertainty add up to one.

Classes exclude each other, so a voxel is one decision between K classes. Regions may overlap, so a voxel is K
decisions, each between "outside" and "inside" with the evidence of ``-logit`` and ``logit``. Uncertainties and weights
have the shape of hard labels, one value for each decision: ``(B, *spatial)``, or ``(B, K, *spatial)`` of regions.

Everything is element by element and in float32, which autocast leaves as it is.

MEDL: He et al., "Mutual Evidential Deep Learning for Medical Image Segmentation", BIBM 2024,
https://arxiv.org/abs/2505.12418. I-EDL: Deng et al., "Uncertainty Estimation by Fisher Information-based Evidential
Deep Learning", ICML 2023, https://github.com/danruod/IEDL, commit 4aca7db2.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunetv2_micd.losses.fused import chunked_mean

RANK_SHIFT = 14
"""Bits of a float32 that ranks leave out: values that differ by less than 1/512 of themselves share a rank."""

SMALLEST_GAP, LARGEST_GAP = 1 - 6 / math.pi**2, 0.5
"""Limits of ``x - 1 / psi1(x)``, which rises from the first at x = 1 to the second at infinity."""


class Opinion(NamedTuple):
    """What a network, or two together, believe about each decision.

    Attributes:
        belief: b_n, ``(B, K, *spatial)``; of regions ``(B, 2, K, *spatial)``, outside first.
        uncertainty: u, in the shape of hard labels.

    Examples:
        >>> Opinion(torch.tensor([[[0.75], [0.0]]]), torch.tensor([[0.25]]))  # one voxel, two classes
        Opinion(belief=tensor([[[0.7500],
                 [0.0000]]]), uncertainty=tensor([[0.2500]]))
    """

    belief: Tensor
    uncertainty: Tensor


@torch.no_grad()
def opinion(logits: Tensor, regions: bool = False) -> Opinion:
    """Return beliefs and uncertainty of a network.

    Args:
        logits: Logits ``(B, K, *spatial)``.
        regions: Treat the K channels as regions, which may overlap.

    Returns:
        The opinion, float32, without gradient.

    Examples:
        >>> belief, uncertainty = opinion(torch.tensor([[[-90.0], [8.0]]]))  # evidence 0 and 8, so S = 10
        >>> print(f"{belief[0, 1].item():.3f} {uncertainty.item():.3f}")
        0.800 0.200
    """
    evidence = F.softplus(_decisions(logits, regions).float())
    strength = evidence.sum(1) + evidence.shape[1]
    return Opinion(evidence / strength[:, None], evidence.shape[1] / strength)


@torch.no_grad()
def fuse(one: Opinion, other: Opinion) -> Opinion:
    """Class-aware evidential fusion, MEDL's equation 3.

    ``b_n ~ b1_n b2_n + (b1_n u2 + u1 b2_n) / (1 + C)`` and ``u ~ u1 u2``, divided by their sum. What both believe
    counts in full. What one believes and the other leaves open counts by the size of the class, 1, beside that of the
    frame, C. Beliefs in different classes contradict each other and are dropped.

    Args:
        one: Opinion of a network.
        other: Opinion of the other.

    Returns:
        Their common opinion.

    Examples:
        >>> one = Opinion(torch.tensor([[[0.5], [0.0]]]), torch.tensor([[0.5]]))
        >>> belief, uncertainty = fuse(one, one)  # 1/4 + (1/4 + 1/4) / 3 = 5/12 against 1/4
        >>> print(f"{belief[0, 0].item():.3f} {uncertainty.item():.3f}")
        0.625 0.375
    """
    (b1, u1), (b2, u2) = one, other
    belief = b1 * b2 + (b1 * u2[:, None] + u1[:, None] * b2) / (1 + b1.shape[1])
    uncertainty = u1 * u2
    total = belief.sum(1) + uncertainty
    return Opinion(belief / total[:, None], uncertainty / total)


@torch.no_grad()
def reliability(fused: Opinion) -> Tensor:
    """Reliability of pseudo-labels ``R = exp(u sum_n b_n log2 b_n)``, MEDL's equation 4.

    Args:
        fused: Common opinion, see :func:`fuse`.

    Returns:
        Above 0 and at most 1, in the shape of hard labels.

    Examples:
        >>> half = torch.tensor([[[0.25], [0.25]]])
        >>> print(f"{reliability(Opinion(half, torch.tensor([[0.5]]))).item():.4f}")  # exp(-1/2)
        0.6065
    """
    entropy = torch.special.entr(fused.belief).sum(1) / math.log(2)  # entr is -b ln b, and 0 at 0
    return torch.exp(-fused.uncertainty * entropy)


@torch.no_grad()
def curriculum_weight(uncertainty: Tensor, progress: float, strength: float, counted: Tensor | None = None) -> Tensor:
    """From certain to uncertain voxels: ``omega = 1 + Xi tanh(psi zeta)``, MEDL's equation 6.

    ``psi = 2 rank / V - 1`` is -1 at the most certain and 1 at the most uncertain of the V decisions of the batch,
    ``zeta = 2 progress - 1``. So certain voxels weigh more in the first half of a training, uncertain ones in the
    second, as the text of the paper has it; its printed rank, by descending uncertainty, would give the reverse.

    Ranks are counted in a histogram over the upper bits of the float32 values, which are ordered as the values are.
    Values of one bin share their mean rank. For 128 x 128 x 128 voxels psi is within 0.002 of that by sorting, which
    takes ten times as long on a CPU.

    Args:
        uncertainty: Between 0 and 1, in the shape of hard labels.
        progress: Share of the training that is done.
        strength: Xi, below 1.
        counted: Decisions that count, bool; None for all. The others get weight zero and no rank.

    Returns:
        Weights of the same shape, with a mean of about 1 over the counted decisions.

    Examples:
        >>> uncertainty = torch.tensor([[0.1, 0.9]])  # middle ranks 1/2 and 3/2 of 2, so psi is -1/2 and 1/2
        >>> curriculum_weight(uncertainty, progress=0.0, strength=0.5)
        tensor([[1.2311, 0.7689]])
        >>> curriculum_weight(uncertainty, progress=1.0, strength=0.5)
        tensor([[0.7689, 1.2311]])
    """
    counted = torch.ones_like(uncertainty, dtype=torch.bool) if counted is None else counted.expand_as(uncertainty)
    # What is not finite has some rank, so that the loss tells of it and not an index out of bounds.
    bins = (uncertainty.float().nan_to_num(1.0).clamp(0, 1).contiguous().view(torch.int32) >> RANK_SHIFT).long()
    largest = 0x3F800000 >> RANK_SHIFT  # of 1.0
    # torch.bincount would wait for the device to find the largest bin.
    counts = torch.zeros(largest + 1, dtype=torch.int64, device=bins.device)
    counts.scatter_add_(0, bins.flatten(), counted.long().flatten())
    ends = counts.cumsum(0)
    psi = (2 * ends - counts - ends[-1]) / ends[-1].clamp_min(1)  # the mean rank of a bin is end - count / 2
    return (1 + strength * torch.tanh(psi * (2 * progress - 1)))[bins] * counted


def fisher_evidential_loss(
    logits: Tensor, labels: Tensor, weight: Tensor, fisher_weight: float, regions: bool = False
) -> Tensor:
    """Weighted evidential loss with Fisher information, MEDL's equation 7; that of I-EDL without its divergence.

    ``omega sum_n ((y_n - alpha_n / S)^2 + alpha_n (S - alpha_n) / (S^2 (S + 1))) psi1(alpha_n) - l log|I(alpha)|``:
    the expected squared error of the class probabilities, in which a class with little evidence counts most, and a
    reward for little evidence, see :func:`log_fisher_information`. Mean over batch and decisions.

    Args:
        logits: Logits ``(B, K, *spatial)``; receives gradient.
        labels: Hard labels, class indices ``(B, *spatial)`` or region masks ``(B, K, *spatial)``, bool.
        weight: omega, in the shape of the labels.
        fisher_weight: l.
        regions: Treat the K channels as regions, which may overlap.

    Returns:
        Scalar, float32.

    Examples:
        >>> logits = torch.full((1, 2, 1), -90.0, requires_grad=True)  # alpha = (1, 1), psi1(1) = pi^2 / 6
        >>> label, weight = torch.tensor([[1]]), torch.ones(1, 1)
        >>> fisher_evidential_loss(logits, label, weight, 0.0)  # (1/4 + 1/12 + 1/4 + 1/12) pi^2 / 6
        tensor(1.0966, grad_fn=<_ChunkedMeanBackward>)
    """

    def of_part(values: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        alpha = F.softplus(values) + 1
        strength = alpha.sum(1, keepdim=True)
        mean = alpha / strength
        classes = torch.arange(values.shape[1], device=values.device).view(-1, *[1] * (values.ndim - 2))
        error = ((labels == classes).float() - mean).square() + mean * (1 - mean) / (strength + 1)
        information = trigamma(alpha)
        loss = weight * (error * information).sum(1, keepdim=True)
        return loss - fisher_weight * _log_information(alpha, strength, information)

    return chunked_mean(of_part, _decisions(logits, regions), labels[:, None], weight[:, None])


def log_fisher_information(alpha: Tensor) -> Tensor:
    """Logarithm of the determinant of the Fisher information matrix of a Dirichlet distribution.

    ``log|I(alpha)| = sum_n log psi1(alpha_n) + log(1 - sum_n psi1(S) / psi1(alpha_n))`` with the trigamma function
    psi1. It falls with the evidence. For large evidence the sum in the second term rounds to 1, or above it, and its
    logarithm would not be finite. So the second term is computed as ``log psi1(S) + log(sum_n g(alpha_n) - g(S))`` with
    ``g(x) = x - 1 / psi1(x)``, from which the large numbers have canceled. As g rises from ``1 - 6 / pi^2`` at 1 to
    ``1 / 2`` at infinity, clamping it to these limits removes nothing but rounding errors, and the difference is at
    least 0.28.

    Args:
        alpha: Parameters ``(B, C, *spatial)``, at least 1; receives gradient.

    Returns:
        ``(B, 1, *spatial)``, float32.

    Examples:
        >>> print(f"{log_fisher_information(torch.ones(1, 2)).item():.4f}")  # 2 ln(pi^2/6) + ln(1 - 2 (1 - 6/pi^2))
        -0.5378
    """
    alpha = alpha.float()
    return _log_information(alpha, alpha.sum(1, keepdim=True), trigamma(alpha))


def _log_information(alpha: Tensor, strength: Tensor, information: Tensor) -> Tensor:
    of_strength = trigamma(strength)
    rest = _gap(alpha, information).sum(1, keepdim=True) - _gap(strength, of_strength)
    return information.log().sum(1, keepdim=True) + of_strength.log() + rest.log()


def _gap(x: Tensor, trigamma_of_x: Tensor) -> Tensor:
    return (x - 1 / trigamma_of_x).clamp(SMALLEST_GAP, LARGEST_GAP)


def trigamma(x: Tensor) -> Tensor:
    """Trigamma function, as ``torch.polygamma(1, x)``, with a faster gradient.

    torch takes the derivative from a zeta function, which on a CPU is about 20 times as slow.

    Args:
        x: At least 1, float32 or float64; receives gradient.

    Returns:
        psi1(x), of the shape of x.

    Examples:
        >>> trigamma(torch.tensor(1.0))  # pi^2 / 6
        tensor(1.6449)
    """
    return _Trigamma.apply(x)


class _Trigamma(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.polygamma(1, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Derivative ``-2 sum_{i < 4} (x + i)^-3 + psi2(x + 4)``, the latter by its asymptotic series."""
        (x,) = ctx.saved_tensors
        r = 1 / (x + 4)
        square = r.square()
        derivative = -square * (1 + r + square * (1 / 2 + square * (-1 / 6 + square / 6)))
        for i in range(4):
            derivative -= 2 / (x + i) ** 3
        return gradient * derivative


def _decisions(logits: Tensor, regions: bool) -> Tensor:
    """Return the logits of each decision, classes along axis 1; of regions ``(B, 2, K, *spatial)``."""
    return torch.stack((-logits, logits), 1) if regions else logits
