"""DHC: dual-debiased heterogeneous co-training (H. Wang, X. Li, MICCAI 2023, https://arxiv.org/abs/2307.11960)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nnunetv2_micd.losses.class_weights import EPSILON, DifficultyWeights, DistributionWeights
from nnunetv2_micd.losses.consistency import cross_pseudo_supervision
from nnunetv2_micd.losses.dice import hard_dice
from nnunetv2_micd.losses.labels import class_masks, probabilities
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.label_counts import count_labels
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.step import Deferred, Losses, as_error
from nnunetv2_micd.utils.ranges import Between, Share


@dataclass(frozen=True)
class DHCConfig(SemiSupervisedConfig):
    """Numbers of DHC, whose ramp-up takes the whole training as here; there is no teacher, as in CPS.

    DHC's supervised loss is the sum of cross entropy and Dice, as nnU-Net's, so ``ramp_peak`` is the published one.

    Attributes:
        difficulty_tau: tau of W_diff, in steps.
        dist_floor: Least weight of a class in W_dist before the multiplication by the number of classes. DHC's 0 takes
            the most frequent class out of the loss of B. That is the background as a rule; raise it where a foreground
            class has more voxels.
        dist_momentum: Share of the past in the moving average of W_dist, per step.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 0.1
    difficulty_tau: Annotated[int, Between(1)] = 50
    dist_floor: Share = 0.0
    dist_momentum: Annotated[float, Between(0, 1, exclude="high")] = 0.99


class nnUNetTrainerDHC(TwoStudents):
    """DHC: cross pseudo supervision of two networks that weigh the classes by difficulty (A) and by rarity (B).

    ``L = L_s(W_diff, p_A) + L_s(W_dist, p_B) + lambda(t) (W_diff CE(p_A, y^_B) + W_dist CE(p_B, y^_A))``, the first two
    on labeled images, the others on labeled and unlabeled ones, with the weights of
    :mod:`nnunetv2_micd.losses.class_weights`, updated before they are used, as in the authors' ``code/train_dhc.py``
    (https://github.com/xmed-lab/DHC, commit b3dee972). L_s is nnU-Net's loss, in which the weights multiply the classes
    of the cross entropy and of the Dice. Departures:

    - Without unsupervised weight (``ramp_peak`` 0) no class is weighed, so that network A is nnU-Net's.
    - A batch of nothing but classes of weight zero has an unweighted cross entropy, where torch divides zero by zero.
    - With regions a weight belongs to a region, whose cross entropy and Dice it multiplies.
    - Both networks have the architecture of the plans with deep supervision, whose outputs are all weighed.
    - Network A is deployed. The authors average both networks, which is stronger; ``nnUNetv2_micd benchmark
      --mean-of-both`` tests that as well.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 1 F + 1 backward, and 1 F more that is repeated
    to hold fewer graphs.
    """

    config: ClassVar[DHCConfig] = DHCConfig()

    def build_method(self) -> None:
        """Build the class weights, into which checkpoints load."""
        classes = self.label_manager.num_segmentation_heads
        self.difficulty = DifficultyWeights(classes, self.config.difficulty_tau).to(self.device)
        self.distribution = self._distribution_from(torch.ones(classes), None)
        self.weighted_losses = {name: self._build_weighted_loss() for name in "ab"}

    def _build_weighted_loss(self) -> Any:
        loss = self._build_loss()
        inner = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        inner.dc = WeightedDice(self.configuration_manager.batch_dice, self.is_ddp, self.label_manager.has_regions)
        return loss

    def _weighted_loss(self, name: str, weights: Tensor, output: Any, target: Any) -> Tensor:
        loss = self.weighted_losses[name]
        inner = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        inner.dc.weights, inner.ce.weight = weights, weights.clamp_min(EPSILON)
        if self.label_manager.has_regions:  # torch has no weights of channels here, but of anything that fits the shape
            relative = weights / weights.mean().clamp_min(EPSILON)  # a weighted mean, as torch has it of classes
            inner.ce.weight = relative.view(-1, *[1] * len(self.configuration_manager.patch_size))
        return torch.as_tensor(loss(output, target))

    def _distribution_from(self, counts: Tensor, num_voxels: Tensor | None) -> DistributionWeights:
        floor, momentum = self.config.dist_floor, self.config.dist_momentum
        return DistributionWeights(counts, floor, momentum, num_voxels).to(self.device)

    def prepare_method(self) -> None:
        """Start W_dist from the label counts of the labeled training cases."""
        if self.config.ramp_peak > 0:
            self.distribution = self._distribution_from(*count_labels(self.labeled_cases, self.label_manager))

    def supervised_losses(self, output_a: Any, output_b: Any, target: Any) -> dict[str, Tensor]:
        """Return nnU-Net's loss of both networks on labeled images, with the class weights of each."""
        if not self.config.ramp_peak:
            return super().supervised_losses(output_a, output_b, target)
        return {
            "supervised": self._weighted_loss("a", self.difficulty.weights, output_a, target),
            "supervised_b": self._weighted_loss("b", self.distribution.weights, output_b, target),
        }

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss of both networks on the labeled images; weighted cross pseudo supervision on all images.

        Both class weights, and the mean that they weigh, need all hard labels at once. So the passes over the unlabeled
        images are deferred: one graph of each network is held at a time.
        """
        images, target = labeled["data"], labeled["target"]
        output_a, output_b = self.network(images), self.students["b"](images)
        if unlabeled is None:
            yield Losses(self.supervised_losses(output_a, output_b, target))
            return
        students = self.students
        passes = Deferred(lambda: self.logits(students["a"], unlabeled), lambda: self.logits(students["b"], unlabeled))
        unlabeled_a, unlabeled_b = passes.outputs
        logits_a = torch.cat((full_resolution(output_a), unlabeled_a))
        logits_b = torch.cat((full_resolution(output_b), unlabeled_b))
        del unlabeled_a, unlabeled_b
        pseudo_a, pseudo_b = self.pseudo_label(logits_a), self.pseudo_label(logits_b)
        number = len(images)
        weight_a = self.difficulty.update(self._dice_of(pseudo_a[:number], full_resolution(target)))
        weight_b = self.distribution.update(pseudo_b[number:])
        supervised = self.supervised_losses(output_a, output_b, target)
        del output_a, output_b
        cps = cross_pseudo_supervision(logits_a, logits_b, pseudo_a, pseudo_b, weight_a, weight_b)
        self.observe(pseudo_a[number:], pseudo_b[number:])
        del logits_a, logits_b
        yield Losses(supervised, {"cps": cps})
        del supervised, cps  # their graphs hold the outputs that the deferred passes are about to free
        passes.backward()

    def _dice_of(self, pseudo: Tensor, target: Tensor) -> Tensor:
        truth, ignored = self.hard_target(target)
        return hard_dice(pseudo, truth, self.label_manager.num_segmentation_heads, ignored)

    def method_state(self) -> dict[str, Any]:
        """Return the state of the class weights."""
        return {"difficulty": self.difficulty.state_dict(), "distribution": self.distribution.state_dict()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.difficulty.load_state_dict(state["difficulty"])
        self.distribution.load_state_dict(state["distribution"])


class WeightedDice(nn.Module):
    """nnU-Net's Dice loss with class weights: the mean over the classes of weight times one minus Dice, minus one.

    With weights of one that is nnU-Net's loss, minus the mean Dice; its least value is -1 whatever the weights are.
    nnU-Net's own loss averages over the classes inside, so it computes the Dice of one class at a time here.

    Args:
        batch_dice: Whether the Dice is that of the batch instead of the mean over its samples.
        ddp: Whether the batch is divided among processes.
        regions: Whether the classes are regions, which have no background among them.

    Attributes:
        weights: Weights of all classes ``(K,)``; the background of classes has no Dice.
    """

    weights: Tensor

    def __init__(self, batch_dice: bool, ddp: bool, regions: bool):
        super().__init__()
        self.of_one_class = MemoryEfficientSoftDiceLoss(batch_dice=batch_dice, smooth=1e-5, ddp=ddp)
        self.regions = regions

    def forward(self, logits: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(B, K, *spatial)`` and nnU-Net's target."""
        predicted = probabilities(logits, self.regions)
        truth = target if self.regions else class_masks(target[:, 0], logits.shape[1])
        errors = [
            self.weights[k] * as_error(self.of_one_class(predicted[:, k : k + 1], truth[:, k : k + 1], loss_mask))
            for k in range(0 if self.regions else 1, logits.shape[1])
        ]
        return torch.stack(errors).mean() - 1
