"""Three kinds of Dice: of hard labels, of probabilities, and of probabilities where pseudo-labels are confident.

They come from three papers and keep the smoothing and the handling of the background of their authors, because both
change the value on small classes.
"""

import torch
from torch import Tensor

from nnunetv2_micd.losses.labels import class_masks, count_classes, probabilities

HARD_SMOOTHING = 1e-8
"""Smoothing of DHC's ``cal_dice``; https://github.com/xmed-lab/DHC, commit b3dee972, ``code/train_dhc.py``."""

SOFT_SMOOTHING = 1e-5
"""Smoothing of the Dice losses of MCF (https://github.com/WYC-321/MCF, commit ad20659b) and UniMatch."""


@torch.no_grad()
def hard_dice(prediction: Tensor, target: Tensor, num_classes: int, ignored: Tensor | None = None) -> Tensor:
    """Dice of hard labels, per class over the whole batch: ``(2 TP + 1e-8) / (2 TP + FP + FN + 2e-8)``.

    A class in neither prediction nor target gets 0.5, as in DHC. That is neutral: on patches without a class its Dice
    must not look solved (1 would drive the class weight to zero) or failed (0 would raise it).

    Args:
        prediction: Class indices ``(B, *spatial)``, integers, or region masks ``(B, K, *spatial)``, bool.
        target: True labels in the same form. An index outside ``0 ... K - 1`` belongs to no class.
        num_classes: Number of classes K, with background.
        ignored: Voxels to leave out ``(B, *spatial)``, bool, or None.

    Returns:
        Dice ``(K,)``, float32, without gradient.

    Examples:
        >>> hard_dice(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]]), num_classes=2)
        tensor([0.6667, 0.6667])
    """
    if prediction.dtype == torch.bool:
        counted = torch.ones_like(prediction) if ignored is None else ~ignored[:, None]
        hits, predicted, true = prediction & target & counted, prediction & counted, target & counted
    else:
        predicted = prediction if ignored is None else prediction.masked_fill(ignored, -1)
        true = target if ignored is None else target.masked_fill(ignored, -1)
        hits = torch.where(predicted == true, true, -1)
    sizes = count_classes(predicted, num_classes) + count_classes(true, num_classes)
    return (2 * count_classes(hits, num_classes) + HARD_SMOOTHING) / (sizes + 2 * HARD_SMOOTHING)


@torch.no_grad()
def soft_dice_error(logits: Tensor, truth: Tensor, ignored: Tensor | None = None, regions: bool = False) -> Tensor:
    """One minus the soft Dice ``2 sum p y / (sum p^2 + sum y^2)``, mean over foreground classes or regions.

    It decides which of two networks is better (MCF, CVPR 2023), so it has no gradient. Classes that the truth lacks are
    left out: their error is zero or one, whether the network is a little wrong or entirely. If it lacks all, all count.

    Args:
        logits: Logits ``(B, K, *spatial)``.
        truth: Hard labels, see :func:`~nnunetv2_micd.losses.labels.hard_target`.
        ignored: Voxels to leave out ``(B, *spatial)``, bool, or None.
        regions: Treat the K channels as regions, which may overlap.

    Returns:
        Scalar between 0 and 1, float32.

    Examples:
        >>> logits = torch.tensor([[[9.0, -9.0, -9.0], [-9.0, 9.0, 9.0]]])  # classes 0, 1, 1
        >>> error = soft_dice_error(logits, torch.tensor([[0, 0, 1]]))
        >>> print(f"{error:.3f}")
        0.333
    """
    prediction, target = probabilities(logits, regions), class_masks(truth, logits.shape[1])
    if ignored is not None:
        prediction, target = prediction * ~ignored[:, None], target * ~ignored[:, None]
    if not regions:  # the background is easy, and large enough to hide everything else
        prediction, target = prediction[:, 1:], target[:, 1:]
    hits, predicted, true = (
        values.transpose(0, 1).flatten(1).sum(1) for values in (prediction * target, prediction**2, target**2)
    )
    counted = (true > 0) | ~(true > 0).any()
    errors = 1 - (2 * hits + SOFT_SMOOTHING) / (predicted + true + SOFT_SMOOTHING)
    return (errors * counted).sum() / counted.sum()


def confident_dice_loss(logits: Tensor, labels: Tensor, confident: Tensor) -> Tensor:
    """One minus the Dice of probabilities and hard pseudo-labels, on the voxels where these are confident.

    ``1 - mean_k (2 sum_v c_v p_kv y_kv + e) / (sum_v c_v p_kv^2 + sum_v c_v y_kv + e)`` over the voxels v of the whole
    batch and the classes k with background, c_v being 1 where the label is confident. With e = 1e-5 it is zero if no
    voxel is. This is the loss of UniMatch's medical variant (https://github.com/LiheYoung/UniMatch, commit 0324f3dd,
    ``more-scenarios/medical``); the paper (CVPR 2023) has the cross entropy. Each training process computes the loss of
    its own batch.

    Args:
        logits: Logits ``(B, K, *spatial)``; receives gradient on confident voxels.
        labels: Hard labels: class indices ``(B, *spatial)``, int64, or region masks ``(B, K, *spatial)``, bool.
        confident: ``(B, 1, *spatial)``, bool; of regions ``(B, K, *spatial)``.

    Returns:
        Scalar between 0 and 1, float32.

    Examples:
        >>> logits = torch.tensor([[[0.0, 5.0], [0.0, -5.0]]], requires_grad=True)
        >>> labels, confident = torch.tensor([[1, 0]]), torch.tensor([[[True, False]]])
        >>> loss = confident_dice_loss(logits, labels, confident)
        >>> loss.backward()
        >>> logits.grad != 0
        tensor([[[ True, False],
                 [ True, False]]])
    """
    regions = labels.dtype == torch.bool
    prediction = probabilities(logits, regions)
    truth = labels if regions else torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    axes = (0, *range(2, logits.ndim))
    counted = truth & confident
    overlap = (prediction * counted).sum(axes)
    size = (prediction.square() * confident).sum(axes) + counted.sum(axes)
    return 1 - ((2 * overlap + SOFT_SMOOTHING) / (size + SOFT_SMOOTHING)).mean()
