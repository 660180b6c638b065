"""Contrastive losses of embeddings with labels: those of one label should be alike, and unlike all others.

Self-paced learning: Peng, Wang, Desrosiers & Pedersoli, "Self-Paced Contrastive Learning for Semi-supervised Medical
Image Segmentation with Meta-labels", NeurIPS 2021, https://arxiv.org/abs/2107.13741.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Pace = Literal["hard", "soft"]

NO_LABEL = -1
"""Label of an empty place among the further embeddings."""


class Contrast(NamedTuple):
    """A contrastive loss and what it was computed from, scalars.

    Attributes:
        loss: The loss, with a graph; 0 if no embedding counts.
        weight: Mean weight of the pairs that count, between 0 and 1.
        usable: Share of the embeddings that count: those with another of the same label and one of another label.

    Examples:
        >>> contrast = Contrast(torch.tensor(0.5), weight=torch.tensor(1.0), usable=torch.tensor(0.0))
        >>> contrast.usable
        tensor(0.)
    """

    loss: Tensor
    weight: Tensor
    usable: Tensor


def pace_weights(losses: Tensor, gamma: float, pace: Pace) -> Tensor:
    """Return the weights that minimize ``sum w l + R(w)`` over w in [0, 1]: pairs with a large loss count less.

    - ``"hard"``, ``R = -gamma w``: ``w = 1`` where ``l <= gamma``, else 0.
    - ``"soft"``, ``R = gamma (w^2 / 2 - w)``: ``w = max(0, 1 - l / gamma)``.

    Args:
        losses: Losses of pairs, any shape, none below zero.
        gamma: Age of the model, above zero.
        pace: Which regularizer R.

    Returns:
        Weights, the same shape.

    Examples:
        >>> pace_weights(torch.tensor([1.0, 2.0, 5.0]), gamma=4.0, pace="soft")
        tensor([0.7500, 0.5000, 0.0000])
    """
    return (losses <= gamma).to(losses.dtype) if pace == "hard" else (1 - losses / gamma).clamp_min(0)


def model_age(step: int, total_steps: int, begin: float, end: float) -> float:
    """Return gamma at a step, ``begin + (end - begin) sqrt(t / T)``: first few pairs are easy enough, then all.

    Args:
        step: Training step t, from 0.
        total_steps: Length T of the training in steps.
        begin: Value at the first step.
        end: Value from step T on.

    Examples:
        >>> model_age(25, 100, begin=5.0, end=60.0)
        32.5
    """
    return begin + (end - begin) * min(1.0, step / total_steps) ** 0.5


def self_paced_contrast(
    embeddings: Tensor,
    labels: Tensor,
    further: Tensor,
    further_labels: Tensor,
    gamma: float,
    pace: Pace = "soft",
    temperature: float = 0.07,
) -> Contrast:
    """Supervised contrastive loss whose pairs are weighted by how easy they are.

    With similarities ``s_ij = z_i . z_j / T`` to all other embeddings A(i), and the positives P(i) among them, which
    have the label of i: ``l_ij = -log(exp s_ij / sum_{a in A(i)} exp s_ia)``, and the loss is the mean over i of
    ``sum_{j in P(i)} w_ij l_ij / |P(i)|``. w is :func:`pace_weights` of l, without gradient; so the loss is small while
    few pairs are easy.

    An embedding without any positive, or without any negative, has nothing to contrast and does not count. In the
    authors' batches there is none; without further embeddings the loss is their ``SelfPacedSupConLoss``
    (https://github.com/jizongFox/Self-paced-Contrastive-Learning, commit ce7e9803, ``contrast_loss2.py``).

    Args:
        embeddings: z_i of length one ``(N, D)``; receive gradient.
        labels: Their labels ``(N,)``, int64, none of them negative.
        further: Embeddings that are only compared with ``(Q, D)``, such as those of earlier steps; no gradient.
        further_labels: Their labels ``(Q,)``, int64; :data:`NO_LABEL` where there is no embedding.
        gamma: Age of the model, see :func:`model_age`.
        pace: How the weights follow from the losses.
        temperature: T.

    Returns:
        The loss in nats, float32, and the figures of :class:`Contrast`.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
        >>> contrast = self_paced_contrast(z, torch.tensor([0, 0, 1, 1]), *none, gamma=10.0, temperature=1.0)
        >>> print(f"{contrast.loss:.4f}")  # l = log(1 + 2 / e) = 0.5514, w = 1 - l / 10
        0.5210
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        everything = torch.cat((embeddings.float(), further.detach().float()))
        similarities = embeddings.float() @ everything.T / temperature
    all_labels = torch.cat((labels, further_labels))
    itself = torch.eye(len(embeddings), len(everything), dtype=torch.bool, device=embeddings.device)
    others = (all_labels != NO_LABEL) & ~itself
    positives = others & (labels[:, None] == all_labels)
    # Not minus infinity, which would make the gradient NaN in a row without any other embedding.
    hidden = torch.finfo(torch.float32).min / 2
    losses = similarities.masked_fill(~others, hidden).logsumexp(1, keepdim=True) - similarities
    with torch.no_grad():
        usable = positives.any(1, keepdim=True) & (others & ~positives).any(1, keepdim=True)
        pairs = positives & usable
        weights = torch.where(pairs, pace_weights(losses, gamma, pace), 0)
        mean_weight = weights.sum() / pairs.sum().clamp_min(1)
        weights = weights / pairs.sum(1, keepdim=True).clamp_min(1) / usable.sum().clamp_min(1)
    loss = torch.where(pairs, weights * losses, 0).sum()
    return Contrast(loss, mean_weight, usable.float().mean())
