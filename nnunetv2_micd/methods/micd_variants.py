"""Lengths and mirroring: nnU-Net's own variants, applied to MICD."""

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
