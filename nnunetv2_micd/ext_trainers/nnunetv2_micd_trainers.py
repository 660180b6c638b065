"""What nnU-Net finds: the trainers of the installed package, re-exported. Nothing may be defined in this folder."""

from nnunetv2_micd.ablations import (
    nnUNetTrainerMICD_allImages,
    nnUNetTrainerMICD_noCFC,
    nnUNetTrainerMICD_noCMD,
    nnUNetTrainerMICD_noMCPC,
    nnUNetTrainerMICD_SupervisedOnly,
)
from nnunetv2_micd.bcp import nnUNetTrainerBCP
from nnunetv2_micd.cps import nnUNetTrainerCPS
from nnunetv2_micd.dhc import nnUNetTrainerDHC
from nnunetv2_micd.mcf import nnUNetTrainerMCF
from nnunetv2_micd.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.micd import nnUNetTrainerMICD
from nnunetv2_micd.pseudo_labels import nnUNetTrainerPseudoLabels
from nnunetv2_micd.uamt import nnUNetTrainerUAMT
from nnunetv2_micd.unimatch import nnUNetTrainerUniMatch
from nnunetv2_micd.variants import (
    nnUNetTrainerMICD_5epochs,
    nnUNetTrainerMICD_50epochs,
    nnUNetTrainerMICD_100epochs,
    nnUNetTrainerMICD_250epochs,
    nnUNetTrainerMICD_250epochs_NoMirroring,
    nnUNetTrainerMICD_2000epochs_NoMirroring,
    nnUNetTrainerMICD_4000epochs_NoMirroring,
    nnUNetTrainerMICD_8000epochs_NoMirroring,
    nnUNetTrainerMICD_NoMirroring,
)

__all__ = [
    "nnUNetTrainerBCP",
    "nnUNetTrainerCPS",
    "nnUNetTrainerDHC",
    "nnUNetTrainerMCF",
    "nnUNetTrainerMICD",
    "nnUNetTrainerMICD_5epochs",
    "nnUNetTrainerMICD_50epochs",
    "nnUNetTrainerMICD_100epochs",
    "nnUNetTrainerMICD_250epochs",
    "nnUNetTrainerMICD_250epochs_NoMirroring",
    "nnUNetTrainerMICD_2000epochs_NoMirroring",
    "nnUNetTrainerMICD_4000epochs_NoMirroring",
    "nnUNetTrainerMICD_8000epochs_NoMirroring",
    "nnUNetTrainerMICD_NoMirroring",
    "nnUNetTrainerMICD_SupervisedOnly",
    "nnUNetTrainerMICD_allImages",
    "nnUNetTrainerMICD_noCFC",
    "nnUNetTrainerMICD_noCMD",
    "nnUNetTrainerMICD_noMCPC",
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerPseudoLabels",
    "nnUNetTrainerUAMT",
    "nnUNetTrainerUniMatch",
]
