"""Variants of MICD: without one of its parts, on all images, and in nnU-Net's own lengths and without mirroring."""

from dataclasses import replace

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import (
    nnUNetTrainer_5epochs,
    nnUNetTrainer_50epochs,
    nnUNetTrainer_100epochs,
    nnUNetTrainer_250epochs,
)
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs_NoMirroring import (
    nnUNetTrainer_250epochs_NoMirroring,
    nnUNetTrainer_2000epochs_NoMirroring,
    nnUNetTrainer_4000epochs_NoMirroring,
    nnUNetTrainer_8000epochs_NoMirroring,
)

from nnunetv2_micd.methods.micd import nnUNetTrainerMICD


class nnUNetTrainerMICD_5epochs(nnUNetTrainer_5epochs, nnUNetTrainerMICD):
    """MICD, 5 epochs, to try things out."""


class nnUNetTrainerMICD_50epochs(nnUNetTrainer_50epochs, nnUNetTrainerMICD):
    """MICD, 50 epochs."""


class nnUNetTrainerMICD_100epochs(nnUNetTrainer_100epochs, nnUNetTrainerMICD):
    """MICD, 100 epochs."""


class nnUNetTrainerMICD_250epochs(nnUNetTrainer_250epochs, nnUNetTrainerMICD):
    """MICD, 250 epochs."""


class nnUNetTrainerMICD_NoMirroring(nnUNetTrainerNoMirroring, nnUNetTrainerMICD):
    """MICD, 1000 epochs without mirroring, for structures that have a side."""


class nnUNetTrainerMICD_250epochs_NoMirroring(nnUNetTrainer_250epochs_NoMirroring, nnUNetTrainerMICD):
    """MICD, 250 epochs without mirroring."""


class nnUNetTrainerMICD_2000epochs_NoMirroring(nnUNetTrainer_2000epochs_NoMirroring, nnUNetTrainerMICD):
    """MICD, 2000 epochs without mirroring."""


class nnUNetTrainerMICD_4000epochs_NoMirroring(nnUNetTrainer_4000epochs_NoMirroring, nnUNetTrainerMICD):
    """MICD, 4000 epochs without mirroring."""


class nnUNetTrainerMICD_8000epochs_NoMirroring(nnUNetTrainer_8000epochs_NoMirroring, nnUNetTrainerMICD):
    """MICD, 8000 epochs without mirroring."""


class nnUNetTrainerMICD_allImages(nnUNetTrainerMICD):
    """MICD closer to the paper: eq. 3, 4 and 5 on labeled and unlabeled images, each with weight one.

    Without the class weights of eq. 3 and with the same reading of it, as in nnUNetTrainerMICD, see `MICDConfig`.
    """

    config = replace(nnUNetTrainerMICD.config, cfc_weight=1.0, labeled_consistency=True)


class nnUNetTrainerMICD_noMCPC(nnUNetTrainerMICD):
    """Ablation of MICD: without masked cross pseudo consistency (eq. 3)."""

    config = replace(nnUNetTrainerMICD.config, mcpc_weight=0.0)


class nnUNetTrainerMICD_noCFC(nnUNetTrainerMICD):
    """Ablation of MICD: without cross feature consistency (eq. 4)."""

    config = replace(nnUNetTrainerMICD.config, cfc_weight=0.0)


class nnUNetTrainerMICD_noCMD(nnUNetTrainerMICD):
    """Ablation of MICD: without cross model discrepancy (eq. 5)."""

    config = replace(nnUNetTrainerMICD.config, cmd_weight=0.0)


class nnUNetTrainerMICD_SupervisedOnly(nnUNetTrainerMICD):
    """Control: MICD with weight zero for all that is unsupervised; needs no unlabeled image.

    Network A is trained exactly as by nnUNetTrainer (in mixed precision up to the steps that an overflow in B skips).
    """

    config = replace(nnUNetTrainerMICD.config, ramp_peak=0.0)
