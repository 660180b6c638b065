"""UniMatch (Yang et al., CVPR 2023, https://arxiv.org/abs/2208.09910), its variant for medical images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.augmentation.masks import box_mask, sample_starts
from nnunetv2_micd.losses.dice import confident_dice_loss
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits, forward_with_scaled_features
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.students import compiled
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.devices import to_device
from nnunetv2_micd.utils.ranges import Between, Range, Share, Weight


@dataclass(frozen=True)
class UniMatchConfig(SemiSupervisedConfig):
    """Numbers of UniMatch's medical variant (LiheYoung/UniMatch, commit 0324f3dd, ``more-scenarios/medical``).

    There is no teacher: with an ``ema_decay`` of 0 it equals the student, which therefore predicts. There is no ramp-up
    either. ``ramp_peak`` is 2 because nnU-Net's supervised loss, cross entropy plus Dice, is twice the
    paper's; so both losses have the paper's proportion.

    Attributes:
        threshold: tau, the smallest probability at which a voxel of the weak view teaches.
        strong_weight: mu, weight of both strong views together.
        feature_weight: lambda, weight of the view with dropped features.
        feature_dropout: Probability that a channel of an encoder stage is dropped.
        cutmix: Probability that a strong view has a box from another image.
        cutmix_share: Range of the box's share of the image.
        cutmix_ratio: Range of the ratio of the box's further edges to its first, relative to the edges of the image.
        view: Strength of the strong views.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 2.0
    ramp_length: float = 0.0
    threshold: Annotated[float, Between(0, 1, exclude="high")] = 0.95
    strong_weight: Weight = 0.5
    feature_weight: Weight = 0.5
    feature_dropout: Annotated[float, Between(0, 1, exclude="high")] = 0.5
    cutmix: Share = 0.5
    cutmix_share: Annotated[Range, Between(0, 1)] = (0.02, 0.4)
    cutmix_ratio: Annotated[Range, Between(0, exclude="low")] = (0.3, 1 / 0.3)
    view: StrongView = field(default_factory=StrongView)


def confident_labels(logits: Tensor, regions: bool, threshold: float) -> tuple[Tensor, Tensor]:
    """Return hard labels, and where they are certain enough to teach.

    The paper knows exclusive classes only, whose confidence is the largest probability. Each of several regions has a
    confidence of its own: the probability of what is decided, that a voxel belongs to it or that it does not.

    Args:
        logits: ``(B, K, *spatial)``.
        regions: Whether the classes are regions, which may overlap.
        threshold: Smallest confidence that teaches.

    Returns:
        Hard labels as ``losses.pseudo_label`` gives them, and ``(B, 1, *spatial)``, of regions ``(B, K,
        *spatial)``, bool.
    """
    if regions:
        probabilities = logits.float().sigmoid()
        return logits > 0, torch.maximum(probabilities, 1 - probabilities) >= threshold
    confidence, labels = logits.softmax(dim=1, dtype=torch.float32).max(dim=1, keepdim=True)
    return labels[:, 0], confidence >= threshold


def sample_kept_channels(
    batch_size: int, channels: Sequence[int], dropout: float, generator: torch.Generator, device: torch.device | str
) -> list[Tensor]:
    """Draw the channels of each stage that are kept, as factors: 0 or, as in ``torch.nn.Dropout2d``, 1 / (1 - p).

    Args:
        batch_size: number of samples B.
        channels: number of channels of each stage.
        dropout: probability p that a channel is dropped.
        generator: CPU generator.
        device: Device of the factors.

    Returns:
        ``(B, channels)`` for each stage, float32.
    """
    kept = torch.rand(batch_size, sum(channels), generator=generator) >= dropout
    return list(to_device(kept / (1 - dropout), device).split(list(channels), dim=1))


def sample_cutmix(
    batch_size: int, spatial: Sequence[int], config: UniMatchConfig, generator: torch.Generator, device: Any = "cpu"
) -> Tensor:
    """Draw the boxes that are pasted from other images; empty ones for those that stay as they are.

    The original draws again until a box fits into the image; here an edge that is too long is cut to the image. In 3D,
    which the original does not have, the two further edges have independent ratios to the first.

    Args:
        batch_size: number of samples B.
        spatial: size of the two or three spatial axes in voxels.
        config: ``cutmix``, ``cutmix_share`` and ``cutmix_ratio``.
        generator: CPU generator.
        device: Device of the mask.

    Returns:
        Boolean ``(B, 1, *spatial)``, True inside a box.
    """

    def uniform(bounds: Range, columns: int) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(batch_size, columns, generator=generator)

    mixed = uniform((0, 1), 1) < config.cutmix
    share, ratios = uniform(config.cutmix_share, 1), uniform(config.cutmix_ratio, len(spatial) - 1)
    relative = torch.cat((torch.ones(batch_size, 1), ratios), dim=1)
    edges = relative * (share / relative.prod(1, keepdim=True)) ** (1 / len(spatial))
    voxels = (edges.clamp_max(1) * torch.as_tensor(spatial)).long() * mixed
    return box_mask(sample_starts(voxels, spatial, generator), voxels, spatial, device)


class nnUNetTrainerUniMatch(SemiSupervisedTrainer):
    """UniMatch: where the network is certain of an image, it has to see the same in two strong views of it, and with
    half of its features dropped.

    On the unlabeled images ``L_u = c(p^w) (lambda D(p^fp, y^w) + mu / 2 (D(p^s1, y^w) + D(p^s2, y^w)))``, with the
    labels ``y^w`` of the weak view where their confidence c reaches the threshold, and D of
    :func:`confident_dice_loss`. Where this departs from the authors' medical code:

    - The weak view is also scaled, as by nnU-Net; the authors' is rotated and mirrored only.
    - Brightness and noise of the strong views are in units of normalized intensities, made for z-scores. Images scaled
      to 0 ... 1 (nnU-Net's ``RescaleTo01`` and ``RGBTo01``) are changed by half of their whole range.
    - CutMix pastes from the next image of the batch instead of a second unlabeled batch, whose loading and forward pass
      it saves; a batch of one image is not mixed.
    - The loss is computed at full resolution, where deep supervision is used too.

    Passes of a step, forward F and backward: supervised 1 F + 1 backward, dropped features 1.5 F (one encoder, two
    decoders) + 1 backward, strong views 2 F + 2 backward.
    """

    config: ClassVar[UniMatchConfig] = UniMatchConfig()
    has_weak_views = True

    def initialize(self) -> None:
        """Compile the pass with dropped features too, where nnU-Net compiles."""
        super().initialize()
        self.forward_with_scaled_features = compiled(forward_with_scaled_features, self._do_i_compile())

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images; then each perturbed view, by itself, against the weak one."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None:
            return
        student, images = self.students["a"], self.consistency_images(labeled, unlabeled)
        weak, dropped = self.forward_with_scaled_features(student, images, self._sample_kept_channels(images))
        labels, confident = confident_labels(weak, self.label_manager.has_regions, self.config.threshold)
        self.metrics["confident"] = confident.float().mean()
        self.metrics["foreground"] = foreground_share(labels)
        loss = self.config.feature_weight * confident_dice_loss(dropped, labels, confident)
        yield Losses(unsupervised={"feature_dropout": loss})
        del weak, dropped
        for name in ("strong_1", "strong_2"):
            box = self._sample_cutmix(images, self.generator)
            strong = self.logits(student, paste(self._strong_view(images, self.generator), box))
            mixed = paste(labels, box)
            loss = confident_dice_loss(strong, mixed, paste(confident, box))
            self.metrics["agreement"] = 1 - differing(self.pseudo_label(strong), mixed).float().mean()
            yield Losses(unsupervised={name: self.config.strong_weight / 2 * loss})

    def _sample_kept_channels(self, images: Tensor) -> list[Tensor]:
        encoder: Any = self.students["a"].encoder
        channels = encoder.output_channels
        return sample_kept_channels(
            len(images), channels, self.config.feature_dropout, self.generator, device=images.device
        )

    def _sample_cutmix(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return sample_cutmix(len(images), images.shape[2:], self.config, generator, images.device)

    def _strong_view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.strong_view(images, self.config.view, generator)

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, its strong view with the box of another, the labels there, where they are confident, the student."""
        generator = torch.Generator().manual_seed(self.current_epoch)
        student = self.students["a"]
        labels, confident = confident_labels(
            forward_to_logits(student, unlabeled), self.label_manager.has_regions, self.config.threshold
        )
        box = self._sample_cutmix(unlabeled, generator)
        strong = paste(self._strong_view(unlabeled, generator), box)
        return {
            "image": self.image_panel(unlabeled),
            "strong view": self.image_panel(strong),
            "its pseudo-label": label_map(paste(labels, box)),
            "confident": paste(confident, box).all(1),
            "student": label_map(self.pseudo_label(forward_to_logits(student, strong))),
        }


def paste(batch: Tensor, box: Tensor) -> Tensor:
    """Paste into each sample the box ``(B, 1, *spatial)`` of the next sample; the last takes it from the first.

    Args:
        batch: Images, masks ``(B, channels, *spatial)`` or hard labels ``(B, *spatial)``.
        box: Mask, bool, True where the next sample is taken.
    """
    return torch.where(box if batch.ndim == box.ndim else box[:, 0], batch.roll(-1, 0), batch)
