"""Controls: what the methods do beside learning from unlabeled images, without any of these.

If a control gains as much as a method, the unlabeled images are not the reason. A third control is
:class:`~nnunetv2_micd.methods.micd_variants.nnUNetTrainerMICD_SupervisedOnly`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from nnunetv2_micd.methods.bcp import nnUNetTrainerBCP, nnUNetTrainerBCP_half
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer


class nnUNetTrainerEMA(SemiSupervisedTrainer):
    """Control: nnU-Net, which predicts with the moving average of its weights; needs no unlabeled image.

    The moving average is the one of MICD, BCP and Mean Teacher.

    Passes of a step: 1 F + 1 backward.
    """

    config = SemiSupervisedConfig(ramp_peak=0.0)

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})


class nnUNetTrainerBCP_LabeledOnly(nnUNetTrainerBCP):
    """Control: BCP whose pre-training, labeled images mixed with each other, never ends; needs no unlabeled image.

    Passes of a step: 2 F + 2 backward.
    """

    config = replace(nnUNetTrainerBCP.config, ramp_peak=0.0)


class nnUNetTrainerBCP_half_LabeledOnly(nnUNetTrainerBCP_half):
    """Control: BCP at the price of nnU-Net whose pre-training, labeled images mixed with each other, never ends.

    It needs no unlabeled image. Passes of a step: 1 F + 1 backward.
    """

    config = replace(nnUNetTrainerBCP_half.config, ramp_peak=0.0)


class nnUNetTrainerSelfTraining_LabeledOnly(nnUNetTrainerSelfTraining):
    """Control: self-training whose supervised stage, labeled images mixed with each other, lasts until the last tenth.

    It needs no unlabeled image. Passes of a step: 1 F + 1 backward.
    """

    config = replace(nnUNetTrainerSelfTraining.config, ramp_peak=0.0)
