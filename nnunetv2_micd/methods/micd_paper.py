"""MICD as printed: eq. 3 with the class weights of DHC, in each of the three ways in which it can be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from nnunetv2_micd.losses.class_weights import DifficultyWeights, DistributionWeights
from nnunetv2_micd.losses.consistency import mcpc
from nnunetv2_micd.losses.dice import hard_dice
from nnunetv2_micd.methods.micd import MICDConfig, StudentOutput, nnUNetTrainerMICD
from nnunetv2_micd.training.label_counts import count_labels
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.utils.ranges import Between, Share


@dataclass(frozen=True)
class MICDPaperConfig(MICDConfig):
    """Numbers of MICD as printed.

    What the paper leaves open, and what is taken here: the peak of the ramp-up ``ramp_peak`` (1), its length (all
    steps), whether the class weights apply to L_sup as well, as in DHC (no), and the momentum and tau of the class
    weights (DHC's).

    Attributes:
        mcpc_reading: Passes that eq. 3 compares, see :func:`nnunetv2_micd.losses.mcpc`.
        difficulty_weights, distribution_weights: Whether DHC's W_diff weighs A's part of eq. 3, W_dist the part of B.
            They are made for many classes of very different size. With few balanced classes the result was worse
            (``docs/results``).
        dist_floor: Least weight of a class in W_dist before the multiplication by the number of classes. The literal 0
            takes the most frequent class, the background, out of the loss of B.
        difficulty_tau: tau of W_diff, in steps.
    """

    cfc_weight: float = 1.0
    labeled_consistency: bool = True
    mcpc_reading: Literal["peer_masked", "both_masked", "peer_clean"] = "peer_masked"
    difficulty_weights: bool = True
    distribution_weights: bool = True
    dist_floor: Share = 0.0
    difficulty_tau: Annotated[int, Between(1)] = 50


class nnUNetTrainerMICD_paper(nnUNetTrainerMICD):
    """MICD, as printed: eq. 3 with class weights in the printed reading, all terms of weight one, on all images.

    ``MCPC = W_diff CE(p_A(x), y^_B(x^m)) + W_dist CE(p_B(x), y^_A(x^m))``: the student on the clean image learns the
    other's labels of the masked one. `nnUNetTrainerMICD` departs from it by measurement, see `MICDConfig`.

    Passes of a step in addition to `nnUNetTrainerMICD` with ``labeled_consistency``, per network: ``peer_masked`` 2 F
    + 2 backward, ``peer_clean`` 1 F. ``recompute_peer`` repeats the clean pass of B in ``peer_masked`` as well.
    """

    config: ClassVar[MICDPaperConfig] = MICDPaperConfig()

    def build_method(self) -> None:
        """Build the class weights, into which checkpoints load."""
        classes = self.label_manager.num_segmentation_heads
        self.difficulty = DifficultyWeights(classes, self.config.difficulty_tau).to(self.device)
        self.distribution = DistributionWeights(torch.ones(classes), self.config.dist_floor).to(self.device)
        # Of this step: hard labels of the students on the clean labeled images, as far as eq. 3 needs them, and truth.
        self.labels_of_labeled: dict[str, Tensor] = {}
        self.labeled_target: Any = None

    def prepare_method(self) -> None:
        """Start W_dist from the label counts of the labeled training cases."""
        if self.config.mcpc_weight and self.config.distribution_weights and self.config.ramp_peak > 0:
            counts, num_voxels = count_labels(self.labeled_cases, self.label_manager)
            weights = DistributionWeights(counts, self.config.dist_floor, num_voxels=num_voxels)
            self.distribution = weights.to(self.device)

    def learn_labels(self, labeled: dict[str, Any]) -> Iterator[Losses]:
        """Eq. 6; the hard labels of the students are kept for eq. 3."""
        needed = "ab" if self.config.mcpc_reading == "peer_clean" else "a" if self.config.difficulty_weights else ""
        self.labeled_target = labeled["target"]
        for name, network, loss_name in (("a", self.network, "supervised"), ("b", self.students["b"], "supervised_b")):
            output = network(labeled["data"])
            if name in needed:
                self.labels_of_labeled[name] = self.pseudo_label(full_resolution(output))
            loss = self.loss(output, labeled["target"])
            del output  # the graph of the loss keeps what the backward pass needs of it
            yield Losses({loss_name: loss})

    def run_student(self, name: str, images: Tensor, masked: Tensor) -> StudentOutput:
        """Run a student on the masked images and, in the printed reading of eq. 3, on the clean ones."""
        output = super().run_student(name, images, masked)
        if self.config.mcpc_reading == "peer_masked" and self.config.mcpc_weight:
            return output._replace(clean=self.logits(self.students[name], images))
        return output

    def pseudo_labels(self, a: StudentOutput, b: StudentOutput, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hard labels of the masked or, in ``peer_clean``, of the clean images."""
        if self.config.mcpc_reading != "peer_clean" or not self.config.mcpc_weight:
            return super().pseudo_labels(a, b, unlabeled)
        with torch.no_grad():  # the labels of the labeled half are known from eq. 6
            clean = {name: self.pseudo_label(self.logits(self.students[name], unlabeled)) for name in "ab"}
        if self.uses_labeled_images:
            clean = {name: torch.cat((self.labels_of_labeled[name], labels)) for name, labels in clean.items()}
        return clean["a"], clean["b"]

    def cross_consistency(self, a: StudentOutput, b: StudentOutput, pseudo_a: Tensor, pseudo_b: Tensor) -> Tensor:
        """Eq. 3 with its class weights, both updated before they are used, as in DHC."""
        weight_a = weight_b = None
        if self.config.difficulty_weights:
            truth, ignored = self.hard_target(full_resolution(self.labeled_target))
            classes = self.label_manager.num_segmentation_heads
            weight_a = self.difficulty.update(hard_dice(self.labels_of_labeled["a"], truth, classes, ignored))
        if self.config.distribution_weights:
            weight_b = self.distribution.update(pseudo_b[-self.unlabeled_batch_size :])
        logits_a, logits_b = (output.masked if output.clean is None else output.clean for output in (a, b))
        return mcpc(logits_a, logits_b, pseudo_a, pseudo_b, weight_a, weight_b)

    def method_state(self) -> dict[str, Any]:
        """Return the state of the class weights."""
        return {"difficulty": self.difficulty.state_dict(), "distribution": self.distribution.state_dict()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.difficulty.load_state_dict(state["difficulty"])
        self.distribution.load_state_dict(state["distribution"])

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Draw the hard labels of the images that eq. 3 takes them from."""
        panels = super().picture_panels(unlabeled)
        return panels | (self.label_panels(unlabeled) if self.config.mcpc_reading == "peer_clean" else {})
