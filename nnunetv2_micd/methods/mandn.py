"""M&N: co-training of a 2D and a 3D network (Yeung et al., MLMI 2025, https://arxiv.org/abs/2509.15167)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_micd.losses.labels import differing, label_map, probabilities
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.slice_networks import SliceNetwork, build_slice_network
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.utils.distributed import number_of_processes
from nnunetv2_micd.utils.ranges import Share

DICE_FLOOR = 1e-6
"""Least denominator of the Dice; pakheiyeung/M-N, commit 2e34e5d5, ``losses.py``."""


@dataclass(frozen=True)
class MandNConfig(SemiSupervisedConfig):
    """Numbers of M&N (pakheiyeung/M-N, commit 2e34e5d5); there is neither a teacher nor a ramp-up.

    Labeled and pseudo-labeled samples have the same loss and the same weight there, so ``ramp_peak`` is 1: here too
    both are cross entropy plus Dice.

    Attributes:
        supervised: Share of the epochs in which both networks learn from labeled images only; 500 of 4000 there.
    """

    ema_decay: float = 0.0
    ramp_length: float = 0.0
    supervised: Share = 0.125


def pseudo_labeled_samples(batch_size: int, learning_rate: float, step: int) -> int:
    """Learning-rate-guided sampling: the number of pseudo-labeled samples in the batch of a step.

    It is ``B (1 - lr / lr0)``, rounded up and down in turn such that its mean over steps is exact: rounded down always,
    as in the authors' batches of five, a batch of two would hold no pseudo-labeled sample during half of the training.
    One sample is always labeled, as there. All processes get the same number for batches of the same size.

    Args:
        batch_size: Number of samples B.
        learning_rate: lr / lr0, the learning rate as a share of the initial one.
        step: Training step, from 0.

    Returns:
        A number from 0 to B - 1, or to 1 for a batch of one, to which the pseudo-labeled sample is added.

    Examples:
        >>> [pseudo_labeled_samples(2, learning_rate=0.75, step=step) for step in range(6)]
        [0, 1, 0, 1, 0, 1]
        >>> [pseudo_labeled_samples(5, learning_rate, step=0) for learning_rate in (1.0, 0.6, 0.2, 0.0)]
        [0, 2, 4, 4]
    """
    wanted = batch_size * max(0.0, 1 - learning_rate)
    number = math.floor((step + 1) * wanted) - math.floor(step * wanted)
    return min(number, max(1, batch_size - 1))


def soft_label_loss(logits: Tensor, target: Tensor, regions: bool = False) -> Tensor:
    """Dice loss and divergence from soft labels.

    ``1 - mean_k 2 sum_v p_kv y_kv / (sum_v p_kv^2 + sum_v y_kv^2) + mean_v KL(y_v || p_v)`` over the voxels v of the
    whole batch and the classes k with background. With hard labels the divergence is the cross entropy. The authors
    divide it by the number of classes, a side effect of PyTorch's ``reduction="mean"``. Of regions it is the mean of
    the divergences of each.

    Args:
        logits: ``(B, K, *spatial)``; receives gradient.
        target: Probabilities of the same shape, float32, without gradient.
        regions: Whether the classes are regions, which may overlap.

    Returns:
        Scalar in nats, float32.

    Examples:
        >>> target = torch.tensor([[[1.0], [0.0]]])  # one voxel, class 0 of two
        >>> loss = soft_label_loss(torch.zeros(1, 2, 1), target)
        >>> print(f"{loss:.4f}")  # 1 - 0.4 + ln 2: the Dice of class 0 is 0.8, that of class 1 is 0
        1.2931
    """
    axes = (0, *range(2, logits.ndim))
    prediction = probabilities(logits, regions)
    overlap = (prediction * target).sum(axes)
    size = prediction.square().sum(axes) + target.square().sum(axes)
    dice = 2 * overlap / size.clamp_min(DICE_FLOOR)
    if regions:
        logits = logits.float()
        inside, outside = F.logsigmoid(logits), F.logsigmoid(-logits)
        divergence = F.kl_div(inside, target, reduction="none") + F.kl_div(outside, 1 - target, reduction="none")
    else:
        divergence = F.kl_div(logits.log_softmax(1, dtype=torch.float32), target, reduction="none").sum(1)
    return 1 - dice.mean() + divergence.mean()


class nnUNetTrainerMandN(TwoStudents):
    """M&N: a 3D network and a 2D network, which sees all slices, teach each other in turn with soft labels, the more
    samples the lower the learning rate is.

    Both networks learn from labeled images at first. Then, in each step, the 2D network learns while the 3D one is
    frozen, and after that the reverse. Of a batch of B samples, n (:func:`pseudo_labeled_samples`) have the soft labels
    y of the frozen network instead of true ones:
    ``L = (B - n) / B L_s + n / B (1 - Dice(p, y) + KL(y || p))``, see :func:`soft_label_loss`. Restated from the
    authors' ``train.py`` and ``losses.py`` (commit 2e34e5d5). Where this departs from them:

    - Network B is the one that nnU-Net plans for the 2D configuration, trained from scratch. The authors have a
      SegFormer, pretrained on natural images: stronger, see ``nnUNetTrainerMandN_SegFormer``. In a 2D configuration it
      is the other architecture of the same plans, and only sampling and co-training in turn are left of the method.
    - The networks take turns within a step, so that both take as many steps as nnU-Net's; the authors' take turns every
      eight steps. Both turns of a step have the same labeled images, and other unlabeled ones.
    - L_s is nnU-Net's loss, of A with deep supervision; Dice and cross entropy have equal weight in both losses. In the
      authors' the cross entropy has one part in K, as many as there are classes.
    - The share n / B follows nnU-Net's learning rate, which has fallen since the first epoch; the authors restart
      theirs when co-training begins. n is rounded on average instead of down.
    - Both networks have nnU-Net's optimizer and learning rate. The authors have AdamW, ten times as fast for B.
    - Unlabeled patches are drawn anywhere. The authors draw half of them around foreground, by hard labels that the 3D
      network has written for whole images: stronger where targets are small.
    - Only images without labels are pseudo-labeled. The authors' code takes those of the test set as well.

    Without unsupervised weight (``ramp_peak`` 0) A is nnU-Net's.

    Passes of a step, per network: at first labeled 1 F + 1 backward; then 1 F + 1 backward on each of the B samples,
    and 1 F on the n samples that the other one learns from.
    """

    config: ClassVar[MandNConfig] = MandNConfig()
    architecture_of_b = "other"
    learning: str
    enable_deep_supervision: bool

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Build the 2D network, or in 2D the other architecture; the global random state stays as it was."""
        patch_size = self.configuration_manager.patch_size
        if len(patch_size) == 2:
            return super().build_further_networks()
        sizes = self.num_input_channels, self.label_manager.num_segmentation_heads
        with torch.random.fork_rng(devices=[]):
            return {"b": build_slice_network(self.plans_manager, patch_size[1:], *sizes)}

    @property
    def needs_unlabeled(self) -> bool:
        """Whether the current step has pseudo-labeled samples."""
        return not self.is_supervised and self.wanted_samples > 0

    @property
    def wanted_samples(self) -> int:
        """Number of pseudo-labeled samples in the current step, after the supervised start.

        The same in all processes, whose batches may differ in size: a network with batch normalization over all of them
        runs in all or in none.
        """
        learning_rate = self.optimizer.param_groups[0]["lr"] / self.initial_lr
        common = min(self.batch_size, max(1, self.configuration_manager.batch_size // number_of_processes()))
        return pseudo_labeled_samples(common, learning_rate, self.iteration)

    @property
    def unlabeled_patch_cost(self) -> float:
        """Time that loading an unlabeled patch takes; twice, as each network has a batch of its own."""
        return 2 * super().unlabeled_patch_cost

    @property
    def is_supervised(self) -> bool:
        """Whether both networks learn from labeled images only in this step."""
        start = int(self.config.supervised * self.num_epochs) * self.num_iterations_per_epoch
        return not self.config.ramp_peak or self.iteration < start

    def update_networks(self, labeled: dict[str, Any], weight: float) -> tuple[Losses, Tensor]:
        """Let both networks take the step; after the supervised start B first, then A with the labels of the new B."""
        if self.is_supervised:
            return super().update_networks(labeled, weight)
        self.learning = "b"
        losses_b, not_finite_b = super().update_networks(labeled, weight)
        self.learning = "a"
        losses_a, not_finite_a = super().update_networks(labeled, weight)
        return losses_a | losses_b, not_finite_a + not_finite_b

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """Supervised losses of both networks; later of one of them, and its loss with soft labels of the other."""
        if self.is_supervised:
            yield Losses({"supervised": self._supervised_loss("a", labeled)})
            yield Losses({"supervised_b": self._supervised_loss("b", labeled)})
            return
        learning, frozen = self.learning, "b" if self.learning == "a" else "a"
        batch_size, pseudo_labeled = len(labeled["data"]), 0
        if unlabeled is not None:
            pseudo_labeled = min(self.wanted_samples, len(unlabeled))
            unlabeled = unlabeled[:pseudo_labeled]
        kept = max(1, batch_size - pseudo_labeled)
        # nnU-Net makes sure of foreground in the last samples of a batch.
        labeled = {
            "data": labeled["data"][-kept:],
            "target": [target[-kept:] for target in labeled["target"]]
            if isinstance(labeled["target"], list)
            else labeled["target"][-kept:],
        }
        share = pseudo_labeled / (kept + pseudo_labeled)
        suffix = "" if learning == "a" else "_b"
        supervised, pseudo = f"supervised{suffix}", f"pseudo_label{suffix}"
        yield Losses({supervised: self._supervised_loss(learning, labeled)}, shares={supervised: 1 - share})
        self.metrics["pseudo_labeled"] = torch.full((), share, device=self.device)
        if unlabeled is None or not pseudo_labeled:
            return
        regions = self.label_manager.has_regions
        images = self.consistency_images(labeled, unlabeled)
        with torch.no_grad():
            # With a decay of 0 the teacher is the frozen network itself, and never in training mode.
            logits_of_frozen = self._full_resolution(self.teachers[frozen], images)
            target = probabilities(logits_of_frozen, regions)
        logits = self._full_resolution(self.students[learning], images)
        by_name = {learning: self.pseudo_label(logits), frozen: self.pseudo_label(logits_of_frozen)}
        self.observe(by_name["a"], by_name["b"])
        loss = soft_label_loss(logits, target, regions)
        del logits, logits_of_frozen, target
        yield Losses(unsupervised={pseudo: loss}, shares={pseudo: share})

    def _supervised_loss(self, name: str, labeled: dict[str, Any]) -> Tensor:
        network = self.network if name == "a" else self.students["b"]
        output, target = network(labeled["data"]), labeled["target"]
        if isinstance(network, SliceNetwork):  # which has no outputs at the lower resolutions of the 3D network
            loss = self.loss.loss if self.enable_deep_supervision else self.loss
            return loss(output, full_resolution(target))
        return self.loss(output, target)

    def _full_resolution(self, network: nn.Module, images: Tensor) -> Tensor:
        return network(images) if isinstance(network, SliceNetwork) else self.logits(network, images)

    def label_panels(self, images: Tensor) -> dict[str, Tensor]:
        """Return the hard labels of both networks for a picture, and where they differ."""
        label_a, label_b = (
            # Past ``__call__``, so not compiled: a picture has another batch size than the steps.
            self.pseudo_label(full_resolution(self.teachers[name].forward(images)))
            for name in "ab"
        )
        return {
            "label of A": label_map(label_a),
            "label of B": label_map(label_b),
            "A and B differ": differing(label_a, label_b),
        }
