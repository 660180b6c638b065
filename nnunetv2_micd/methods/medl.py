"""MEDL: mutual evidential deep learning (He, Bi, Li, Pun, Jiao, Jin, BIBM 2024, https://arxiv.org/abs/2505.12418)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_micd.losses.dice import SOFT_SMOOTHING
from nnunetv2_micd.losses.evidential import (
    Opinion,
    curriculum_weight,
    fisher_evidential_loss,
    fuse,
    opinion,
    reliability,
)
from nnunetv2_micd.losses.labels import class_masks, differing, label_map, pseudo_label
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits, full_resolution
from nnunetv2_micd.training.schedules import gaussian_ramp_up
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.utils.ranges import Between, Share, Weight


@dataclass(frozen=True)
class MEDLConfig(SemiSupervisedConfig):
    """Numbers of MEDL; its authors have published no code, and the paper leaves most of them out.

    All parts of the loss have the published weight of one: they are cross entropy plus Dice, as nnU-Net's supervised
    loss is, so their proportion holds whether the authors take the sum or the mean. There is no teacher.

    Attributes:
        fused_share: Share of the fused uncertainty in that of labeled voxels, l2 of eq. 5; 0.5 is the paper's.
        curriculum_strength: Xi of eq. 6; 0.5 is chosen here, with which weights lie between 0.62 and 1.38.
        fisher_weight: Weight of log|I| in eq. 7; chosen here: the smaller one of I-EDL (danruod/IEDL, commit 4aca7db2),
            which has 0.05 and 0.005.
        evidential_weight: Weight of eq. 7 in eq. 9 after its warm-up; chosen here: the peak of the ramp-up of MCF, on
            which MEDL builds.
        warm_up: Share of the training over which this weight grows, as a Gaussian; chosen here.
    """

    ema_decay: float = 0.0
    ramp_length: Share = 0.0
    fused_share: Share = 0.5
    curriculum_strength: Annotated[float, Between(0, 1, exclude="high")] = 0.5
    fisher_weight: Weight = 0.005
    evidential_weight: Weight = 0.1
    warm_up: Share = 1.0


class nnUNetTrainerMEDL(TwoStudents):
    """Reconstruction of MEDL: two different networks learn labels fused from the evidence of both, sure voxels first.

    For each network ``L = L_s + L_pseudo + L_weighted + lambda(t) L_evidential`` (eq. 9). L_pseudo is cross entropy and
    Dice with the fused labels of unlabeled images, weighted by their reliability (eq. 3 and 4). L_weighted is the same
    with the true labels, weighted by the curriculum (eq. 5 and 6), from certain to uncertain voxels. L_evidential is
    eq. 7 with the fused labels, weighted by the curriculum. See :mod:`losses.evidential` for the equations. What the
    paper leaves open, chosen here: evidence is the softplus of the logits, one of the two functions of I-EDL;
    voxels are ranked over the batch, on unlabeled images by the fused uncertainty alone; the curriculum advances with
    every step; Dice is over the batch, without the background.

    Departures:

    - The printed order of ranks, by descending uncertainty, would start with uncertain voxels. It is reversed here, as
      the text asks for certain ones first. Eq. 4 is read with the sign that keeps R at most 1.
    - Network B is the other architecture from the same plans instead of a V-Net with ResNet-34 encoder, and L_s is
      nnU-Net's loss with deep supervision; the other losses are at full resolution.
    - L_weighted belongs to the unsupervised losses: without their weight (``ramp_peak`` 0) network A is nnU-Net's.
    - Images are not mixed. The paper names a mask of 170 x 170 pixels for ACDC, as in BCP, but no rule. Probably weaker
      than published.
    - A region is a decision of its own between inside and outside, with evidence for both from its one logit.
    - With several processes each ranks the voxels of its own batch.
    - Network A is deployed. The authors average both networks, which is stronger; ``nnUNetv2_micd benchmark
      --mean-of-both`` tests that as well.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 1 F + 1 backward.
    """

    config: ClassVar[MEDLConfig] = MEDLConfig()
    architecture_of_b = "other"

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss and the weighted one on the labeled images, then what the fused labels teach on the others."""
        images, target = labeled["data"], labeled["target"]
        output_a, output_b = self.network(images), self.students["b"](images)
        supervised = self.supervised_losses(output_a, output_b, target)
        if unlabeled is None:
            yield Losses(supervised)
            return
        logits = [full_resolution(output_a), full_resolution(output_b)]
        weighted = self._weighted_loss(logits, full_resolution(target))
        del output_a, output_b, logits
        yield Losses(supervised, {"weighted": weighted})
        further = self.consistency_images(labeled, unlabeled)
        logits = [self.logits(self.students[name], further) for name in "ab"]
        self.observe(*(self.pseudo_label(each) for each in logits))
        losses = self._unsupervised_losses(logits)
        del logits
        yield Losses(unsupervised=losses)

    def _weighted_loss(self, logits: list[Tensor], target: Tensor) -> Tensor:
        regions, share = self.label_manager.has_regions, self.config.fused_share
        truth, ignored = self.hard_target(target)
        counted = None if ignored is None else ~(ignored[:, None] if regions else ignored)
        opinions = [opinion(each, regions) for each in logits]
        fused = fuse(*opinions)
        loss = torch.zeros((), device=truth.device)
        for each, own in zip(logits, opinions, strict=True):
            uncertainty = (1 - share) * own.uncertainty + share * fused.uncertainty
            loss = loss + weighted_dice_cross_entropy(each, truth, self._curriculum(uncertainty, counted))
        return loss

    def _unsupervised_losses(self, logits: list[Tensor]) -> dict[str, Tensor]:
        config, regions = self.config, self.label_manager.has_regions
        fused = fuse(*(opinion(each, regions) for each in logits))
        labels, reliable, weight = self._label(fused), reliability(fused), self._curriculum(fused.uncertainty)
        self.metrics["reliability"] = reliable.mean()
        warm_up = round(config.warm_up * self._steps)
        evidential_weight = gaussian_ramp_up(self.iteration, warm_up, config.evidential_weight)
        pseudo = [weighted_dice_cross_entropy(each, labels, reliable) for each in logits]
        evidential = [fisher_evidential_loss(each, labels, weight, config.fisher_weight, regions) for each in logits]
        return {
            "pseudo_label": pseudo[0] + pseudo[1],
            "evidential": evidential_weight * (evidential[0] + evidential[1]),
        }

    def _curriculum(self, uncertainty: Tensor, counted: Tensor | None = None) -> Tensor:
        progress = min(1.0, self.iteration / self._steps)
        return curriculum_weight(uncertainty, progress, self.config.curriculum_strength, counted)

    @property
    def _steps(self) -> int:
        return self.num_epochs * self.num_iterations_per_epoch

    def _label(self, fused: Opinion) -> Tensor:
        """Return the hard labels of classes or regions that the fused evidence supports most."""
        label = pseudo_label(fused.belief)
        return label.bool() if self.label_manager.has_regions else label

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, the labels of both networks and where they differ, their fused label and its reliability."""
        regions = self.label_manager.has_regions
        logits = [forward_to_logits(self.students[name], unlabeled) for name in "ab"]
        fused = fuse(*(opinion(each, regions) for each in logits))
        label_a, label_b = (self.pseudo_label(each) for each in logits)
        reliable = reliability(fused)
        return {
            "image": self.image_panel(unlabeled),
            "label of A": label_map(label_a),
            "label of B": label_map(label_b),
            "A and B differ": differing(label_a, label_b),
            "fused label": label_map(self._label(fused)),
            "reliability": reliable.amin(1) if regions else reliable,  # of regions, the least reliable one
        }


def weighted_dice_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy plus one minus Dice, both with a weight for each voxel.

    ``sum_v w_v CE_v / V + 1 - mean_k (2 sum_v w_v p_kv y_kv + e) / (sum_v w_v (p_kv + y_kv) + e)`` over the voxels v of
    the batch, of which V have a weight, and the classes k without background, or all regions; e is 1e-5.

    Args:
        logits: Logits ``(B, K, *spatial)``; receives gradient.
        labels: Hard labels, class indices ``(B, *spatial)`` or region masks ``(B, K, *spatial)``, bool.
        weight: Not negative, in the shape of the labels; voxels of weight 0 do not count.

    Returns:
        Scalar, float32.
    """
    regions = labels.dtype == torch.bool
    weight = weight if regions else weight[:, None]
    truth = weight * class_masks(labels, logits.shape[1])
    if regions:
        prediction = logits.float().sigmoid()
        entropy = weight * F.softplus(logits.float()) - truth * logits.float()
    else:
        log_prediction = logits.log_softmax(1, dtype=torch.float32)
        prediction, entropy = log_prediction.exp(), -truth * log_prediction
    axes = (0, *range(2, logits.ndim))
    overlap, size = (prediction * truth).sum(axes), (weight * prediction + truth).sum(axes)
    if not regions:
        overlap, size = overlap[1:], size[1:]
    dice = (2 * overlap + SOFT_SMOOTHING) / (size + SOFT_SMOOTHING)
    return entropy.sum() / (weight > 0).sum().clamp_min(1) + 1 - dice.mean()
