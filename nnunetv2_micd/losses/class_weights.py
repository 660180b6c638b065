"""Class weights of DHC: W_dist for rare classes (network B), W_diff for difficult classes (network A).

Wang & Li, "Dual-debiased Heterogeneous Co-training Framework for Class-Imbalanced Semi-supervised Medical Image
Segmentation", MICCAI 2023, https://arxiv.org/abs/2307.11960. The formulas follow ``DistDW`` and ``DiffDW`` in the
authors' ``code/train_dhc.py`` at https://github.com/xmed-lab/DHC/tree/b3dee972dc1a77307f6aaef16dc78b10838e0a8d.

``K`` is the number of classes with background. The state is kept in buffers, for checkpoints. An update only queues
work on the device and never waits for it. It replaces the buffers instead of writing into them, because a loss that
still waits for its backward pass may hold the old weights.
"""

import torch
from torch import Tensor, nn

from nnunetv2_micd.losses.labels import count_classes

EPSILON = 1e-8
"""DHC's guard against zero counts, zero Dice and zero learning speed; also the Dice before the first step."""


class DistributionWeights(nn.Module):
    """W_dist: rare classes weigh more, ``w_k = K log(max n / n_k) / max_j log(max n / n_j)``.

    As in DHC, the moving average runs over the weights and not over the counts n, and 1e-8 is added to the counts. So
    an absent class gets the maximum K, and its huge ratio lowers the weights of all other classes. Departures from DHC:
    the floor; and equal counts give K for every class, where DHC divides zero by zero.

    Of classes, max n is the background's as a rule. Regions have no background among them, so the number of all voxels
    takes its place: else the largest region would have the weight that is meant for the background.

    Attributes:
        weights: Weights of the classes, buffer ``(K,)``, between ``floor * K`` and K.
        floor: Smallest weight of a class before the factor K.
        momentum: Share of the past in the moving average.

    Examples:
        >>> distribution = DistributionWeights(torch.tensor([100, 10, 1]), floor=0.0)
        >>> distribution.weights
        tensor([0.0000, 1.5000, 3.0000])
        >>> weights = distribution.update(torch.tensor([[0, 0, 1, 2]]))  # pseudo-labels of a batch
        >>> DistributionWeights(torch.tensor([100, 10]), floor=0.0, num_voxels=1000).weights  # two regions
        tensor([1., 2.])
    """

    weights: Tensor

    def __init__(
        self, label_counts: Tensor, floor: float, momentum: float = 0.99, num_voxels: Tensor | int | None = None
    ) -> None:
        """Start from the labeled set.

        Args:
            label_counts: Number of voxels of each class in the labeled set, ``(K,)``.
            floor: Smallest weight of a class before the factor K, in [0, 1]. DHC's formula has 0: the most frequent
                class then has no weight, and with two classes the background is never learned.
            momentum: Share of the past in the moving average, per step.
            num_voxels: Of regions, the number of all voxels, in a region or not.

        Raises:
            ValueError: ``label_counts`` is not a vector, or ``floor`` lies outside [0, 1].
        """
        super().__init__()
        if label_counts.ndim != 1:
            raise ValueError(f"The label counts must be one number per class, got shape {tuple(label_counts.shape)}.")
        if not 0 <= floor <= 1:
            raise ValueError(f"The floor of the class weights must lie between 0 and 1, got {floor}.")
        self.floor = floor
        self.momentum = momentum
        self.register_buffer("weights", self._from_counts(label_counts, num_voxels))

    @torch.no_grad()
    def update(self, pseudo: Tensor) -> Tensor:
        """Update the weights with the pseudo-labels of network B on unlabeled images.

        Args:
            pseudo: Class indices ``(B, *spatial)``, integers, or region masks ``(B, K, *spatial)``, bool.

        Returns:
            The new weights ``(K,)``.
        """
        counts = count_classes(pseudo, len(self.weights))
        num_voxels = None
        if pseudo.dtype == torch.bool:
            num_voxels = count_classes(torch.zeros_like(pseudo[:, 0], dtype=torch.uint8), 1)[0]
        self.weights = self.weights.lerp(self._from_counts(counts, num_voxels), 1 - self.momentum)
        return self.weights

    def _from_counts(self, counts: Tensor, num_voxels: Tensor | int | None) -> Tensor:
        counts = counts.float() + EPSILON
        most = counts.max() if num_voxels is None else num_voxels + EPSILON
        rarity = (most / counts).log()
        largest = rarity.max()
        relative = torch.where(largest > 0, rarity / largest, torch.ones_like(rarity))
        return relative.clamp_min(self.floor) * len(counts)


class DifficultyWeights(nn.Module):
    """W_diff: classes weigh more if they are learned slowly, forgotten, or have a low Dice.

    Let d be the hard Dice of network A on the labeled batch and ``D = d_t - d_{t-1}``. ``learn`` is the moving average
    of ``D log(d_t / d_{t-1})`` where D > 0 (else 0), ``unlearn`` the same where D <= 0. Then
    ``w = ((unlearn + 1e-8) / (learn + 1e-8))^(1/5) * EMA[1 - d]``, divided by its maximum, times K. Departure from DHC:
    d is clamped to at least 1e-8, DHC's own starting value, so that no logarithm is infinite.

    Attributes:
        weights: Weights of the classes, buffer ``(K,)``, at most K. Before the first update all are K, as in DHC.
        last_dice: Dice of the last step, buffer ``(K,)``.
        learn: Moving average of the learning speed, buffer ``(K,)``.
        unlearn: Moving average of the forgetting speed, buffer ``(K,)``.
        error: Moving average of one minus the Dice, buffer ``(K,)``.
        tau: Memory of the moving averages in steps.

    Examples:
        >>> difficulty = DifficultyWeights(num_classes=2)
        >>> difficulty.weights
        tensor([2., 2.])
        >>> weights = difficulty.update(torch.tensor([0.9, 0.1]))
        >>> bool(weights[1] > weights[0])  # class 1 has the lower Dice
        True
    """

    weights: Tensor
    last_dice: Tensor
    learn: Tensor
    unlearn: Tensor
    error: Tensor

    def __init__(self, num_classes: int, tau: int = 50) -> None:
        """Start with equal weights.

        Args:
            num_classes: Number of classes K.
            tau: Memory of the moving averages in steps; their momentum is ``(tau - 1) / tau``.

        Raises:
            ValueError: ``tau`` is less than one.
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
        """Update the weights with the Dice of network A on the labeled batch.

        Args:
            hard_dice: Dice ``(K,)`` in [0, 1], see :func:`~nnunetv2_micd.losses.dice.hard_dice`.

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
