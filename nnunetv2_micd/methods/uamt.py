"""UA-MT: uncertainty-aware Mean Teacher (Yu, Wang, Li, Fu, Heng, MICCAI 2019, https://arxiv.org/abs/1907.07034)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.losses.consistency import masked_mean
from nnunetv2_micd.losses.labels import label_map, probabilities
from nnunetv2_micd.methods.mean_teacher import MeanTeacherConfig, nnUNetTrainerMeanTeacher
from nnunetv2_micd.training.networks import forward_to_logits
from nnunetv2_micd.training.schedules import gaussian_ramp_up
from nnunetv2_micd.utils.ranges import Between, Share


@dataclass(frozen=True)
class UAMTConfig(MeanTeacherConfig):
    """Numbers of Mean Teacher and of UA-MT, whose ramp-ups, of weight and threshold, take the whole training as here.

    Attributes:
        noisy_passes: T of the paper, the teacher's passes from which its uncertainty is estimated.
        certain_below: Share of ln 2 below which the entropy of a voxel counts as certain at the start; it rises to 1.
    """

    noisy_passes: Annotated[int, Between(1)] = 8
    certain_below: Share = 0.75


class nnUNetTrainerUAMT(nnUNetTrainerMeanTeacher):
    """UA-MT: Mean Teacher on those voxels where the teacher's answers to several noisy images are certain.

    The numbers and what the paper leaves open follow the authors' training script
    ``code/train_LA_meanteacher_certainty_unlabel.py`` (https://github.com/yulequan/UA-MT, commit 88ed29ad): the
    teacher's target is one more noisy pass, only unlabeled images take part (in their other script all). With more than
    two classes it follows the ports to them in SSL4MIS and DHC: entropy is compared with ln 2 for every number of
    classes, so a voxel between two classes is never certain before the end of the ramp-up, and squared differences are
    halved, not averaged over classes. Departures:

    - nnU-Net has no dropout, so the teacher's passes differ by the noise of their images only. Its answers are more
      alike, and more voxels count.
    - A region is a decision of its own: its entropy is binary, each region has its own certain voxels, and the loss is
      the mean over all of them.
    - nnU-Net's supervised loss instead of half of cross entropy and Dice; the weight is doubled for that.
    - Teacher and deployed network are those of :class:`~nnunetv2_micd.methods.mean_teacher.nnUNetTrainerMeanTeacher`.

    Passes of a step: supervised 1 F + 1 backward, unlabeled 1 F + 1 backward, teacher 1 F + ``noisy_passes`` F.
    """

    config: ClassVar[UAMTConfig] = UAMTConfig()

    def consistency(self, student: Tensor, teacher: Tensor, images: Tensor) -> Tensor:
        """Return the consistency where the teacher is certain."""
        with torch.no_grad():
            certain = self._certain(images, self.generator)
        self.metrics["certain"] = certain.float().mean()
        return certain_consistency(student, teacher, certain, self.label_manager.has_regions)

    def _certain(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return where the mean of the teacher's noisy answers has little entropy, see :func:`is_certain`."""
        regions, passes = self.label_manager.has_regions, self.config.noisy_passes
        mean = sum(probabilities(self.noisy_logits(images, generator), regions) / passes for _ in range(passes))
        return is_certain(torch.as_tensor(mean), self._certain_below(), regions)

    def _certain_below(self) -> float:
        start, total_steps = self.config.certain_below, self.num_epochs * self.num_iterations_per_epoch
        return start + gaussian_ramp_up(self.iteration, total_steps, 1 - start)

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, noisy image, the labels of student and teacher, and where the teacher is uncertain."""
        generator = torch.Generator().manual_seed(self.current_epoch)
        noisy = self._add_noise(unlabeled, generator)
        student = self.pseudo_label(forward_to_logits(self.students["a"], unlabeled))
        teacher = self.pseudo_label(forward_to_logits(self.teachers["a"], noisy))
        return {
            "image": self.image_panel(unlabeled),
            "teacher's image": self.image_panel(noisy),
            "student": label_map(student),
            "teacher": label_map(teacher),
            "teacher is uncertain": ~self._certain(unlabeled, generator).all(1),
        }


def is_certain(mean_probabilities: Tensor, below: float, regions: bool = False) -> Tensor:
    """Return where the predictive entropy ``u = -sum_c mu_c ln mu_c`` is less than a share of ln 2.

    ln 2 is the entropy of a voxel on the border of two classes, whatever the number of classes.

    Args:
        mean_probabilities: mu, ``(B, K, *spatial)``, the mean over the passes.
        below: Share of ln 2.
        regions: Whether the classes are regions, which may overlap.

    Returns:
        Bool, of classes ``(B, 1, *spatial)``, of regions ``(B, K, *spatial)``.
    """
    entropy = torch.special.entr(mean_probabilities)  # -p ln p, and 0 at 0
    if regions:
        return entropy + torch.special.entr(1 - mean_probabilities) < below * math.log(2)
    return entropy.sum(1, keepdim=True) < below * math.log(2)


def certain_consistency(
    student_logits: Tensor, teacher_logits: Tensor, certain: Tensor, regions: bool = False
) -> Tensor:
    """Squared distance of the probabilities of student and teacher, halved, where the teacher is certain.

    ``sum_v I(u_v < H) ||p'_v - p_v||^2 / (2 sum_v I(u_v < H))``, as in the authors' code for any number of classes. A
    region has two probabilities, p and 1 - p, so half of its distance is ``(p'_v - p_v)^2``; the mean is over regions.

    Args:
        student_logits: ``(B, K, *spatial)``; receives gradient.
        teacher_logits: Same shape; no gradient.
        certain: See :func:`is_certain`.
        regions: Whether the classes are regions, which may overlap.

    Returns:
        Scalar between 0 and 1; 0, with a graph, where nothing is certain.
    """
    with torch.no_grad():
        target = probabilities(teacher_logits, regions)
    distance = (probabilities(student_logits, regions) - target) ** 2
    return masked_mean(distance if regions else distance.sum(1, keepdim=True) / 2, certain)
