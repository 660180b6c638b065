"""Mean Teacher (Tarvainen & Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780) for segmentation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.augmentation.intensity import add_noise
from nnunetv2_micd.losses.consistency import mean_teacher_consistency
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.ranges import Between


@dataclass(frozen=True)
class MeanTeacherConfig(SemiSupervisedConfig):
    """Numbers of Mean Teacher as published for medical images (HiLab-git/SSL4MIS, commit 06df604).

    ``ramp_peak`` is twice the published 0.1, because nnU-Net's supervised loss, cross entropy plus Dice, is twice the
    published one; so both losses have their published proportion.

    Attributes:
        noise_std, noise_limit: Standard deviation of the Gaussian noise on the teacher's input, in units of the
            normalized intensities, and the limit at which it is cut off on both sides.
    """

    ramp_peak: float = 0.2
    noise_std: Annotated[float, Between(0)] = 0.1
    noise_limit: Annotated[float, Between(0)] = 0.2


class nnUNetTrainerMeanTeacher(SemiSupervisedTrainer):
    """Mean Teacher: the student follows its own moving average, which sees the unlabeled image with other noise.

    Where this departs from SSL4MIS:

    - The decay of the teacher warms up as ``min((1 + t) / (10 + t), a)``, see :func:`training.ema.ema_decay_at`,
      instead of ``1 - 1 / (t + 1)``: the teacher is nearer to the student in the first 900 steps. Stronger in short
      trainings (``docs/results``), the same in long ones.
    - The teacher is deployed; the authors deploy the student. Stronger.
    - Both see nnU-Net's augmentation, not flips alone. Stronger, for every method here.
    - There are no steps without consistency at the start (SSL4MIS has 1000 in 2D); the ramp-up is nearly 0 there.

    Passes of a step: supervised 1 F + 1 backward, unlabeled 1 F + 1 backward, teacher 1 F.
    """

    config: ClassVar[MeanTeacherConfig] = MeanTeacherConfig()

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images, mean squared difference of probabilities on the unlabeled ones."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None:
            return
        images = self.consistency_images(labeled, unlabeled)
        student = self.logits(self.students["a"], images)
        with torch.no_grad():
            teacher = self.noisy_logits(images, self.generator)
        pseudo = self.pseudo_label(teacher)
        self.metrics["agreement"] = 1 - differing(self.pseudo_label(student), pseudo).float().mean()
        self.metrics["foreground_teacher"] = foreground_share(pseudo)
        yield Losses(unsupervised={"consistency": self.consistency(student, teacher, images)})

    def consistency(self, student: Tensor, teacher: Tensor, images: Tensor) -> Tensor:
        """Return how far the logits of student and teacher are apart."""
        return mean_teacher_consistency(student, teacher, self.label_manager.has_regions)

    def noisy_logits(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the teacher's logits of images with noise."""
        return self.logits(self.teachers["a"], self._add_noise(images, generator))

    def _add_noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        std, limit, masked = self.config.noise_std, self.config.noise_limit, self.masked_channels
        return self.change_intensities(images, lambda image: add_noise(image, std, limit, generator, masked))

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, noisy image, the labels of student and teacher and where they differ."""
        noisy = self._add_noise(unlabeled, torch.Generator().manual_seed(self.current_epoch))
        student = self.pseudo_label(forward_to_logits(self.students["a"], unlabeled))
        teacher = self.pseudo_label(forward_to_logits(self.teachers["a"], noisy))
        return {
            "image": self.image_panel(unlabeled),
            "teacher's image": self.image_panel(noisy),
            "student": label_map(student),
            "teacher": label_map(teacher),
            "they differ": differing(student, teacher),
        }
