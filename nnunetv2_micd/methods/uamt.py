"""UA-MT: uncertainty-aware Mean Teacher (Yu, Wang, Li, Fu, Heng, MICCAI 2019, https://arxiv.org/abs/1907.07034)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.augmentation.intensity import add_noise
from nnunetv2_micd.losses.consistency import masked_mean
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map, probabilities
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits
from nnunetv2_micd.training.schedules import gaussian_ramp_up
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.ranges import Between, Share


@dataclass(frozen=True)
class UAMTConfig(SemiSupervisedConfig):
    """Numbers of UA-MT, whose ramp-ups, of the weight and of the threshold, take the whole training as here.

    ``ramp_peak`` is twice the published 0.1, because nnU-Net's supervised loss is twice the published one, see
    :class:`~nnunetv2_micd.methods.mean_teacher.MeanTeacherConfig`.

    Attributes:
        noise_std, noise_limit: Standard deviation of the Gaussian noise on the teacher's input, in units of the
            normalized intensities, and the limit at which it is cut off on both sides.
        noisy_passes: T of the paper, the teacher's passes from which its uncertainty is estimated.
        certain_below: Share of ln 2 below which the entropy of a voxel counts as certain at the start; it rises to 1.
    """

    ramp_peak: float = 0.2
    noise_std: Annotated[float, Between(0)] = 0.1
    noise_limit: Annotated[float, Between(0)] = 0.2
    noisy_passes: Annotated[int, Between(1)] = 8
    certain_below: Share = 0.75


class nnUNetTrainerUAMT(SemiSupervisedTrainer):
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
    - The teacher is deployed, as for every method here; the authors deploy the student. Stronger.
    - The decay of the teacher warms up as in :class:`~nnunetv2_micd.methods.mean_teacher.nnUNetTrainerMeanTeacher`.

    Passes of a step: supervised 1 F + 1 backward, unlabeled 1 F + 1 backward, teacher 1 F + ``noisy_passes`` F.
    """

    config: ClassVar[UAMTConfig] = UAMTConfig()

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images, consistency where the teacher is certain on the unlabeled ones."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None:
            return
        regions = self.label_manager.has_regions
        images = self.consistency_images(labeled, unlabeled)
        student = self.logits(self.students["a"], images)
        with torch.no_grad():
            teacher = self._noisy_logits(images, self.generator)
            certain = self._certain(images, self.generator)
        pseudo = self.pseudo_label(teacher)
        self.metrics["agreement"] = 1 - differing(self.pseudo_label(student), pseudo).float().mean()
        self.metrics["foreground_teacher"] = foreground_share(pseudo)
        self.metrics["certain"] = certain.float().mean()
        yield Losses(unsupervised={"consistency": certain_consistency(student, teacher, certain, regions)})

    def _noisy_logits(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.logits(self.teachers["a"], self._add_noise(images, generator))

    def _add_noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        std, limit, masked = self.config.noise_std, self.config.noise_limit, self.masked_channels
        return self.change_intensities(images, lambda image: add_noise(image, std, limit, generator, masked))

    def _certain(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return where the mean of the teacher's noisy answers has little entropy, see :func:`is_certain`."""
        regions, passes = self.label_manager.has_regions, self.config.noisy_passes
        mean = sum(probabilities(self._noisy_logits(images, generator), regions) / passes for _ in range(passes))
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
