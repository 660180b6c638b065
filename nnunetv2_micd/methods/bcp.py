"""BCP: bidirectional copy-paste (Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import cc3d
import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor

from nnunetv2_micd.augmentation.masks import mix, sample_box
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits, full_resolution
from nnunetv2_micd.training.step import Losses, as_error
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.devices import to_device
from nnunetv2_micd.utils.ranges import Between, Share, Weight

Output = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class BCPConfig(SemiSupervisedConfig):
    """Numbers of BCP (DeepMed-Lab-ECNU/BCP, commit 7879f988); there is no ramp-up.

    Attributes:
        pretraining: Share of the training in which labeled images are mixed with each other only, rounded down to
            whole epochs. The authors have 10 000 of 40 000 steps for ACDC, 60 of 260 epochs for Pancreas-CT and 2 000
            of 17 000 steps for LA.
        box: Edge of the pasted box along each axis, as a share of the edge of the patch.
        unlabeled_weight: alpha, the weight of unlabeled voxels relative to labeled ones.
        labeled_share: Share of nnU-Net's labeled batch that is mixed with as many unlabeled images. With a half, the
            mixed images are as many as nnU-Net's batch holds.
        largest_component: Whether only the largest connected component of each class is kept in a pseudo-label. Right
            for organs; switch it off in a subclass where a class has several parts, such as lesions.
    """

    ramp_length: float = 0.0
    pretraining: Share = 0.25
    box: Annotated[float, Between(0, 1, exclude="both")] = 2 / 3
    unlabeled_weight: Weight = 0.5
    labeled_share: Annotated[float, Between(0, 1, exclude="low")] = 1.0
    largest_component: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unlabeled_ratio != 1:
            raise ValueError(f"unlabeled_ratio is {self.unlabeled_ratio}, but must be 1: images are mixed in pairs.")


def hide(labels: Tensor, hidden: Tensor, ignore_label: int) -> Tensor:
    """Turn hard labels into a target of nnU-Net in which some voxels are ignored.

    Args:
        labels: Hard labels, see ``losses.pseudo_label``.
        hidden: Voxels without loss, ``(B, *spatial)``, bool.
        ignore_label: Label of hidden voxels. Regions have one more channel for them instead.

    Returns:
        ``(B, 1, *spatial)``, of regions ``(B, K + 1, *spatial)``.
    """
    if labels.dtype == torch.bool:
        return torch.cat((labels, hidden[:, None]), dim=1)
    return labels.masked_fill(hidden, ignore_label)[:, None]


def largest_components(labels: Tensor) -> Tensor:
    """Keep the largest connected component of each class in each sample; the other components become background.

    Voxels that touch at a corner are connected, as in the authors' code. The function runs on the CPU.

    Args:
        labels: Hard labels, see ``losses.pseudo_label``; regions are treated one by one.

    Returns:
        The same shape and type.
    """
    regions = labels.dtype == torch.bool
    maps = (labels.flatten(0, 1) if regions else labels).to(torch.uint8 if regions else torch.int16).cpu().numpy()
    kept = to_device(torch.from_numpy(np.stack([_largest_of_each_class(one) for one in maps])), labels.device)
    return labels & kept.view_as(labels) if regions else labels * kept


def _largest_of_each_class(labels: np.ndarray) -> np.ndarray:
    components, number = cc3d.connected_components(labels, connectivity=26 if labels.ndim == 3 else 8, return_N=True)
    foreground = np.flatnonzero(labels)
    of_foreground = components.ravel()[foreground]
    sizes = np.bincount(of_foreground, minlength=number + 1)
    classes = np.zeros(number + 1, labels.dtype)
    classes[of_foreground] = labels.ravel()[foreground]
    largest = np.zeros(number + 1, bool)
    for one in np.unique(classes[1:]):
        largest[np.argmax(np.where(classes == one, sizes, -1))] = True
    kept = np.zeros(labels.size, bool)
    kept[foreground] = largest[of_foreground]  # half of the time of largest[components]
    return kept.reshape(labels.shape)


class nnUNetTrainerBCP(SemiSupervisedTrainer):
    """BCP: a box of an unlabeled image is pasted into a labeled one and the other way round, and so are their labels.

    With M zero in a box and one around it, l labeled, u unlabeled, y^u the teacher's pseudo-label:
    ``X_in = M l + (1 - M) u``, ``X_out = M u + (1 - M) l``, and with Y accordingly
    ``L = (L_seg(X_in; M) + a L_seg(X_in; 1 - M)) + (a L_seg(X_out; M) + L_seg(X_out; 1 - M))``, L_seg being Dice and
    cross entropy, halved, within a region. Here "supervised" is the part on labeled voxels, "copy_paste" that on
    unlabeled ones. First comes a pre-training on labeled images that are mixed with each other. Where this departs from
    the authors' code:

    - L_seg is nnU-Net's own loss with deep supervision, regions hidden by an ignore label. Its Dice has one added in
      "copy_paste", to be an error. Voxels of a labeled image that nobody annotated count as unlabeled after the
      pre-training.
    - Both mixed images of a pair are made of the same two images, so a batch of B and another of B make 2 B. The
      authors split batches in halves; nnU-Net's batches of two, or one per GPU, are too small for that.
    - The pre-training pastes in both directions as well, so a step always takes the same memory. Each direction has a
      box of its own, or in a batch of two, each mixed image would be there twice. A batch of one is not mixed.
    - The teacher averages from the first step on and is not set anew after the pre-training, whose best network on test
      data the authors take as a start; both networks and the optimizer continue with nnU-Net's learning rate.
    - The teacher is deployed; the authors deploy the student. Stronger.

    The largest components are found on the CPU, for which a GPU waits: on one core some 25 ms for each image of 128^3
    voxels. In steps that ``consistency_every`` leaves out, labeled images are mixed with each other, as in the
    pre-training. Without unlabeled images (``ramp_peak`` 0) the pre-training does not end. Passes of a step, forward F
    and backward on B images: 2 F + 2 backward, teacher 1 F, with an ignore label 2 F.
    """

    config: ClassVar[BCPConfig] = BCPConfig()
    label_manager: Any

    def initialize(self) -> None:
        """Build nnU-Net's loss as for a dataset with an ignore label, by which regions of mixed images are hidden."""
        super().initialize()
        manager = self.label_manager
        self.hidden_label = int(max(manager.all_labels)) + 1  # as nnU-Net demands of an ignore label
        self.last_mixed: tuple[Tensor, Tensor] | None = None
        self.pictured: tuple[Tensor, Tensor] | None = None  # the last ones with unlabeled images in them
        if manager.has_ignore_label:
            self.masked_loss = self.loss
            return
        labels = {**manager.label_dict, "ignore": self.hidden_label}
        self.label_manager = type(manager)(labels, manager.regions_class_order)
        try:
            self.masked_loss = self._build_loss()
        finally:
            self.label_manager = manager
        if manager.has_regions:
            # nnU-Net's cross entropy of regions is a mean over them, but a sum in its loss with an ignore label.
            loss: Any = self.masked_loss
            loss = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
            loss.weight_ce /= manager.num_segmentation_heads

    @property
    def unlabeled_batch_size(self) -> int:
        """Number of unlabeled patches in a step, as many as labeled ones are mixed with them."""
        return max(1, round(self.config.labeled_share * self.batch_size))

    @property
    def needs_unlabeled(self) -> bool:
        """Whether the current step is after the pre-training."""
        return not self.is_pretraining

    @property
    def is_pretraining(self) -> bool:
        """Whether the current step belongs to the pre-training."""
        return self.iteration < int(self.config.pretraining * self.num_epochs) * self.num_iterations_per_epoch

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """Mix, and compare labeled voxels with the truth, unlabeled ones with the teacher."""
        images = labeled["data"]
        truth, ignored = self.hard_target(full_resolution(labeled["target"]))
        ignored = torch.zeros_like(images[:, 0], dtype=torch.bool) if ignored is None else ignored
        # The last samples of a batch: nnU-Net makes sure of foreground in them.
        part = max(1, round(self.config.labeled_share * len(images)))
        if unlabeled is None or self.is_pretraining:
            boxes = self.sample_region(images), self.sample_region(images)
            mixed, labels, hidden = (
                mix(each, each.roll(1, 0), *boxes)[-2 * part :] for each in (images, truth, ignored)
            )
            self.last_mixed = mixed, labels
            yield Losses({"supervised": self._loss(self.network(mixed), labels, hidden)})
            return
        images, truth, ignored = images[-part:], truth[-part:], ignored[-part:]
        box = self.sample_region(images)
        with torch.no_grad():
            pseudo = self.pseudo_labels(self.run_teacher(unlabeled)).to(truth.dtype)
            if self.label_manager.has_ignore_label:
                teacher = self.pseudo_labels(self.logits(self.teachers["a"], images)).to(truth.dtype)
                truth = torch.where(ignored if truth.ndim == ignored.ndim else ignored[:, None], teacher, truth)
        mixed, labels = mix(images, unlabeled, box), mix(truth, pseudo, box)
        self.last_mixed = self.pictured = mixed, labels
        is_unlabeled = mix(ignored, torch.ones_like(ignored), box)
        output = self.run_student(mixed)
        wrong = differing(self.pseudo_label(full_resolution(output)), labels) & is_unlabeled
        self.metrics["agreement"] = 1 - wrong.sum() / is_unlabeled.sum()
        self.metrics["foreground_teacher"] = foreground_share(pseudo)
        yield Losses(
            {"supervised": self._loss(output, labels, is_unlabeled)},
            {
                "copy_paste": self.config.unlabeled_weight * as_error(self._loss(output, labels, ~is_unlabeled)),
                **self.further_losses(labels, is_unlabeled, pseudo),
            },
        )

    # ---------------------------------------------------------------------------------- what a method on top changes

    def sample_region(self, images: Tensor) -> Tensor:
        """Draw which voxels come from the other image: a mask ``(1 or B, 1, *spatial)``, bool."""
        return sample_box(images.shape[2:], self.config.box, self.generator, images.device)

    def run_teacher(self, unlabeled: Tensor) -> Tensor:
        """Return the teacher's logits of unlabeled images; a method may keep further outputs of this pass."""
        return self.logits(self.teachers["a"], unlabeled)

    def run_student(self, mixed: Tensor) -> Output:
        """Return the student's outputs of mixed images; a method may keep further outputs of this pass."""
        return self.network(mixed)

    def pseudo_labels(self, logits: Tensor) -> Tensor:
        """Return refined hard labels of the teacher's logits."""
        labels = self.pseudo_label(logits)
        return largest_components(labels) if self.config.largest_component else labels

    def further_losses(self, labels: Tensor, is_unlabeled: Tensor, pseudo: Tensor) -> dict[str, Tensor]:
        """Return unsupervised losses beside "copy_paste".

        Args:
            labels: Hard labels of the mixed images, ``2 B``, see :func:`mix`.
            is_unlabeled: ``(2 B, *spatial)``, bool: voxels of them that have a pseudo-label.
            pseudo: Pseudo-labels of the unlabeled images, ``B``.
        """
        return {}

    # ------------------------------------------------------------------------------------------------------- parts

    def _loss(self, output: Output, labels: Tensor, hidden: Tensor) -> Tensor:
        """Half of the sum over both directions, as in the paper, whose loss is half of Dice and cross entropy."""
        target = self.at_all_resolutions(hide(labels, hidden, self.hidden_label))
        inward, outward = zip(_halves(output), _halves(target), strict=True)
        return (self.masked_loss(*inward) + self.masked_loss(*outward)) / 2

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, the teacher's label with and without further components; after the pre-training the mixed images."""
        teacher = self.pseudo_label(forward_to_logits(self.teachers["a"], unlabeled))
        panels = {
            "unlabeled image": self.image_panel(unlabeled),
            "teacher": label_map(teacher),
            "largest components": label_map(largest_components(teacher)),
        }
        if self.pictured is None:
            return panels
        (inward, outward), (label_in, label_out) = map(_halves, self.pictured)
        return {
            **panels,
            "mixed in": self.image_panel(inward),
            "its label": label_map(label_in),
            "mixed out": self.image_panel(outward),
            "label of it": label_map(label_out),
        }


class nnUNetTrainerBCP_half(nnUNetTrainerBCP):
    """BCP at about the price of nnU-Net: half of each labeled batch is mixed with as many unlabeled images.

    A step takes B mixed images instead of BCP's 2 B; of an odd B one more or one less. The pre-training mixes as many
    labeled images in one direction.

    Passes of a step, forward F and backward on B images: 1 F + 1 backward, teacher half a F, with an ignore label 1 F.
    """

    config: ClassVar[BCPConfig] = replace(nnUNetTrainerBCP.config, labeled_share=0.5)


def _halves(batch: Output) -> Any:
    return batch.chunk(2) if isinstance(batch, Tensor) else tuple(zip(*(each.chunk(2) for each in batch), strict=True))
