"""The class weights of DHC, which make the two branches of MICD different: W_dist for B, W_diff for A.

Wang & Li, "Dual-debiased Heterogeneous Co-training Framework for Class-Imbalanced Semi-supervised Medical Image
Segmentation", MICCAI 2023, https://arxiv.org/abs/2307.11960. The formulas follow the authors' ``code/train_dhc.py`` at
https://github.com/xmed-lab/DHC/tree/b3dee972dc1a77307f6aaef16dc78b10838e0a8d (``DistDW``, ``DiffDW``).

State is kept in buffers, for checkpoints, and updates only queue work on the device, they never wait for it. ``K`` is
the number of classes with background. An update replaces the buffers instead of writing into them, since a loss that
still waits for its backward pass may hold the old weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_micd.utils.distributed import sum_over_processes

EPSILON = 1e-8
"""DHC's guard in counts, Dice and the ratio of unlearning to learning; also the Dice before the first step."""


class DistributionWeights(nn.Module):
    """W_dist: rare classes weigh more, ``w_k = K log(max n / n_k) / max_j log(max n / n_j)``.

    As in DHC the moving average runs over weights, not counts, and 1e-8 is added to the counts: an absent class gets
    the maximum, K, and takes the others down with it, since its ratio is huge. Departures: the floor, and equal counts
    give K for all classes where DHC divides zero by zero.

    Attributes:
        weights: Buffer ``(K,)``, between ``floor * K`` and K.
    """

    weights: Tensor

    def __init__(self, label_counts: Tensor, floor: float, momentum: float = 0.99) -> None:
        """Start from the labeled set.

        Args:
            label_counts: Voxels of each class in the labeled set, ``(K,)``.
            floor: Least weight of a class before the factor K, in [0, 1]. With 0, DHC's formula, the most frequent
                class has no weight, which with two classes removes the background.
            momentum: Share of the past in the moving average, per step.

        Raises:
            ValueError: If ``label_counts`` is not a vector or ``floor`` lies outside [0, 1].
        """
        super().__init__()
        if label_counts.ndim != 1:
            raise ValueError(f"The label counts must be one number per class, got shape {tuple(label_counts.shape)}.")
        if not 0 <= floor <= 1:
            raise ValueError(f"The floor of the class weights must lie between 0 and 1, got {floor}.")
        self.floor = floor
        self.momentum = momentum
        self.register_buffer("weights", self._from_counts(label_counts))

    @torch.no_grad()
    def update(self, pseudo: Tensor) -> Tensor:
        """Take in the pseudo-labels of B on the unlabeled half.

        Args:
            pseudo: Class indices ``(B, *spatial)``, integers; of regions masks ``(B, K, *spatial)``, bool.

        Returns:
            The new weights ``(K,)``.
        """
        counts = _count_classes(pseudo, len(self.weights))
        self.weights = self.weights.lerp(self._from_counts(counts), 1 - self.momentum)
        return self.weights

    def _from_counts(self, counts: Tensor) -> Tensor:
        counts = counts.float() + EPSILON
        rarity = (counts.max() / counts).log()
        largest = rarity.max()
        relative = torch.where(largest > 0, rarity / largest, torch.ones_like(rarity))
        return relative.clamp_min(self.floor) * len(counts)


class DifficultyWeights(nn.Module):
    """W_diff: classes that are learned slowly or forgotten, and whose Dice is low, weigh more.

    With d the hard Dice of A on the labeled batch and ``D = d_t - d_{t-1}``: learn is the moving average of
    ``D log(d_t / d_{t-1})`` where D > 0 (else 0), unlearn the same where D <= 0, and ``w = ((unlearn + 1e-8) /
    (learn + 1e-8))^(1/5) * EMA[1 - d]``, divided by its maximum, times K. Departure from DHC: d is clamped to at least
    1e-8, its own starting value, so that no logarithm is infinite.

    Attributes:
        weights: Buffer ``(K,)``, at most K; before the first update all K, as in DHC.
    """

    weights: Tensor
    last_dice: Tensor
    learn: Tensor
    unlearn: Tensor
    error: Tensor

    def __init__(self, num_classes: int, tau: int = 50) -> None:
        """Start with equal weights.

        Args:
            num_classes: K.
            tau: Memory of the moving averages in steps, their momentum is ``(tau - 1) / tau``.

        Raises:
            ValueError: If ``tau`` is less than one.
        """
        super().__init__()
        if tau < 1:
            raise ValueError(f"The memory tau of the class weights must be at least one step, got {tau}.")
        self.tau = tau
        self.register_buffer("weights", torch.full((num_classes,), float(num_classes)))
        self.register_buffer("last_dice", torch.full((num_classes,), EPSILON))
        self.register_buffer("learn", torch.zeros(num_classes))
        self.register_buffer("unlearn", torch.zeros(num_classes))
        self.register_buffer("error", torch.ones(num_classes))

    @torch.no_grad()
    def update(self, hard_dice: Tensor) -> Tensor:
        """Take in the Dice of A on the labeled batch.

        Args:
            hard_dice: ``(K,)`` in [0, 1], see the function ``hard_dice``.

        Returns:
            The new weights ``(K,)``.
        """
        dice = hard_dice.float().clamp(EPSILON, 1)
        change = dice - self.last_dice
        speed = change * (dice / self.last_dice).log()
        self.learn = self.learn.lerp(torch.where(change > 0, speed, 0), 1 / self.tau)
        self.unlearn = self.unlearn.lerp(torch.where(change > 0, 0, speed), 1 / self.tau)
        self.error = self.error.lerp(1 - dice, 1 / self.tau)
        self.last_dice = dice
        difficulty = ((self.unlearn + EPSILON) / (self.learn + EPSILON)) ** 0.2 * self.error
        largest = difficulty.max()
        # The error underflows to zero after thousands of steps with a perfect Dice.
        relative = torch.where(largest > 0, difficulty / largest, torch.ones_like(difficulty))
        self.weights = relative * len(relative)
        return self.weights


@torch.no_grad()
def hard_dice(prediction: Tensor, target: Tensor, num_classes: int, ignored: Tensor | None = None) -> Tensor:
    """Dice of hard labels, per class over the whole batch: ``(2 TP + 1e-8) / (2 TP + FP + FN + 2e-8)``.

    A class that is in neither gets 0.5. That follows from DHC's smoothing, which is restated here; it is kept because
    it is neutral: the class seems neither solved (1 would drive its weight to zero) nor failed (0 would raise it) on
    patches that say nothing about it.

    Args:
        prediction: Class indices ``(B, *spatial)``, integers; of regions masks ``(B, K, *spatial)``, bool.
        target: The same of the truth; what is not in ``0 ... K - 1`` belongs to no class.
        num_classes: K.
        ignored: ``(B, *spatial)``, bool: voxels that do not count, or None.

    Returns:
        ``(K,)``, float32.
    """
    if prediction.dtype == torch.bool:
        counted = torch.ones_like(prediction) if ignored is None else ~ignored[:, None]
        hits, predicted, true = prediction & target & counted, prediction & counted, target & counted
    else:
        predicted = prediction if ignored is None else prediction.masked_fill(ignored, -1)
        true = target if ignored is None else target.masked_fill(ignored, -1)
        hits = torch.where(predicted == true, true, -1)
    sizes = _count_classes(predicted, num_classes) + _count_classes(true, num_classes)
    return (2 * _count_classes(hits, num_classes) + EPSILON) / (sizes + 2 * EPSILON)


def _count_classes(labels: Tensor, num_classes: int) -> Tensor:
    if labels.dtype == torch.bool:
        return sum_over_processes(labels.transpose(0, 1).flatten(1).sum(1))
    # Not torch.bincount, which waits for the device to learn the largest label.
    return sum_over_processes(torch.stack([(labels == k).sum() for k in range(num_classes)]))


def count_labels(cases: Any, label_manager: Any) -> Tensor:
    """Count the voxels of each class, or region, in nnU-Net's dataset of labeled cases; ignored voxels do not count."""
    counts = torch.zeros(max(label_manager.all_labels) + 2, dtype=torch.int64)  # the ignore label may be one more
    for identifier in cases.identifiers:
        _, segmentation, _, _ = cases.load_case(identifier)
        labels = torch.from_numpy(segmentation[:]).flatten().long()
        counts += torch.bincount(labels[labels >= 0], minlength=len(counts))  # -1 lies outside the image
    classes = label_manager.foreground_regions if label_manager.has_regions else label_manager.all_labels
    return torch.stack([counts[torch.as_tensor(labels)].sum() for labels in classes])
