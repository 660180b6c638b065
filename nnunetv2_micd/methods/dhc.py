"""DHC: dual-debiased heterogeneous co-training (H. Wang, X. Li, MICCAI 2023, https://arxiv.org/abs/2307.11960)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.losses.class_weights import DifficultyWeights, DistributionWeights
from nnunetv2_micd.losses.consistency import cross_pseudo_supervision
from nnunetv2_micd.losses.dice import hard_dice
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import Between, SemiSupervisedConfig, Share
from nnunetv2_micd.training.label_counts import count_labels
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.step import Deferred, Losses


@dataclass(frozen=True)
class DHCConfig(SemiSupervisedConfig):
    """Numbers of DHC, whose ramp-up takes the whole training as here; there is no teacher, as in CPS.

    Attributes:
        difficulty_tau: tau of W_diff, in steps.
        dist_floor: Least weight of a class in W_dist before the multiplication by the number of classes. DHC's 0 takes
            the most frequent class, the background, out of the unsupervised loss of B.
        dist_momentum: Share of the past in the moving average of W_dist, per step.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 0.1
    difficulty_tau: Annotated[int, Between(1)] = 50
    dist_floor: Share = 0.0
    dist_momentum: Annotated[float, Between(0, 1, exclude="high")] = 0.99


class nnUNetTrainerDHC(TwoStudents):
    """DHC: cross pseudo supervision of two networks that weigh the classes by difficulty (A) and by rarity (B).

    ``L = L_s + lambda(t) (W_diff CE(p_A, y^_B) + W_dist CE(p_B, y^_A))`` on labeled and unlabeled images, with the
    weights of :mod:`nnunetv2_micd.losses.class_weights`, updated before they are used, as in the authors'
    ``code/train_dhc.py`` (https://github.com/xmed-lab/DHC, commit b3dee972). Departures:

    - The weights apply to the unsupervised loss only. The authors also weigh their supervised cross entropy and Dice;
      here the supervised loss is nnU-Net's, unchanged, so that network A without unsupervised weight is nnU-Net's.
    - With regions a weight belongs to a region, so the most frequent region has the weight ``dist_floor``.
    - Network A is deployed; the authors average both networks.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 1 F + 1 backward, and 1 F more that is repeated
    to hold fewer graphs.
    """

    config: ClassVar[DHCConfig] = DHCConfig()

    def build_method(self) -> None:
        """Build the class weights, into which checkpoints load."""
        classes = self.label_manager.num_segmentation_heads
        self.difficulty = DifficultyWeights(classes, self.config.difficulty_tau).to(self.device)
        self.distribution = self._distribution_from(torch.ones(classes))

    def _distribution_from(self, counts: Tensor) -> DistributionWeights:
        return DistributionWeights(counts, self.config.dist_floor, self.config.dist_momentum).to(self.device)

    def prepare_method(self) -> None:
        """Start W_dist from the label counts of the labeled training cases."""
        if self.config.ramp_peak > 0:
            self.distribution = self._distribution_from(count_labels(self.labeled_cases, self.label_manager))

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss of both networks on the labeled images; weighted cross pseudo supervision on all images.

        Both class weights, and the mean that they weigh, need all hard labels at once. So the passes over the unlabeled
        images are deferred: one graph of each network is held at a time.
        """
        images, target = labeled["data"], labeled["target"]
        output_a, output_b = self.network(images), self.students["b"](images)
        supervised = self.supervised_losses(output_a, output_b, target)
        if unlabeled is None:
            yield Losses(supervised)
            return
        students = self.students
        passes = Deferred(lambda: self.logits(students["a"], unlabeled), lambda: self.logits(students["b"], unlabeled))
        unlabeled_a, unlabeled_b = passes.outputs
        logits_a = torch.cat((full_resolution(output_a), unlabeled_a))
        logits_b = torch.cat((full_resolution(output_b), unlabeled_b))
        del output_a, output_b, unlabeled_a, unlabeled_b
        pseudo_a, pseudo_b = self.pseudo_label(logits_a), self.pseudo_label(logits_b)
        number = len(images)
        weight_a = self.difficulty.update(self._dice_of(pseudo_a[:number], full_resolution(target)))
        weight_b = self.distribution.update(pseudo_b[number:])
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
