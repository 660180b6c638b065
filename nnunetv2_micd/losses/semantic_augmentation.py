"""Transferable semantic augmentation: logits as if features had been moved along the ways in which classes vary.

Li et al., "Transferable Semantic Augmentation for Domain Adaptation", CVPR 2021, https://arxiv.org/abs/2103.12562. The
formulas follow the authors' ``Loss.py`` (https://github.com/BIT-DA/TSA, commit 1653a9fb). In segmentation each voxel is
a sample. Its correction depends on its label alone, so it is looked up in a table of classes by classes.

A feature f of class y stands for a Gaussian about ``f + s (mean_t - mean_s)`` with the covariance ``s cov_t``: s is the
strength, ``mean_s`` the mean of the class in the source (labeled images), ``mean_t`` and ``cov_t`` are those in the
target (unlabeled images). The expected cross entropy has an upper bound in closed form: the cross entropy of
:func:`augment_logits`.

Regions, which may overlap, are problems of two classes each: their statistics are those of the voxels outside, then
those of the voxels inside of each region.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_micd.losses.consistency import masked_mean
from nnunetv2_micd.losses.labels import class_masks
from nnunetv2_micd.utils.distributed import sum_over_processes

MOST_VOXELS = 2**16
"""Voxels of a batch that count for its statistics, evenly spaced: enough for the covariance of a few dozen channels."""


class FeatureStatistics(nn.Module):
    """Moving mean and covariance of the features of each class, over all training processes.

    A batch without a class does not change it. The first batches of a class are averaged with equal weights.

    Args:
        num_classes: K classes, or K regions.
        channels: Channels C of the features.
        regions: Whether the classes are regions. There are then 2 K statistics.
        decay: Share of the past in the moving average.

    Attributes:
        means: Buffer ``(K, C)``, of regions ``(2 K, C)``.
        covariances: Buffer ``(K, C, C)``, of regions ``(2 K, C, C)``.
        updates: Number of batches that had each class, buffer ``(K,)``, of regions ``(2 K,)``.

    Examples:
        >>> statistics = FeatureStatistics(num_classes=2, channels=1)
        >>> statistics.update(torch.tensor([[[1.0, 3.0, 5.0]]]), torch.tensor([[1, 1, 0]]))
        >>> statistics.means.flatten(), statistics.covariances.flatten()
        (tensor([5., 2.]), tensor([0., 1.]))
    """

    means: Tensor
    covariances: Tensor
    updates: Tensor

    def __init__(self, num_classes: int, channels: int, regions: bool = False, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        number = 2 * num_classes if regions else num_classes
        self.num_classes = num_classes
        self.register_buffer("means", torch.zeros(number, channels))
        self.register_buffer("covariances", torch.zeros(number, channels, channels))
        self.register_buffer("updates", torch.zeros(number))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, counted: Tensor | None = None) -> None:
        """Move the statistics towards those of a batch.

        Args:
            features: ``(B, C, *spatial)``.
            labels: Hard labels, see :mod:`losses.labels`.
            counted: ``(B, *spatial)``, bool: voxels that count; None for all.
        """
        vectors, members = self._sample(features, labels, counted)
        with torch.autocast(features.device.type, enabled=False):
            counts = sum_over_processes(members.sum(0))
            sums = sum_over_processes(members.T @ vectors)
            squares = sum_over_processes(
                torch.stack([(vectors * member[:, None]).T @ vectors for member in members.unbind(1)])
            )
        means = sums / counts.clamp_min(1)[:, None]
        covariances = squares / counts.clamp_min(1)[:, None, None] - means[:, :, None] * means[:, None]
        is_present = counts > 0
        self.updates = self.updates + is_present
        rate = (1 / self.updates.clamp_min(1)).clamp_min(1 - self.decay) * is_present
        moved = means - self.means
        spread = moved[:, :, None] * moved[:, None]  # of the two means about the new one
        rates = rate[:, None, None]
        self.covariances = (1 - rates) * self.covariances + rates * covariances + rates * (1 - rates) * spread
        self.means = self.means + rate[:, None] * moved

    def _sample(self, features: Tensor, labels: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the features of some voxels ``(N, C)`` and their classes, zeros and ones ``(N, K or 2 K)``, float32.

        They are taken before any copy is made, as those of a whole batch may be large.
        """
        size = math.prod(features.shape[2:])
        step = max(1, len(features) * size // MOST_VOXELS)
        while math.gcd(step, size) > 1:  # or it would always meet the same columns of an image
            step += 1
        index = torch.arange(0, len(features) * size, step, device=features.device)
        sample, voxel = index // size, index % size
        vectors = features.flatten(2)[sample, :, voxel].float()
        if labels.dtype == torch.bool:
            inside = labels.flatten(2)[sample, :, voxel].float()
            members = torch.cat((1 - inside, inside), dim=1)
        else:
            members = class_masks(labels.flatten(1)[sample, voxel][None], self.num_classes)[0].T
        # One overflow in half precision would stay in the statistics for ever.
        is_used = vectors.isfinite().all(1)
        if counted is not None:
            is_used = is_used & counted.flatten(1)[sample, voxel]
        return vectors.where(is_used[:, None], 0), members * is_used[:, None]


def augment_logits(
    logits: Tensor, labels: Tensor, weight: Tensor, shift: Tensor, covariance: Tensor, strength: float
) -> Tensor:
    """Return the logits whose cross entropy bounds the expected one of augmented features from above.

    For classes ``z_c + s (w_c - w_y) shift_y + s / 2 (w_c - w_y) cov_y (w_c - w_y)`` with the label y. For a region,
    whose other class has the weight zero, ``z + s w shift_y + (1 / 2 - y) s w cov_y w`` with y one inside of it.

    Args:
        logits: ``(B, K, *spatial)``; receives gradient.
        labels: Hard labels, see :mod:`losses.labels`. What an index outside ``0 ... K - 1`` leads to has no meaning.
        weight: Weight of the output layer ``(K, C)``; receives gradient.
        shift: Target mean minus source mean, as :attr:`FeatureStatistics.means`.
        covariance: Of the target, as :attr:`FeatureStatistics.covariances`.
        strength: s.

    Returns:
        ``(B, K, *spatial)``, float32.
    """
    num_classes = len(weight)
    with torch.autocast(logits.device.type, enabled=False):
        if labels.dtype == torch.bool:
            outside, inside = (
                strength * (weight * moved).sum(1) + sign * strength * _quadratic(weight, spread)
                for moved, spread, sign in zip(shift.chunk(2), covariance.chunk(2), (0.5, -0.5), strict=True)
            )
            axes = [1] * (logits.ndim - 2)
            return logits.float() + torch.where(labels, inside.view(-1, *axes), outside.view(-1, *axes))
        difference = weight[None] - weight[:, None]  # of class c (second axis) and label y (first axis)
        spread = covariance[:, None].expand(-1, num_classes, -1, -1)
        table = strength * (difference @ shift[:, :, None])[..., 0] + strength / 2 * _quadratic(difference, spread)
    return logits.float() + F.embedding(labels.clamp(0, num_classes - 1).long(), table).movedim(-1, 1)


def _quadratic(vectors: Tensor, matrices: Tensor) -> Tensor:
    return (vectors * (matrices @ vectors[..., None])[..., 0]).sum(-1)


def augmented_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    counted: Tensor,
    weight: Tensor,
    source: FeatureStatistics,
    target: FeatureStatistics,
    strength: float,
) -> Tensor:
    """Cross entropy of :func:`augment_logits` with the labels, mean over the voxels that count, and over regions.

    A class that one of both statistics has not seen yet is not augmented.

    Args:
        logits: ``(B, K, *spatial)``; receives gradient.
        labels: Hard labels, see :mod:`losses.labels`.
        counted: ``(B, *spatial)``, bool.
        weight: Weight of the output layer ``(K, C)``; receives gradient.
        source: Statistics of labeled images.
        target: Statistics of unlabeled images.
        strength: s.

    Returns:
        Scalar in nats, float32; zero if no voxel counts.
    """
    is_known = (source.updates > 0) & (target.updates > 0)
    shift = (target.means - source.means) * is_known[:, None]
    covariance = target.covariances * is_known[:, None, None]
    augmented = augment_logits(logits, labels, weight.float(), shift, covariance, strength)
    if labels.dtype == torch.bool:
        errors = F.binary_cross_entropy_with_logits(augmented, labels.float(), reduction="none")
    else:
        last = augmented.shape[1] - 1
        errors = F.cross_entropy(augmented, labels.clamp(0, last).long(), reduction="none")[:, None]
    return masked_mean(errors, counted[:, None])
