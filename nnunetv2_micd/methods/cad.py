"""CAD: confidence-aware adaptive displacement (Xiao, Xu, Liang, Deng, Xiao, 2025, https://arxiv.org/abs/2502.00536)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.augmentation.displacement import Displacement, displace, find_displacement
from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.losses.dice import confident_dice_loss
from nnunetv2_micd.losses.labels import label_map, probabilities
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.utils.ranges import Between, Range


@dataclass(frozen=True)
class CADConfig(SemiSupervisedConfig):
    """Numbers of CAD: those of its parent ABD (chy-upc/ABD, commit 4efd525), and what is chosen here without a source.

    ``ramp_peak`` is twice ABD's 0.1, because nnU-Net's supervised loss, cross entropy plus Dice, is twice ABD's; so
    both losses have ABD's proportion. As in ABD the ramp-up takes the whole training.

    Attributes:
        threshold: tau, the confidence below which a voxel may be replaced, at the start and at the end of the training;
            both chosen here.
        largest_edge: s, the largest edge of a replaced box as a share of the edge of the patch, at the start and at the
            end. ABD always replaces a quarter, which is the start here; the end is chosen here.
        view: Strength of the strong view; chosen here, as in UniMatch.
    """

    ramp_peak: float = 0.2
    threshold: Annotated[Range, Between(0, 1)] = (0.6, 0.95)
    largest_edge: Annotated[Range, Between(0, 1, exclude="low")] = (0.25, 0.5)
    view: StrongView = field(default_factory=StrongView)


def confidence_of(logits: Tensor, regions: bool = False) -> Tensor:
    """Return the probability of what is decided at each voxel.

    Of classes that is the largest probability. A region is decided with ``max(p, 1 - p)``, and a voxel counts with the
    region that is the least certain there.

    Args:
        logits: ``(B, K, *spatial)``.
        regions: Whether the classes are regions, which may overlap.

    Returns:
        ``(B, *spatial)``, float32.
    """
    probability = probabilities(logits, regions)
    return torch.maximum(probability, 1 - probability).amin(1) if regions else probability.amax(1)


def donors_of(first: Tensor, second: Tensor) -> Tensor:
    """Return the donors of ``first``, followed by those of ``second``: the other view of the next sample.

    The last sample takes the first one, so a single sample takes its own other view.
    """
    return torch.cat((second.roll(-1, 0), first.roll(-1, 0)))


def hard_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the mean Dice of probabilities and hard labels over all classes, background as well; ABD's loss.

    Args:
        logits: ``(B, K, *spatial)``; receives gradient.
        labels: Hard labels, see ``losses.pseudo_label``.

    Returns:
        Scalar between 0 and 1, float32.
    """
    everywhere = torch.ones_like(logits[:, :1], dtype=torch.bool)
    return confident_dice_loss(logits, labels if labels.dtype == torch.bool else labels.long(), everywhere)


class nnUNetTrainerCAD(TwoStudents):
    """Reconstruction of CAD: two different networks learn each other's teacher on images whose largest region of low
    confidence is replaced by a window of high confidence; its numbers must not be compared with the paper's.

    On a weak view w and a strong view s of the unlabeled images, with the hard labels y' of the EMA teachers A'(w) and
    B'(s), D the Dice loss and d the displacement of images and labels alike,
    ``L_A = L_s + lambda(t) (D(A(w), y_B') + (D(A(d(w)), d(y_B')) + D(A(d(s)), d(y_B'))) / 2)``, and L_B with A and B,
    w and s exchanged. In each view, d replaces the box around the largest connected region whose confidence is below
    tau(t), cut to s(t) of the patch, by the window of that size with the highest mean confidence. tau(t) and s(t) grow
    linearly. The code is not published, and this is made without the paper's equations, schedules and weights: from its
    abstract, which names the replacement of the largest region (LLCR), thresholds that rise (DTE), Mean Teacher and
    cross pseudo supervision, and from the code of its parent ABD (Chi et al., CVPR 2024). Choices and departures, whose
    direction is unknown where none is given:

    - The window comes from the other view of the next sample of the batch, or of the same sample in a batch of one. ABD
      takes the other view of the same sample, and of its four most confident patches the one most alike in classes. The
      most confident window is often background, so this displaces less foreground. Probably weaker.
    - The teachers give both confidence and labels, and labels move along with images. In ABD, which has no teachers,
      each network learns what the other predicts of the displaced image.
    - Region and window are sought in cells of 2 voxels per axis.
    - ABD's displacement of labeled images (ABD-I) is left out; the abstract does not name it. Weaker. Both networks see
      the same labeled images; ABD shows the strong view to B.
    - Network B is the other architecture from the same plans instead of a Swin-UNet with weights from ImageNet, and L_s
      is nnU-Net's loss with deep supervision.
    - The strong view is UniMatch's. ABD's has color jitter and cutout, which blanks the label as well.
    - The teacher of A is deployed. Stronger than the student, which ABD deploys.

    Each step waits for the device once, because connected regions are found on the CPU. Passes of a step, per network,
    one graph at a time: labeled 1 F + 1 backward, unlabeled 3 F + 3 backward, teacher 1 F.
    """

    config: ClassVar[CADConfig] = CADConfig()
    architecture_of_b = "other"
    has_weak_views = True

    def scheduled(self, bounds: Range) -> float:
        """Return the current value of a number that grows linearly over the training."""
        progress = min(1.0, self.iteration / (self.num_epochs * self.num_iterations_per_epoch))
        return bounds[0] + (bounds[1] - bounds[0]) * progress

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images; cross pseudo supervision on both views before and after displacement.

        Labels come from the teachers, so each pass of a student is backpropagated by itself.
        """
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        yield Losses({"supervised_b": self.loss(self.students["b"](labeled["data"]), labeled["target"])})
        if unlabeled is None:
            return
        weak = self.consistency_images(labeled, unlabeled)
        strong = self._strong_view(weak, self.generator)
        with torch.no_grad():
            logits_a, logits_b = self.logits(self.teachers["a"], weak), self.logits(self.teachers["b"], strong)
        label_a, label_b = self.pseudo_label(logits_a), self.pseudo_label(logits_b)
        confidences, displacement = self._find_displacement(logits_a, logits_b)
        del logits_a, logits_b
        self.observe(label_a, label_b)
        self.metrics["low_confidence"] = (confidences < self.scheduled(self.config.threshold)).float().mean()
        self.metrics["displaced"] = displacement.inside.float().mean()
        displaced = displace(torch.cat((weak, strong)), donors_of(weak, strong), displacement).chunk(2)
        for name, view, label in (("a", weak, label_b), ("b", strong, label_a)):
            student = self.students[name]
            yield Losses(unsupervised={f"cps_{name}": hard_dice_loss(self.logits(student, view), label)})
            # The views differ in intensities only, so the label of one view is that of the other as well.
            moved = displace(torch.cat((label, label)), donors_of(label, label), displacement).chunk(2)
            for kind, images, target in zip(("weak", "strong"), displaced, moved, strict=True):
                loss = hard_dice_loss(self.logits(student, images), target) / 2
                yield Losses(unsupervised={f"displaced_{kind}_{name}": loss})

    def _strong_view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.strong_view(images, self.config.view, generator)

    def _find_displacement(self, logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Displacement]:
        """Return the confidence in both views, ``(2 B, *spatial)``, and what is displaced there."""
        first, second = (confidence_of(logits, self.label_manager.has_regions) for logits in (logits_a, logits_b))
        threshold, largest_edge = (self.scheduled(each) for each in (self.config.threshold, self.config.largest_edge))
        confidences = torch.cat((first, second))
        return confidences, find_displacement(confidences, donors_of(first, second), threshold, largest_edge)

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Weak view, the confidence of A's teacher and the box there, the displaced image, its label by B's teacher."""
        strong = self._strong_view(unlabeled, torch.Generator().manual_seed(self.current_epoch))
        logits_a, logits_b = (
            forward_to_logits(self.teachers[name], view) for name, view in (("a", unlabeled), ("b", strong))
        )
        confidences, displacement = self._find_displacement(logits_a, logits_b)
        half = Displacement(*(each[: len(unlabeled)] for each in displacement))
        label = self.pseudo_label(logits_b)
        return {
            "image": self.image_panel(unlabeled),
            "confidence": confidences[: len(unlabeled)],
            "box of low confidence": half.inside[:, 0],
            "displaced image": self.image_panel(displace(unlabeled, strong.roll(-1, 0), half)),
            "its pseudo-label": label_map(displace(label, label.roll(-1, 0), half)),
        }
