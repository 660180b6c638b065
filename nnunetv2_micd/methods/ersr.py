"""ERSR: ellipse-constrained pseudo-labels and symmetry (Zhou et al., JBHI 2025, https://arxiv.org/abs/2508.19815)."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunetv2_micd.augmentation.ellipse import Ellipse, Reflection, fit_ellipse, outline
from nnunetv2_micd.augmentation.intensity import StrongView, keep_outside, strong_view
from nnunetv2_micd.losses.consistency import masked_mean
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map, probabilities
from nnunetv2_micd.methods.ersr_filter import irregularity, most_regular
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits
from nnunetv2_micd.training.schedules import gaussian_ramp_up
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.devices import to_device
from nnunetv2_micd.utils.ranges import Between, Share


@dataclass(frozen=True)
class ERSRConfig(SemiSupervisedConfig):
    """Numbers of ERSR (BioMedIA-repo/ERSR, commit 9b7f8cda), whose ramp-up takes the whole training as here.

    ``ramp_peak`` is twice the published 1, because nnU-Net's supervised loss, cross entropy plus Dice, is twice the
    published one; so both losses have their published proportion. The ramp begins after the supervised start.

    Attributes:
        supervised: Share of the training on labeled images alone, rounded down to whole epochs. The authors start from
            a supervised checkpoint, whose training they do not tell: chosen here.
        kept: Share of the most regular outputs of the teacher that are kept in the beginning; in the end it is 1.
        kept_of_batch: Share of a batch that is kept in any case, at least one image.
        window: Number of the latest outputs among which one is ranked; chosen here, the authors have an epoch.
        threshold: Probability above which a voxel of the teacher's output is foreground.
        view: Strength of the perturbations, for images whose intensities go from 0 to 1.
    """

    ramp_peak: float = 2.0
    supervised: Share = 0.25
    kept: Share = 0.5
    kept_of_batch: Share = 0.8
    window: Annotated[int, Between(1)] = 1000
    threshold: Annotated[float, Between(0, 1, exclude="both")] = 0.6
    view: StrongView = field(
        default_factory=lambda: StrongView(
            jitter=0.2,
            brightness=0.1,
            contrast=0.0,
            gamma=(1.2, 1.8),
            blur=0.2,
            blur_sigma=(0.5, 1.5),
            noise=0.2,
            noise_std=0.05,
        )
    )


class nnUNetTrainerERSR(SemiSupervisedTrainer):
    """ERSR: the network learns the regular ones of its teacher's outputs, completed by an ellipse, and to see both
    halves of an elliptical object alike.

    In 2D and for a single class, such as the head of a fetus in ultrasound. After a supervised start
    ``L = L_sup + w(t) (L_seg + L_aug + L_mirror)``, on those unlabeled images whose output of the teacher is regular
    (:func:`irregularity`, :func:`most_regular`). L_seg is the squared error of the student's probability to the refined
    label of the teacher (:func:`refine`). Then each half of the object, on one side of the long axis of the ellipse, is
    perturbed and completed with its perturbed mirror image (:func:`complete`). L_aug is the squared error to the
    student's probability of the image itself, completed in the same way, and L_mirror that between both halves.
    Restated from the authors' code. Departures:

    - The supervised start is a part of the training, not a checkpoint; the teacher averages from its first step on.
    - The authors' table of scores is meant to rank all images, but holds the last output for each position in an epoch,
      and begins anew with every epoch. Here an output is ranked among the latest ones of the process.
    - The distances of the score are exact, and voxels at the edge of a patch do not count. The authors pad them with
      zeros, whose jump outweighs the rest of the score. An output without foreground comes last instead of first.
    - Images that are filtered out pass the network with weight zero, so that a batch always has the same size.
    - Where no ellipse fits, L_seg has the teacher's own label; the authors have an empty one. There, and where the
      center of the ellipse lies outside of the patch, neither L_aug nor L_mirror counts; the authors take the middle of
      the image for an axis. An object that the patch cuts off has no outline at the cut.
    - The target of L_aug has no gradient. In the authors' code it has one.
    - The images are also scaled, as by nnU-Net, before they are perturbed; the authors' are rotated and mirrored only.
    - Where the completed object leaves a gap, the image shows the mirrored surroundings instead of zeros. Halves are
      not stretched to 0 ... 1 after each perturbation; brightness and gamma change together.
    - The teacher is deployed; the authors deploy the student. Stronger.

    The scores and ellipses of the teacher's outputs are computed on the CPU, image by image, for which a step waits:
    about 0.2 s for 512 x 768 voxels. Passes of a step, forward F and backward: supervised 1 F + 1 backward, unlabeled
    1 F + 1 backward, completed images 2 F + 2 backward, teacher 1 F.
    """

    config: ClassVar[ERSRConfig] = ERSRConfig()
    has_weak_views = True

    def initialize(self) -> None:
        """Refuse what ERSR has no meaning for, before any time is spent.

        Raises:
            NotImplementedError: in 3D, or for more than one foreground class or region.
        """
        if len(self.configuration_manager.patch_size) != 2:
            raise NotImplementedError("ERSR fits ellipses to images of two axes; train the configuration 2d.")
        if self.label_manager.num_segmentation_heads != (1 if self.label_manager.has_regions else 2):
            raise NotImplementedError(
                "ERSR is for a single foreground class or region; train on one of them, or with another trainer."
            )
        super().initialize()

    def build_method(self) -> None:
        """Start without scores."""
        self.scores: deque[float] = deque(maxlen=int(self.config.window))

    @property
    def _start(self) -> int:
        """First step with losses on unlabeled images."""
        return int(self.config.supervised * self.num_epochs) * self.num_iterations_per_epoch

    @property
    def needs_unlabeled(self) -> bool:
        """Whether the current step is after the supervised start."""
        return self.iteration >= self._start

    def _ramp(self, peak: float) -> float:
        steps = round(self.config.ramp_length * (self.num_epochs * self.num_iterations_per_epoch - self._start))
        return gaussian_ramp_up(self.iteration - self._start, steps, peak)

    @property
    def unsupervised_weight(self) -> float:
        """w(t), 0 during the supervised start."""
        return self._ramp(self.config.ramp_peak) if self.iteration >= self._start else 0.0

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images; then the refined labels, and each of both completed images."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None or self.iteration < self._start:
            return
        images = self.consistency_images(labeled, unlabeled)
        with torch.no_grad():
            teacher = self._foreground(self.logits(self.teachers["a"], images)).cpu()
        kept, refined = to_device(self._filter(teacher), images.device), self._refine(teacher, images.device)
        symmetric = kept & refined.is_symmetric
        probability = self._foreground(self.logits(self.students["a"], images))
        self.metrics["agreement"] = 1 - differing(probability > 0.5, refined.labels).float().mean()
        self.metrics["foreground_teacher"] = foreground_share(refined.labels)
        self.metrics["kept"], self.metrics["symmetric"] = kept.float().mean(), symmetric.float().mean()
        yield Losses(unsupervised={"refined": masked_mean((probability - refined.labels.float()) ** 2, kept)})
        probability = probability.detach()
        reflect = refined.reflection
        for name, side in (("left", reflect.side), ("right", ~reflect.side)):
            seen = self._foreground(self.logits(self.students["a"], self._view(images, refined, side, self.generator)))
            target = torch.where(side, probability, reflect(probability))
            error = masked_mean((seen - target) ** 2, symmetric)
            asymmetry = masked_mean(reflect.side * (seen - reflect(seen)) ** 2, symmetric)
            # Half of each, as the authors take the mean over both images.
            yield Losses(unsupervised={f"augmented_{name}": error / 2, f"mirror_{name}": asymmetry / 2})

    def _foreground(self, logits: Tensor) -> Tensor:
        """Return the probability of the foreground, ``(B, 1, *spatial)``."""
        return probabilities(logits, self.label_manager.has_regions)[:, -1:]

    def _filter(self, teacher: Tensor) -> Tensor:
        """Return which outputs of the teacher are kept, ``(B, 1, 1, 1)``, bool, on the CPU; remember their scores."""
        scores = irregularity(teacher).tolist()
        self.scores.extend(scores)
        share = self.config.kept + self._ramp(1 - self.config.kept)
        at_least = max(1, int(self.config.kept_of_batch * len(scores)))
        return torch.tensor(most_regular(scores, self.scores, share, at_least)).view(-1, 1, 1, 1)

    def _refine(self, teacher: Tensor, device: torch.device) -> "Refined":
        pairs = [refine(one[0].numpy(), self.config.threshold) for one in teacher]
        labels, ellipses = zip(*pairs, strict=True)
        return Refined.of(labels, ellipses, device)

    def _view(self, images: Tensor, refined: "Refined", side: Tensor, generator: torch.Generator) -> Tensor:
        """Return images whose object is completed from the half on one side, and perturbed in both halves."""
        view, half, mirrored = complete(images, refined.labels, refined.reflection, side)
        for region in (half, mirrored):
            view = torch.where(region, self.change_intensities(view, lambda x: self._perturb(x, generator)), view)
        return view

    def _perturb(self, images: Tensor, generator: torch.Generator) -> Tensor:
        # The strengths are for intensities from 0 to 1.
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        extent = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        changed = strong_view((images - low) / extent, self.config.view, generator) * extent + low
        return keep_outside(images, changed, self.masked_channels)

    def method_state(self) -> dict[str, Any]:
        """Return the latest scores."""
        return {"scores": list(self.scores)}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.scores = deque(state["scores"], maxlen=self.scores.maxlen)

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, the teacher's label before and after the refinement, the image completed from a half, the student."""
        generator = torch.Generator().manual_seed(self.current_epoch)
        student, teacher = (
            self._foreground(forward_to_logits(network, unlabeled))
            for network in (self.students["a"], self.teachers["a"])
        )
        refined = self._refine(teacher.cpu(), unlabeled.device)
        return {
            "image": self.image_panel(unlabeled),
            "teacher": label_map(teacher > self.config.threshold),
            "refined": label_map(refined.labels),
            "completed image": self.image_panel(self._view(unlabeled, refined, refined.reflection.side, generator)),
            "student": label_map(student > 0.5),
        }


class Refined(NamedTuple):
    """The refined labels of a batch, and the reflections across the long axes of their ellipses.

    Attributes:
        labels: ``(B, 1, *spatial)``, bool.
        reflection: Reflection of each image; without meaning where there is no ellipse.
        is_symmetric: ``(B, 1, 1, 1)``, bool: there is an ellipse, and its center lies in the image.
    """

    labels: Tensor
    reflection: Reflection
    is_symmetric: Tensor

    @classmethod
    def of(
        cls, labels: Sequence[np.ndarray], ellipses: Sequence[Ellipse | None], device: torch.device | str
    ) -> "Refined":
        """Move a batch to a device; see :func:`refine`."""
        shape = np.array(labels[0].shape)
        axes = np.array([((0, 0), (0, 1)) if one is None else (one.center, one.axes[0]) for one in ellipses])
        is_inside = [
            one is not None and bool(((one.center >= 0) & (one.center <= shape - 1)).all()) for one in ellipses
        ]
        center, normal = to_device(torch.from_numpy(axes).float(), device).unbind(1)
        return cls(
            to_device(torch.from_numpy(np.stack(labels))[:, None], device),
            Reflection(center, normal, labels[0].shape),
            to_device(torch.tensor(is_inside).view(-1, 1, 1, 1), device),
        )


def refine(probability: np.ndarray, threshold: float) -> tuple[np.ndarray, Ellipse | None]:
    """Complete the teacher's label by an ellipse, and leave out what is far from it.

    The ellipse is fitted to the outline of the largest component of ``p > threshold``. With d its squared distance, the
    authors raise p to at least ``threshold + (1 - d)^2`` inside, and multiply it by ``exp(-0.5 (d - 1))`` outside;
    what is then above the threshold is foreground. So that is all of the inside.

    Args:
        probability: Probability of the foreground ``(rows, columns)``.
        threshold: Probability above which a voxel is foreground.

    Returns:
        The refined label, bool, and the ellipse. Where none fits: the teacher's label, and None.
    """
    label = probability > threshold
    ellipse = fit_ellipse(outline(label))
    if ellipse is None:
        return label, None
    distance = ellipse.squared_distance(label.shape)
    return (distance < 1) | (probability * np.exp(-0.5 * (distance - 1)) > threshold), ellipse


def complete(images: Tensor, labels: Tensor, reflect: Reflection, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace the half of an object beyond the axis by the mirror image of the half on this side.

    Args:
        images: ``(B, channels, *spatial)``.
        labels: Where the object is, ``(B, 1, *spatial)``, bool.
        reflect: Reflection across the axis.
        side: This side of the axis, ``(B, 1, *spatial)``, bool.

    Returns:
        The images, the half of the object and its mirror image; these are ``(B, 1, *spatial)``, bool.
    """
    half = labels & side
    mirrored = (reflect(half) > 0.5) & ~side
    replaced = mirrored | (labels & ~side)
    return torch.where(replaced, reflect(images), images), half, mirrored
