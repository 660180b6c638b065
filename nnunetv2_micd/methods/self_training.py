"""Self-training at about the price of nnU-Net: half of each batch are unlabeled images with a teacher's labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.augmentation.masks import mix, sample_box
from nnunetv2_micd.losses.labels import foreground_share, label_map
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits, full_resolution
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.ranges import Between, Share


@dataclass(frozen=True)
class SelfTrainingConfig(SemiSupervisedConfig):
    """Numbers of self-training. ``unlabeled_ratio`` and the ramp-up have no meaning here; ``ramp_peak`` is a switch.
    In steps that ``consistency_every`` leaves out, labeled images take the place of unlabeled ones.

    Attributes:
        supervised: Share of the training before the first pseudo-label, rounded down to whole epochs, in which labeled
            images are mixed with each other.
        labels_only: Share of the training at its end, likewise, in which the labeled images are as nnU-Net has them.
        box: Edge of the exchanged box along each axis, as a share of the edge of the patch; BCP's.
        view: Strength of the view in which the student sees an unlabeled image.
    """

    ramp_length: float = 0.0
    supervised: Share = 0.25
    labels_only: Share = 0.1
    box: Annotated[float, Between(0, 1, exclude="both")] = 2 / 3
    view: StrongView = field(default_factory=StrongView)


class nnUNetTrainerSelfTraining(SemiSupervisedTrainer):
    """Self-training: the teacher labels half of each batch, whose images are mixed with labeled ones.

    It puts together what is known to help. The moving average of the weights is the teacher (Mean Teacher) and labels
    the weak view of an image, which is deformed and mirrored only; the student sees a strong view of it (FixMatch), of
    which a box is exchanged for one of a labeled image, in both directions (BCP). The loss is nnU-Net's own, of labeled
    and unlabeled voxels alike (nnFilterMatch). A batch of B images has B / 2 unlabeled ones. Before, the first labeled
    images of the batch take the place of the unlabeled ones, with their own labels; at the end there are labeled images
    only.

    A label of an image without foreground is taken as it is, and a class may have several parts. Voxels with the ignore
    label have no loss.

    Passes of a step, forward F and backward on B images: 1 F + 1 backward, teacher half a F. Of a batch of one image,
    as several GPUs may have, two mixed ones are made, which takes twice as much.
    """

    config: ClassVar[SelfTrainingConfig] = SelfTrainingConfig()
    has_weak_views = True
    has_unsupervised_losses = False

    def build_method(self) -> None:
        """Remember the last mixed images, and for the picture the last ones with unlabeled images in them."""
        self.last_mixed: tuple[Tensor, Tensor] | None = None
        self.pictured: tuple[Tensor, Tensor] | None = None

    @property
    def unlabeled_batch_size(self) -> int:
        """Number of unlabeled patches in a step."""
        return max(1, self.batch_size // 2)

    @property
    def needs_unlabeled(self) -> bool:
        """Whether the current step learns from unlabeled patches."""
        return self.stage == "self-training"

    @property
    def stage(self) -> str:
        """The stage of the current step: ``"supervised"``, ``"self-training"`` or ``"labels only"``."""
        epoch = self.iteration // self.num_iterations_per_epoch
        if epoch < int(self.config.supervised * self.num_epochs):
            return "supervised"
        is_end = epoch >= self.num_epochs - int(self.config.labels_only * self.num_epochs)
        return "labels only" if is_end else "self-training"

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on mixed images."""
        if self.stage == "labels only":
            yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
            return
        images, target = labeled["data"], full_resolution(labeled["target"])
        pairs = self.unlabeled_batch_size
        if unlabeled is None or self.stage == "supervised":
            others, labels = images[:pairs], target[:pairs]
        else:
            with torch.no_grad():
                pseudo = self.pseudo_label(self.logits(self.teachers["a"], unlabeled))
            others, labels = unlabeled, self.as_target(pseudo).to(target.dtype)
            self.metrics["foreground_teacher"] = foreground_share(pseudo)
        others = self.strong_view(others, self.config.view, self.generator)
        # Mixed are the last labeled images, as nnU-Net makes sure of foreground in them. Of an odd batch one stays.
        kept = slice(pairs, len(images) - pairs)
        box = sample_box(images.shape[2:], self.config.box, self.generator, images.device)
        mixed = torch.cat((images[kept], mix(images[-pairs:], others, box)))
        mixed_target = torch.cat((target[kept], mix(target[-pairs:], labels, box)))
        self.last_mixed = mixed, mixed_target
        if unlabeled is not None and self.stage == "self-training":
            self.pictured = self.last_mixed
        yield Losses({"supervised": self.loss(self.network(mixed), self.at_all_resolutions(mixed_target))})

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image and the teacher's label; as soon as it is mixed with labeled images, the mixed images of that step."""
        teacher = self.pseudo_label(forward_to_logits(self.teachers["a"], unlabeled))
        panels = {"unlabeled image": self.image_panel(unlabeled), "teacher": label_map(teacher)}
        if self.pictured is None:  # also in a continued training whose mixing has ended
            return panels
        mixed, target = self.pictured
        labels = label_map(self.hard_target(target)[0])
        pairs = self.unlabeled_batch_size
        inward, outward = slice(-2 * pairs, len(mixed) - pairs), slice(-pairs, None)
        return {
            **panels,
            "mixed in": self.image_panel(mixed[inward]),
            "its label": labels[inward],
            "mixed out": self.image_panel(mixed[outward]),
            "label of it": labels[outward],
        }
