"""CPS: cross pseudo supervision (X. Chen, Y. Yuan, G. Zeng, J. Wang, CVPR 2021, https://arxiv.org/abs/2106.01226)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from nnunetv2_micd.losses.consistency import cross_pseudo_supervision
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.step import Losses


@dataclass(frozen=True)
class CPSConfig(SemiSupervisedConfig):
    """Numbers of CPS in its port to medical images (HiLab-git/SSL4MIS, commit 06df604).

    That has lambda 0.1 with a ramp-up; ``ramp_peak`` is 0.2, because nnU-Net's supervised loss is twice the one of the
    port, which halves the sum of cross entropy and Dice. There is no teacher: with a decay of 0 the deployed network is
    the student itself.
    """

    ema_decay: float = 0.0
    ramp_peak: float = 0.2


class nnUNetTrainerCPS(TwoStudents):
    """CPS: two networks of the same architecture but of other initial weights learn each other's hard labels.

    ``L = L_s + lambda L_cps`` with ``L_cps = CE(p_A, y^_B) + CE(p_B, y^_A)`` (section 3 of the paper), which is MICD's
    eq. 3 on images without a mask and without class weights. As in the authors' code
    (https://github.com/charlesCXK/TorchSemiSeg, commit 5e0c29c0) it is one mean over the voxels of the labeled and
    unlabeled images together; the paper prints the sum of a mean over each, and the medical port has a mean over the
    unlabeled ones alone, which gives them twice the weight. :class:`nnUNetTrainerCPS_VOC` has the authors' own weight.
    Departures:

    - L_s is nnU-Net's loss with deep supervision; in the port it has Dice as well, for the authors it has not.
    - The authors' variant with CutMix, which is stronger, is not built.

    Passes of a step, per network: labeled 1 F + 1 backward, unlabeled 1 F + 1 backward.
    """

    config: ClassVar[CPSConfig] = CPSConfig()

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss of both networks on the labeled images; cross pseudo supervision on all images.

        That is one mean over all voxels, in two parts, so that one graph of each network is held at a time.
        """
        images, target = labeled["data"], labeled["target"]
        output_a, output_b = self.network(images), self.students["b"](images)
        supervised = self.supervised_losses(output_a, output_b, target)
        if unlabeled is None:
            yield Losses(supervised)
            return
        share = len(images) / (len(images) + len(unlabeled))
        loss, *_ = self._cross_supervise(full_resolution(output_a), full_resolution(output_b))
        del output_a, output_b
        yield Losses(supervised, {"cps_labeled": share * loss})
        logits_a, logits_b = (self.logits(self.students[name], unlabeled) for name in "ab")
        loss, pseudo_a, pseudo_b = self._cross_supervise(logits_a, logits_b)
        self.observe(pseudo_a, pseudo_b)
        del logits_a, logits_b
        yield Losses(unsupervised={"cps_unlabeled": (1 - share) * loss})

    def _cross_supervise(self, logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss and the hard labels of both networks."""
        pseudo_a, pseudo_b = self.pseudo_label(logits_a), self.pseudo_label(logits_b)
        return cross_pseudo_supervision(logits_a, logits_b, pseudo_a, pseudo_b), pseudo_a, pseudo_b


class nnUNetTrainerCPS_VOC(nnUNetTrainerCPS):
    """CPS with the weight of its authors on PASCAL VOC: 1.5 from the first step on, without a ramp-up.

    They train networks that were pretrained on ImageNet, with a supervised loss of cross entropy alone; nnU-Net's, with
    the Dice as well, lowers the share of the rest.
    """

    config = replace(nnUNetTrainerCPS.config, ramp_peak=1.5, ramp_length=0.0)
