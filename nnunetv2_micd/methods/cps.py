"""CPS: cross pseudo supervision (X. Chen, Y. Yuan, G. Zeng, J. Wang, CVPR 2021, https://arxiv.org/abs/2106.01226)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_micd.losses.consistency import mcpc
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import forward_with_features, full_resolution
from nnunetv2_micd.training.passes import Pass
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer


@dataclass(frozen=True)
class CPSConfig(SemiSupervisedConfig):
    """The numbers of CPS: those of its training on PASCAL VOC without CutMix.

    There lambda is 1.5 from the first step on, without a ramp-up, over networks that were pretrained on ImageNet. The
    port to medical images in https://github.com/HiLab-git/SSL4MIS has 0.1 and a ramp-up. There is no teacher: with a
    decay of 0 the teacher, which is deployed, is the student itself.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 1.5
    ramp_length: float = 0.0


class nnUNetTrainerCPS(SemiSupervisedTrainer):
    """CPS: two networks of the same architecture but of other initial weights learn each other's hard labels.

    ``L = L_s + lambda L_cps`` with ``L_cps = CE(p_A, y^_B) + CE(p_B, y^_A)`` (section 3 of the paper), which is MICD's
    eq. 3 on images without a mask and without class weights. As in the authors' code
    (https://github.com/charlesCXK/TorchSemiSeg, commit 5e0c29c0) it is one mean over the voxels of the labeled and
    unlabeled images together; the paper prints the sum of a mean over each. Departure: L_s is nnU-Net's loss with deep
    supervision instead of the cross entropy alone. The authors' variant with CutMix is not built.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 1 F + 1 backward.
    """

    config: ClassVar[CPSConfig] = CPSConfig()

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Network B, the architecture of the plans once more."""
        return {"b": build_twin(self)}

    def unsupervised_passes(self) -> list[Pass]:
        """Return those over the unlabeled images."""
        return [Pass(name, "unlabeled") for name in self.students]

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """nnU-Net's loss of both networks on the labeled images; cross pseudo supervision on all images.

        That is one mean over all voxels, in two parts, so that one graph of each network is held at a time.
        """
        images, target = labeled["data"], labeled["target"]
        output_a, output_b = self.network(images), self.students["b"](images)
        losses = {"supervised": self.loss(output_a, target), "supervised_b": self.loss(output_b, target)}
        if unlabeled is None:
            yield losses
            return
        share = len(images) / (len(images) + len(unlabeled))
        losses["cps_labeled"] = share * self._cps(full_resolution(output_a), full_resolution(output_b))[0]
        del output_a, output_b
        yield losses
        logits_a, logits_b = (self.logits(self.students[name], unlabeled) for name in "ab")
        loss, pseudo_a, pseudo_b = self._cps(logits_a, logits_b)
        self.metrics |= branch_metrics(pseudo_a, pseudo_b)
        del logits_a, logits_b
        yield {"cps_unlabeled": (1 - share) * loss}

    def _cps(self, logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, and the hard labels of both networks."""
        pseudo_a, pseudo_b = self.pseudo_label(logits_a), self.pseudo_label(logits_b)
        return mcpc(logits_a, logits_b, pseudo_a, pseudo_b), pseudo_a, pseudo_b

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, the labels of both networks and where they differ."""
        return branch_panels(self, unlabeled)


def build_twin(trainer: SemiSupervisedTrainer) -> nn.Module:
    """Build the network of the plans with other initial weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):  # draws on from where the initial weights of network A ended
        return trainer.build_network_architecture(
            trainer.plans_manager,
            trainer.configuration_manager,
            trainer.num_input_channels,
            trainer.label_manager.num_segmentation_heads,
            trainer.enable_deep_supervision,
        )


def branch_metrics(pseudo_a: Tensor, pseudo_b: Tensor) -> dict[str, Tensor]:
    """Return what both branches say of the unlabeled images: how often they agree, how much foreground they see."""
    return {
        "agreement": 1 - differing(pseudo_a, pseudo_b).float().mean(),
        "foreground_a": foreground_share(pseudo_a),
        "foreground_b": foreground_share(pseudo_b),
    }


def branch_panels(trainer: SemiSupervisedTrainer, unlabeled: Tensor) -> dict[str, Tensor]:
    """Return the panels of a picture: image, the hard labels of both students and where they differ."""
    # Not compiled: for another batch size, now and then, that would cost more than it brings.
    label_a, label_b = (
        trainer.pseudo_label(forward_with_features(trainer.students[name], unlabeled)[0]) for name in "ab"
    )
    return {
        "image": unlabeled[:, 0],
        "label of A": label_map(label_a),
        "label of B": label_map(label_b),
        "A and B differ": differing(label_a, label_b),
    }
