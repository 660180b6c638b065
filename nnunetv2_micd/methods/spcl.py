"""SPCL: self-paced contrastive learning with meta-labels (Peng et al., NeurIPS 2021, https://arxiv.org/abs/2107.13741).

The authors' code: https://github.com/jizongFox/Self-paced-Contrastive-Learning, commit ce7e9803.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.losses.contrastive import NO_LABEL, Pace, model_age, self_paced_contrast
from nnunetv2_micd.losses.labels import label_map
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_to_logits
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.students import compiled
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.devices import to_device
from nnunetv2_micd.utils.distributed import sum_over_processes
from nnunetv2_micd.utils.ranges import Between, Range, Share, Weight

META_LABELS = ("position", "case")
WIDTH = 256
"""Hidden and output channels of a projector."""

STATISTICS_RATE = 0.05
"""Weight of a step in the statistics of the features."""


@dataclass(frozen=True)
class SPCLConfig(SemiSupervisedConfig):
    """Numbers of SPCL (jizongFox/Self-paced-Contrastive-Learning, commit ce7e9803).

    There is no ramp-up and no teacher: with an ``ema_decay`` of 0 it equals the student, which therefore predicts.
    ``ramp_peak`` is the ``Weight`` of ``config/specific/selfpaced_infonce.yaml``; the authors also try 0.01 to 1. It
    stands beside their cross entropy, which nnU-Net has with the same weight, and its Dice on top of it. The authors
    pre-train with 1 and a smaller learning rate than nnU-Net's, which is the same for its SGD as a smaller weight.

    Attributes:
        pretraining: Share of the training, rounded down to whole epochs, in which the encoder learns from unlabeled
            images only.
        partitions: Number of equal parts of an image along its first axis, whose numbers are the position labels. The
            authors have 3 for ACDC, 4 for MMWHS and 8 for PROMISE12.
        case_weight: Weight of the case labels, the position labels having 1, before both are divided by their sum
            (``semi_seg/scripts/run_self_paced_acdc``, the first of five combinations, as are the four numbers of
            gamma).
        position_gamma, case_gamma: gamma at the first and at the last step, see :func:`losses.contrastive.model_age`.
        pace: How the weight of a pair follows from its loss, see :func:`losses.contrastive.pace_weights`.
        temperature: T of the similarities.
        queue: Number of embeddings of earlier steps that are compared with. Chosen here: as many as the 30 slices in
            two views of the authors' batch, as gamma is made for the losses that these give.
        view: Strength of the views. Chosen here, see :class:`augmentation.StrongView`.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 0.1
    ramp_length: float = 0.0
    pretraining: Share = 0.0
    partitions: Annotated[int, Between(2)] = 3
    case_weight: Weight = 0.1
    position_gamma: Annotated[Range, Between(0, exclude="low")] = (5.0, 60.0)
    case_gamma: Annotated[Range, Between(0, exclude="low")] = (3.5, 50.0)
    pace: Pace = "soft"
    temperature: Annotated[float, Between(0, exclude="low")] = 0.07
    queue: Annotated[int, Between(0)] = 60
    view: StrongView = field(default_factory=StrongView)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretraining and self.consistency_every != 1:
            raise ValueError(
                f"consistency_every is {self.consistency_every}, but must be 1 with a pre-training, whose steps have "
                "no other losses."
            )


class Projectors(nn.Module):
    """A projector for each meta-label: a perceptron with one hidden layer, and a projection onto the unit sphere.

    Instance normalization leaves hardly any difference between the spatial means of two images: at the start the cosine
    of any two embeddings is above 0.99. So each channel is standardized first, by the mean and variance of the last
    steps. Those of the batch would not do, as a patch would only be compared with the one or two beside it.

    Args:
        channels: Channels C of the bottleneck.
    """

    mean: Tensor
    variance: Tensor
    steps: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("steps", torch.zeros(()))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, WIDTH), nn.LeakyReLU(0.01), nn.Linear(WIDTH, WIDTH)) for _ in META_LABELS
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings ``(2, N, 256)``, one for each meta-label, of features ``(N, C)``, float32."""
        self._observe(features.detach())
        standardized = (features - self.mean) / (self.variance + 1e-5).sqrt()
        return torch.stack([F.normalize(head(standardized).float(), dim=1) for head in self.heads])

    @torch.no_grad()
    def _observe(self, features: Tensor) -> None:
        features = features.where(features.isfinite(), self.mean)  # as after an overflow in half precision
        self.steps += 1
        rate = (1 / self.steps).clamp_min(STATISTICS_RATE)
        self.mean.lerp_(_mean_over_all(features), rate)
        self.variance.lerp_(_mean_over_all((features - self.mean).square()), rate)


def _mean_over_all(values: Tensor) -> Tensor:
    """Return the mean over the samples ``(N, C)`` of all processes."""
    count = sum_over_processes(torch.full((), float(len(values)), device=values.device))
    return sum_over_processes(values.sum(0)) / count


def forward_with_pooled_bottleneck(network: nn.Module, images: Tensor) -> Tensor:
    """Run the encoder of a U-Net of the plans and return the spatial mean of its last stage, ``(B, C)``, float32."""
    encoder: Any = network.encoder
    return encoder(images)[-1].flatten(2).mean(2, dtype=torch.float32)


def meta_labels(keys: Sequence[str], positions: Tensor, partitions: int) -> Tensor:
    """Return the meta-labels of patches.

    The position is the part of the image along its first axis in which the centre of the patch lies. That is the slice
    in 2D. It is the only axis in 3D too: ``partitions`` parts along each of three would leave hardly two patches in the
    same place.

    Args:
        keys: Identifier of the image of each patch.
        positions: Centres of the patches as shares of their image ``(B, axes)``, see ``loader.Origin``.
        partitions: Number of parts.

    Returns:
        Labels ``(2, B)`` of :data:`META_LABELS`, int64, none of them negative.

    Examples:
        >>> meta_labels(["a", "b"], torch.tensor([[0.2], [1.0]]), partitions=3)[0]
        tensor([0, 2])
    """
    place = (positions[:, 0] * partitions).long().clamp_max(partitions - 1)
    # A checksum is the same in a continued training whose images have changed, unlike an index.
    return torch.stack((place, torch.tensor([zlib.crc32(key.encode()) for key in keys])))


class nnUNetTrainerSPCL(SemiSupervisedTrainer):
    """SPCL: the bottleneck features of unlabeled patches are alike where the patches come from the same part of their
    images, or from the same image, and pairs count more the easier they are.

    ``L = L_s + lambda (L_position + 0.1 L_case) / 1.1``, each L_k :func:`self_paced_contrast` of the pooled and
    projected bottleneck of two views of each unlabeled patch, and of a queue of embeddings of earlier steps. In the
    pre-training (``nnUNetTrainerSPCL_pretrained``) there is no L_s, and the decoder stays as it was built. Departures:

    - The authors' batch has each part of 10 images. nnU-Net's has two patches or few more at random places, so they are
      compared with the queue as well, whose embeddings are some steps old and have no gradient. Weaker. With several
      processes each has a queue of its own; a continued training begins with that of the first.
    - The features are standardized, which the authors' batch normalization makes needless, see :class:`Projectors`.
    - In 3D a patch is not a slice. Patches that cover most of their image all have their centre in its middle part.
      Then the positions do not differ, their loss is 0 (``position_usable`` in the log), and only the cases are
      contrasted. Weaker.
    - The meta-label of the authors' third projector, the phase of the heart, is not known here. Two images of one
      patient are two cases, where the authors have one patient.
    - Both views have nnU-Net's rotation and crop, and other intensities; the second is mirrored along those in-plane
      axes along which nnU-Net mirrors. The authors also rotate and crop each view of the pre-training by itself, which
      is stronger, and change no intensities after it, which is weaker.
    - The labeled images are not contrasted; the authors' pre-training sees all images. Weaker, by little.
    - gamma grows with each step of the whole training, not with each epoch of a stage.
    - The optimizer is nnU-Net's, not RAdam with a learning rate for each stage.
    - The authors' combination with Mean Teacher, one of those they try, is left out. Weaker.

    Passes of a step: supervised 1 F + 1 backward, the encoder, half of a network, over both views 1 F + 1 backward.
    """

    config: ClassVar[SPCLConfig] = SPCLConfig()

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Build the projectors; the global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            return {"projectors": Projectors(self.network.encoder.output_channels[-1])}

    def build_method(self) -> None:
        """Build the empty queue."""
        self.queue = torch.zeros(len(META_LABELS), self.config.queue, WIDTH, device=self.device)
        self.queue_labels = torch.full((len(META_LABELS), self.config.queue), NO_LABEL, device=self.device)

    def initialize(self) -> None:
        """Compile the pass of the encoder too, where nnU-Net compiles."""
        super().initialize()
        self.forward_with_pooled_bottleneck = compiled(forward_with_pooled_bottleneck, self._do_i_compile())

    def method_state(self) -> dict[str, Any]:
        """Return the queue."""
        return {"queue": self.queue, "queue_labels": self.queue_labels}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore the queue."""
        self.queue, self.queue_labels = (state[name].to(self.device) for name in ("queue", "queue_labels"))

    @property
    def is_pretraining(self) -> bool:
        """Whether the current step belongs to the pre-training."""
        steps = int(self.config.pretraining * self.num_epochs) * self.num_iterations_per_epoch
        return self.config.ramp_peak > 0 and self.iteration < steps

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images, except in the pre-training; contrast of the unlabeled ones."""
        if not self.is_pretraining:
            yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None:
            return
        views = torch.cat(self._views(unlabeled, self.generator))
        embeddings = self.students["projectors"](self.forward_with_pooled_bottleneck(self.students["a"], views))
        labels = meta_labels(*self.unlabeled_origin, self.config.partitions)
        labels = to_device(labels, self.device).repeat(1, 2)
        losses = {}
        for index, name in enumerate(META_LABELS):
            contrast = self_paced_contrast(
                embeddings[index],
                labels[index],
                self.queue[index],
                self.queue_labels[index],
                self._gamma(name),
                self.config.pace,
                self.config.temperature,
            )
            weight = self.config.case_weight if name == "case" else 1
            losses[f"{name}_contrast"] = contrast.loss * weight / (1 + self.config.case_weight)
            self.metrics[f"{name}_weight"], self.metrics[f"{name}_usable"] = contrast.weight, contrast.usable
        self._enqueue(embeddings.detach(), labels)
        del embeddings, contrast
        yield Losses(unsupervised=losses)

    def _gamma(self, meta_label: str) -> float:
        bounds = self.config.position_gamma if meta_label == "position" else self.config.case_gamma
        return model_age(self.iteration, self.num_epochs * self.num_iterations_per_epoch, *bounds)

    def _views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first, second = (self.strong_view(images, self.config.view, generator) for _ in range(2))
        spatial = images.ndim - 2
        # The last two axes; the loader may mirror along the first, but that would turn the order of the parts around.
        for axis in sorted({spatial - 2, spatial - 1}.intersection(self.inference_allowed_mirroring_axes or ())):
            mirrored = to_device(torch.rand(len(images), generator=generator) < 0.5, images.device)
            second = torch.where(mirrored.view(-1, *[1] * (spatial + 1)), second.flip(axis + 2), second)
        return first, second

    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> None:
        # One that is not finite would make the losses of all steps NaN that are compared with it.
        finite = embeddings.isfinite().all(2)
        embeddings = embeddings.where(finite[..., None], 0)
        self.queue = torch.cat((embeddings, self.queue), dim=1)[:, : self.config.queue]
        self.queue_labels = torch.cat((labels.where(finite, NO_LABEL), self.queue_labels), dim=1)[
            :, : self.config.queue
        ]

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, its two views, and the label of the student."""
        first, second = self._views(unlabeled, torch.Generator().manual_seed(self.current_epoch))
        student = forward_to_logits(self.students["a"], unlabeled)
        return {
            "image": self.image_panel(unlabeled),
            "first view": self.image_panel(first),
            "second view": self.image_panel(second),
            "student": label_map(self.pseudo_label(student)),
        }


class nnUNetTrainerSPCL_pretrained(nnUNetTrainerSPCL):
    """SPCL whose encoder learns from unlabeled images alone in the first half of the training.

    The authors pre-train for 80 of 140 epochs (ACDC, MMWHS) or 80 of 160 (PROMISE12), here 1 of 2. Departures:

    - Both stages share nnU-Net's fixed number of epochs and its learning rate, which has fallen by 46 % when the
      supervised loss begins. Weaker than a training of full length after the pre-training.
    - The contrastive loss goes on beside the supervised one. The authors have both forms, a second stage with it and
      one without.

    Until the second stage begins the validation says nothing, as the decoder is as it was built. Passes of a step:
    first the encoder over both views 1 F + 1 backward, then as in SPCL.
    """

    config: ClassVar[SPCLConfig] = replace(nnUNetTrainerSPCL.config, pretraining=0.5)
