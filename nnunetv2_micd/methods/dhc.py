"""DHC: dual-debiased heterogeneous co-training (H. Wang, X. Li, MICCAI 2023, https://arxiv.org/abs/2307.11960)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_micd.losses.class_weights import DifficultyWeights, DistributionWeights, count_labels, hard_dice
from nnunetv2_micd.losses.consistency import mcpc
from nnunetv2_micd.methods.cps import branch_metrics, branch_panels, build_twin
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.passes import Pass
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer


@dataclass(frozen=True)
class DHCConfig(SemiSupervisedConfig):
    """The numbers of DHC, whose ramp-up takes the whole training as here; there is no teacher, as in CPS.

    Attributes:
        difficulty_tau: tau of W_diff, in steps.
        dist_floor: least weight of a class in W_dist before the multiplication by the number of classes. DHC's 0 takes
            the most frequent class, the background, out of the unsupervised loss of B.
        dist_momentum: share of the past in the moving average of W_dist, per step.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 0.1
    difficulty_tau: int = 50
    dist_floor: float = 0.0
    dist_momentum: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.difficulty_tau < 1:
            raise ValueError(f"difficulty_tau is {self.difficulty_tau}, it has to be 1 step or more.")
        if not 0 <= self.dist_floor <= 1:
            raise ValueError(f"dist_floor is {self.dist_floor}, it has to be between 0 and 1.")
        if not 0 <= self.dist_momentum < 1:
            raise ValueError(f"dist_momentum is {self.dist_momentum}, it has to be at least 0 and below 1.")


class nnUNetTrainerDHC(SemiSupervisedTrainer):
    """DHC: cross pseudo supervision of two networks that weigh the classes by difficulty (A) and by rarity (B).

    ``L = L_s + lambda(t) (W_diff CE(p_A, y^_B) + W_dist CE(p_B, y^_A))`` on labeled and unlabeled images; the weights
    are those of :mod:`nnunetv2_micd.losses.class_weights`, updated before they are used, as in the authors'
    ``code/train_dhc.py`` (https://github.com/xmed-lab/DHC, commit b3dee972). Departures:

    - The weights weigh the unsupervised loss only. The authors also weigh their supervised cross entropy and Dice; here
      that is nnU-Net's loss, unchanged, so that network A without unsupervised weight is nnU-Net's.
    - Of regions a weight belongs to a region, so the most frequent region has the weight ``dist_floor``.
    - Network A is deployed; the authors average both networks.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 1 F + 1 backward, and 1 F more that is repeated
    to hold fewer graphs.
    """

    config: ClassVar[DHCConfig] = DHCConfig()

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Network B, the architecture of the plans once more; and the class weights, which checkpoints load into."""
        classes = self.label_manager.num_segmentation_heads
        self._difficulty = DifficultyWeights(classes, self.config.difficulty_tau).to(self.device)
        self._distribution = self._distribution_from(torch.ones(classes))
        return {"b": build_twin(self)}

    def _distribution_from(self, counts: Tensor) -> DistributionWeights:
        return DistributionWeights(counts, self.config.dist_floor, self.config.dist_momentum).to(self.device)

    def prepare_method(self) -> None:
        """W_dist starts from the label counts of the labeled training cases."""
        if self.config.ramp_peak > 0:
            self._distribution = self._distribution_from(count_labels(self.labeled_cases, self.label_manager))

    def unsupervised_passes(self) -> list[Pass]:
        """Return those over the unlabeled images."""
        return [Pass(name, "unlabeled") for name in self.students]

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """nnU-Net's loss of both networks on the labeled images; weighted cross pseudo supervision on all images.

        Both weights and the mean that they weigh want all labels at once. So the unlabeled images are first run without
        a graph; what the losses say to these outputs is kept until there is one, of one network at a time. (Of networks
        without dropout and batch normalization, as nnU-Net plans them.)
        """
        images, target = labeled["data"], labeled["target"]
        output_a, output_b = self.network(images), self.students["b"](images)
        losses = {"supervised": self.loss(output_a, target), "supervised_b": self.loss(output_b, target)}
        if unlabeled is None:
            yield losses
            return
        with torch.no_grad():
            leaf_a, leaf_b = (self.logits(self.students[name], unlabeled).requires_grad_() for name in "ab")
        logits_a = torch.cat((full_resolution(output_a), leaf_a))
        logits_b = torch.cat((full_resolution(output_b), leaf_b))
        del output_a, output_b
        pseudo_a, pseudo_b = self.pseudo_label(logits_a), self.pseudo_label(logits_b)
        number = len(images)
        truth, ignored = self.hard_target(full_resolution(target))
        dice = hard_dice(pseudo_a[:number], truth, logits_a.shape[1], ignored)
        weight_a, weight_b = self._difficulty.update(dice), self._distribution.update(pseudo_b[number:])
        losses["cps"] = mcpc(logits_a, logits_b, pseudo_a, pseudo_b, weight_a, weight_b)
        self.metrics |= branch_metrics(pseudo_a[number:], pseudo_b[number:])
        del logits_a, logits_b
        yield losses
        gradient_a, gradient_b = leaf_a.grad, leaf_b.grad
        del losses, leaf_a, leaf_b
        self.backpropagate([self.logits(self.students["a"], unlabeled)], [gradient_a])
        self.backpropagate([self.logits(self.students["b"], unlabeled)], [gradient_b])

    def method_state(self) -> dict[str, Any]:
        """Return the state of the class weights."""
        return {"difficulty": self._difficulty.state_dict(), "distribution": self._distribution.state_dict()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._difficulty.load_state_dict(state["difficulty"])
        self._distribution.load_state_dict(state["distribution"])

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, the labels of both networks and where they differ."""
        return branch_panels(self, unlabeled)
