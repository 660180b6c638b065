"""C3S3: complementary competition and contrastive selection (He, Lin, Chen, Xu, Zheng, ICME 2025, arXiv 2506.07368)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.losses.consistency import masked_mean
from nnunetv2_micd.losses.dice import soft_dice_error
from nnunetv2_micd.losses.fused import channel_cosine
from nnunetv2_micd.losses.intersection_union import intersection_union_contrast
from nnunetv2_micd.methods.mcf import competitive_consistency
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import full_resolution, output_layer
from nnunetv2_micd.training.schedules import gaussian_ramp_up
from nnunetv2_micd.training.step import Deferred, Losses
from nnunetv2_micd.utils.distributed import sum_over_processes
from nnunetv2_micd.utils.ranges import Between, Share, Weight


@dataclass(frozen=True)
class C3S3Config(SemiSupervisedConfig):
    """Numbers of C3S3 (Y-TARL/C3S3, ``train_LA.py`` of commit 983bdf55, ``ContrastiveLoss.py`` of commit 47ee3296).

    The supervised loss of the authors, a mean over two views of cross entropy plus Dice, has the scale of nnU-Net's, so
    ``ramp_peak`` is 1 and their weights stay as they are. Competition and contrast have a ramp of their own; the cosine
    has its full weight from the first step on. There is no teacher.

    Attributes:
        competition_weight: Largest weight lambda of the competition and the contrast, for both data sets in the code;
            the authors' README has 0.5 for the pancreas.
        competition_ramp: Length of the ramp of lambda as a share of the training. The authors ramp over 6000 steps, as
            MCF, but train for 2500, so theirs ends at 0.018.
        alpha: Weight of the cross entropy, against the Dice, in the score of the competition: 0.8 for the left atrium
            and, the value here, 0.5 for the pancreas.
        temperature: T, by which the logits of pseudo-labels are divided to sharpen them.
        contrast_weight: Weight of the contrast beside the competition. It is 2, because the authors backpropagate it
            into both networks with the loss of each.
        contrast_temperature: tau, by which cosines are divided.
        projection: Channels of the projected features.
        view: Strength of the two views; chosen here.
    """

    ema_decay: float = 0.0
    ramp_length: float = 0.0
    competition_weight: Weight = 0.1
    competition_ramp: Annotated[float, Between(0)] = 2.4
    alpha: Share = 0.5
    temperature: Annotated[float, Between(0, exclude="low")] = 0.1
    contrast_weight: Weight = 2.0
    contrast_temperature: Annotated[float, Between(0, exclude="low")] = 0.1
    projection: Annotated[int, Between(1)] = 64
    view: StrongView = field(default_factory=StrongView)


class nnUNetTrainerC3S3(TwoStudents):
    """C3S3: two different networks agree with themselves in two views of an image, contrast their features where both
    see a class with those where neither does, and the better one teaches the other.

    ``L = sum_n (L_s + L_cos) + lambda(t) (L_cp + 2 L_iuc)``: on two views of the unlabeled images, L_cos is one
    minus the cosine of the logits of a network in both views, L_cp :func:`competitive_consistency` summed over the
    views (the paper's DCC), and L_iuc :func:`intersection_union_contrast` of a view of A with a view of B, summed
    over the four pairs (its ODCL). The better network is the one with the lower :func:`competition_score` on the
    labeled images. Restated from the authors' code, see :class:`C3S3Config`, written for one foreground class.
    Departures:

    - The two views have different intensities. Those of the authors are the same image by mistake, so that nothing but
      dropout, which nnU-Net's networks do not have, tells them apart. Stronger.
    - The cosine of the logits runs along the channels; in the authors' code, along the last axis of the volume. Regions
      are its channels, so of a single region it has no gradient.
    - L_s is nnU-Net's loss with deep supervision on the image of the loader instead of the mean over two views, and the
      score is of that pass, so that network A without unsupervised weight is nnU-Net's.
    - L_iuc has the weight lambda(t), as a review of the paper has it. In the authors' code it has the weight 1, with
      which its gradient outweighs all others by far: on hippocampus volumes both networks then lost all foreground.
      The authors train without nnU-Net's limit on the norm of gradients, by which a large loss takes the place of the
      others.
    - L_cos and L_iuc see the unlabeled images only; the authors have the labeled ones as well. Weaker, but half as many
      passes over views.
    - Network B is the other architecture from the same plans instead of a V-Net with ResNet-34 encoder.
    - Network A is deployed. The authors average both networks, which is stronger; ``nnUNetv2_micd benchmark
      --mean-of-both`` tests that as well.

    The value of L_iuc is large, 16 times the logarithm of the number of voxels before its weight, but hardly changes;
    so ``unsupervised_share`` in the log says little.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 2 F + 2 backward, and 2 F more that are repeated
    to hold fewer graphs.
    """

    config: ClassVar[C3S3Config] = C3S3Config()
    architecture_of_b = "other"

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Build network B and the projectors; A itself keeps the weights that nnU-Net loads for prediction."""
        further = super().build_further_networks()
        with torch.random.fork_rng(devices=[]):
            for name in "ab":  # the last decoder stages of both networks have equally many channels
                further[f"projector_{name}"] = build_projector(output_layer(self.network), self.config.projection)
        return further

    @property
    def competition_weight(self) -> float:
        """lambda(t) of the current step, the weight of competition and contrast."""
        steps = round(self.config.competition_ramp * self.num_epochs * self.num_iterations_per_epoch)
        return gaussian_ramp_up(self.iteration, steps, self.config.competition_weight)

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss of each network on the labeled images; all others on two views of the unlabeled ones.

        The contrast needs both views of both networks at once. So these passes are deferred: one graph is held at a
        time.
        """
        target, scores = labeled["target"], []
        for name, network in (("supervised", self.network), ("supervised_b", self.students["b"])):
            output = network(labeled["data"])
            if unlabeled is not None:
                scores.append(self._score(full_resolution(output), full_resolution(target)))
            loss = self.loss(output, target)
            del output
            yield Losses({name: loss})
            del loss
        if unlabeled is None:
            return
        score_a, score_b = sum_over_processes(torch.stack(scores))
        views = self._draw_views(self.consistency_images(labeled, unlabeled), self.generator)
        passes = Deferred(*(partial(self._run, name, view) for name in "ab" for view in views))
        yield Losses(unsupervised=self._consistency_losses(passes.outputs, score_a < score_b))
        passes.backward()

    def _score(self, logits: Tensor, target: Tensor) -> Tensor:
        truth, ignored = self.hard_target(target)
        return competition_score(logits, truth, ignored, self.config.alpha, self.label_manager.has_regions)

    def _draw_views(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        return [self.strong_view(images, self.config.view, generator) for _ in range(2)]

    def _run(self, name: str, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of a network and its projected features at full resolution."""
        logits, features = self.forward_with_features(self.students[name], view)
        return logits, self.students[f"projector_{name}"](features[-1])

    def _consistency_losses(self, outputs: Sequence[tuple[Tensor, Tensor]], a_is_better: Tensor) -> dict[str, Tensor]:
        """Return the losses of the two views of A and the two of B, in this order."""
        config, regions = self.config, self.label_manager.has_regions
        logits, projected = zip(*outputs, strict=True)
        pseudo = [self.pseudo_label(of_pass) for of_pass in logits]
        self.observe(pseudo[0], pseudo[2])
        self.metrics["a_is_better"] = a_is_better.float()
        cosine = sum((1 - channel_cosine(logits[n], logits[n + 1])).mean() for n in (0, 2))
        competition = sum(
            competitive_consistency(logits[a], logits[b], a_is_better, config.temperature, regions)
            for a, b in ((0, 2), (1, 3))
        )
        contrast = sum(
            intersection_union_contrast(
                channel_cosine(projected[a], projected[b]),
                pseudo[a],
                pseudo[b],
                self.label_manager.num_segmentation_heads,
                config.contrast_temperature,
            )
            for a in (0, 1)
            for b in (2, 3)
        )
        return {
            "cosine": torch.as_tensor(cosine),
            "competition": torch.as_tensor(self.competition_weight * competition),
            "contrast": torch.as_tensor(self.competition_weight * config.contrast_weight * contrast),
        }

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Draw the image, both views, the labels of both networks in the first one and where they differ."""
        first, second = self._draw_views(unlabeled, torch.Generator().manual_seed(self.current_epoch))
        views = {"first view": self.image_panel(first), "second view": self.image_panel(second)}
        return {"image": self.image_panel(unlabeled), **views, **self.label_panels(first)}


def build_projector(layer: nn.Module, channels: int) -> nn.Module:
    """Return two convolutions with a kernel of one and a PReLU between them, as the authors have.

    Args:
        layer: Convolution in two or three dimensions whose input the projector gets as well.
        channels: Channels of the result.
    """
    convolution: Any = type(layer)
    width: Any = layer.in_channels
    projector = nn.Sequential(convolution(width, width, 1), nn.PReLU(), convolution(width, channels, 1))
    return projector.apply(InitWeights_He(1e-2))  # as nnU-Net does for its networks


@torch.no_grad()
def competition_score(
    logits: Tensor, truth: Tensor, ignored: Tensor | None, alpha: float, regions: bool = False
) -> Tensor:
    """Error by which two networks compete: ``alpha CE + (1 - alpha) (1 - Dice)``, the lower the better.

    Args:
        logits: Network on labeled images, ``(B, K, *spatial)``.
        truth: Hard labels, see ``losses.hard_target``.
        ignored: ``(B, *spatial)``, bool: voxels that do not count, or None.
        alpha: Weight of the cross entropy.
        regions: Whether the classes are regions, which may overlap: their cross entropy is the mean of the binary ones.

    Returns:
        Scalar, float32. The Dice is the one of ``losses.soft_dice_error``.
    """
    if regions:
        errors = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none")
    else:
        labels = truth.long() if ignored is None else truth.long().masked_fill(ignored, 0)
        errors = F.cross_entropy(logits.float(), labels, reduction="none")[:, None]
    error = errors.mean() if ignored is None else masked_mean(errors, ~ignored[:, None])
    return alpha * error + (1 - alpha) * soft_dice_error(logits, truth, ignored, regions)
