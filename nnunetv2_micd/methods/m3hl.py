"""M3HL: mutual mask mix with high- and low-level feature consistency (Liu et al., MICCAI 2025, arXiv 2508.03752)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_micd.augmentation.masks import sample_mask
from nnunetv2_micd.methods.bcp import BCPConfig, Output, nnUNetTrainerBCP
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.utils.ranges import Between, Share, Weight


@dataclass(frozen=True)
class M3HLConfig(BCPConfig):
    """Numbers of M3HL (PHPJava666/M3HL, commit 19151b31); those of BCP, but without its pre-training.

    Attributes:
        box: Without meaning here, where blocks take the place of BCP's box.
        blocks: Blocks along each axis of a patch; the authors have 4 on both of their data sets.
        mask_ratio: Share of the blocks that come from the other image.
        feature_weight: Weight of both feature consistencies together.
    """

    pretraining: Share = 0.0
    blocks: Annotated[int, Between(1)] = 4
    mask_ratio: Annotated[float, Between(0, 1, exclude="high")] = 0.5
    feature_weight: Weight = 1.0


class nnUNetTrainerM3HL(nnUNetTrainerBCP):
    """M3HL: blocks of a labeled and an unlabeled image change places, and the features of the mixed images stay near
    the teacher's of the unlabeled one.

    ``L = L_BCP + (L_high + L_low) / 2`` with the loss of BCP on both mixed images, random blocks for each pair in
    place of the box; one minus the cosine of the bottleneck and the absolute difference of the last decoder stage,
    all values of a sample in one vector, between the student on a mixed image and the teacher on the unlabeled one,
    mean over both mixed images.
    Departures from the authors' code, beside those of BCP's losses:

    - Both mixed images of a pair are made of the same two images, as in our BCP, so each of the feature consistencies
      compares images that share half of their voxels. The authors mix two pairs of different images and compare all
      four combinations, of which two share nothing.
    - A block is a fourth of the patch along each axis, rounded up; an axis of fewer than four voxels has fewer blocks.
    - Their ramp-up is computed but not used; here there is none.
    - The abstract speaks of masks that are adjusted during training. The code has one size and ratio, as here.
    - The learning rate falls as nnU-Net's does; the authors keep it on ACDC.
    - The teacher is deployed; the authors deploy the student. Stronger.

    Passes of a step: 2 F + 2 backward, teacher 1 F, with an ignore label 2 F.
    """

    config: ClassVar[M3HLConfig] = M3HLConfig()

    def sample_region(self, images: Tensor) -> Tensor:
        """Draw blocks for each pair of images."""
        spatial, ratio = images.shape[2:], self.config.mask_ratio
        edges = [math.ceil(size / self.config.blocks) for size in spatial]
        return sample_mask(len(images), spatial, ratio, edges, self.generator, images.device)

    def run_teacher(self, unlabeled: Tensor) -> Tensor:
        """Keep the teacher's features of the unlabeled images."""
        output, (bottleneck, *_, last) = self.forward_with_outputs(self.teachers["a"], unlabeled)
        self.teacher_features = bottleneck, last
        return full_resolution(output)

    def run_student(self, mixed: Tensor) -> Output:
        """Keep the student's features of the mixed images."""
        output, (bottleneck, *_, last) = self.forward_with_outputs(self.students["a"], mixed)
        self.student_features = bottleneck, last
        return output

    def further_losses(self, labels: Tensor, is_unlabeled: Tensor, pseudo: Tensor) -> dict[str, Tensor]:
        """Both feature consistencies."""
        (high, low), (teacher_high, teacher_low) = self.student_features, self.teacher_features
        del self.student_features, self.teacher_features  # the first one holds the graph of the step
        half = self.config.feature_weight / 2
        high, low = high.float(), low.float()
        twice_high, twice_low = torch.cat([teacher_high] * 2).float(), torch.cat([teacher_low] * 2).float()
        return {
            "high_level": half * (1 - F.cosine_similarity(high.flatten(1), twice_high.flatten(1)).mean()),
            "low_level": half * F.l1_loss(low, twice_low),
        }
