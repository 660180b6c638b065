"""MCF: mutual correction framework (Wang, Xiao, Bi, Li, Gao, CVPR 2023, https://github.com/WYC-321/MCF)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.losses.consistency import masked_mean, mean_teacher_consistency
from nnunetv2_micd.losses.dice import soft_dice_error
from nnunetv2_micd.losses.labels import class_masks, probabilities, pseudo_label
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.utils.ranges import Between, Weight


@dataclass(frozen=True)
class MCFConfig(SemiSupervisedConfig):
    """Numbers of MCF, whose ramp-up takes the whole training as here; there is no teacher.

    Attributes:
        review_weight: Weight of the review loss, from the first step on.
        temperature: T, by which the logits of pseudo-labels are divided to sharpen them.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 0.1
    review_weight: Weight = 0.5
    temperature: Annotated[float, Between(0, exclude="low")] = 0.1


class nnUNetTrainerMCF(TwoStudents):
    """MCF: two different networks review where they differ, and the better one teaches the other on unlabeled images.

    ``L = L_s + 0.5 L_review + lambda(t) L_con``: :func:`difference_review` (the paper's CDR) on the labeled images,
    :func:`competitive_consistency` (its DCPLG) on the unlabeled ones. Restated from the authors' ``code/train_MCF.py``
    (commit ad20659b), written for one foreground class. Departures:

    - Network B is the other architecture from the same plans instead of a V-Net with ResNet-34 encoder, and L_s is
      nnU-Net's loss with deep supervision.
    - Without unsupervised weight (``ramp_peak`` 0) there is no review either, so that network A is nnU-Net's.
    - The better network is the one with the higher mean Dice of all foreground classes or regions of the labeled batch;
      with several processes each decides for its own part.
    - Network A is deployed. The authors average both networks, which is stronger; ``nnUNetv2_micd benchmark
      --mean-of-both`` tests that as well.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 1 F + 1 backward (of the better one with a
    gradient of zero, since the host does not wait to learn which one that is).
    """

    config: ClassVar[MCFConfig] = MCFConfig()
    architecture_of_b = "other"

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss of both networks and their review on the labeled images; consistency on the unlabeled ones."""
        images, target = labeled["data"], labeled["target"]
        output_a, output_b = self.network(images), self.students["b"](images)
        losses = self.supervised_losses(output_a, output_b, target)
        if not self.config.ramp_peak:
            yield Losses(losses)
            return
        regions = self.label_manager.has_regions
        logits_a, logits_b = full_resolution(output_a), full_resolution(output_b)
        truth, ignored = self.hard_target(full_resolution(target))
        review = difference_review(logits_a, logits_b, truth, ignored, regions)
        losses["review"] = self.config.review_weight * review
        error_a, error_b = (soft_dice_error(logits, truth, ignored, regions) for logits in (logits_a, logits_b))
        del output_a, output_b, logits_a, logits_b
        yield Losses(losses)
        if unlabeled is None:
            return
        a_is_better = error_a < error_b
        further = self.consistency_images(labeled, unlabeled)
        logits_a, logits_b = (self.logits(self.students[name], further) for name in "ab")
        self.observe(self.pseudo_label(logits_a), self.pseudo_label(logits_b))
        self.metrics["a_is_better"] = a_is_better.float()
        loss = competitive_consistency(logits_a, logits_b, a_is_better, self.config.temperature, regions)
        del logits_a, logits_b
        yield Losses(unsupervised={"consistency": loss})


def difference_review(
    logits_a: Tensor, logits_b: Tensor, truth: Tensor, ignored: Tensor | None = None, regions: bool = False
) -> Tensor:
    """Contrastive difference review: squared error of both networks where their hard labels differ.

    Mean over these voxels of half of the sum over classes, then the sum of both networks. With two classes that is the
    authors' error of the foreground probability; of regions it is the mean over them, taken in each region where the
    networks differ about that region.

    Args:
        logits_a: Network A on labeled images, ``(B, K, *spatial)``; receives gradient.
        logits_b: Network B, same shape; receives gradient.
        truth: Hard labels, see ``losses.hard_target``.
        ignored: ``(B, *spatial)``, bool: voxels that do not count, or None.
        regions: Whether the classes are regions, which may overlap.

    Returns:
        Scalar between 0 and 2; 0, with a graph, where they do not differ.
    """
    differ = pseudo_label(logits_a, regions) != pseudo_label(logits_b, regions)
    differ = differ if regions else differ[:, None]
    if ignored is not None:
        differ = differ & ~ignored[:, None]
    target = class_masks(truth, logits_a.shape[1])
    error_a, error_b = ((probabilities(logits, regions) - target) ** 2 for logits in (logits_a, logits_b))
    errors = error_a + error_b
    return masked_mean(errors if regions else errors.sum(1, keepdim=True) / 2, differ)


def competitive_consistency(
    logits_a: Tensor, logits_b: Tensor, a_is_better: Tensor, temperature: float, regions: bool = False
) -> Tensor:
    """Dynamic competitive pseudo-labels: squared distance of the worse network to the sharpened answer of the better.

    The sharpened answer is ``p^(1/T) / sum_c p_c^(1/T)``, the softmax of the logits divided by T. Mean over batch,
    classes and voxels, as in the authors' code, which has two classes; so it is smaller where there are more.

    Args:
        logits_a: Network A on unlabeled images, ``(B, K, *spatial)``; receives gradient where it is the worse one.
        logits_b: Network B, same shape; likewise.
        a_is_better: Scalar, bool, on the device: whether A teaches B or the reverse.
        temperature: T.
        regions: Whether the classes are regions, which may overlap.

    Returns:
        Scalar between 0 and 1.
    """
    student, teacher = torch.where(a_is_better, logits_b, logits_a), torch.where(a_is_better, logits_a, logits_b)
    return mean_teacher_consistency(student, teacher.float() / temperature, regions)
