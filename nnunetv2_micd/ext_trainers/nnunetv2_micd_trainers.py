"""What nnU-Net finds: the trainers of the installed package, re-exported. Nothing may be defined in this folder."""

from nnunetv2_micd.methods.bcp import nnUNetTrainerBCP, nnUNetTrainerBCP_half
from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.cad import nnUNetTrainerCAD
from nnunetv2_micd.methods.controls import (
    nnUNetTrainerBCP_half_LabeledOnly,
    nnUNetTrainerBCP_LabeledOnly,
    nnUNetTrainerEMA,
    nnUNetTrainerSelfTraining_LabeledOnly,
)
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS, nnUNetTrainerCPS_VOC
from nnunetv2_micd.methods.dhc import nnUNetTrainerDHC
from nnunetv2_micd.methods.ersr import nnUNetTrainerERSR
from nnunetv2_micd.methods.filter_match import nnUNetTrainerFilterMatch
from nnunetv2_micd.methods.m3hl import nnUNetTrainerM3HL
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN
from nnunetv2_micd.methods.mandn_segformer import nnUNetTrainerMandN_SegFormer
from nnunetv2_micd.methods.mcf import nnUNetTrainerMCF
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.micd_paper import nnUNetTrainerMICD_paper
from nnunetv2_micd.methods.micd_variants import (
    nnUNetTrainerMICD_5epochs,
    nnUNetTrainerMICD_50epochs,
    nnUNetTrainerMICD_100epochs,
    nnUNetTrainerMICD_250epochs,
    nnUNetTrainerMICD_250epochs_NoMirroring,
    nnUNetTrainerMICD_2000epochs_NoMirroring,
    nnUNetTrainerMICD_4000epochs_NoMirroring,
    nnUNetTrainerMICD_8000epochs_NoMirroring,
    nnUNetTrainerMICD_allImages,
    nnUNetTrainerMICD_noCFC,
    nnUNetTrainerMICD_noCMD,
    nnUNetTrainerMICD_noMCPC,
    nnUNetTrainerMICD_NoMirroring,
    nnUNetTrainerMICD_SupervisedOnly,
)
from nnunetv2_micd.methods.pseudo_labels.trainer import (
    nnUNetTrainerPseudoLabels,
    nnUNetTrainerPseudoLabels_fullLength,
)
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.methods.spcl import nnUNetTrainerSPCL, nnUNetTrainerSPCL_pretrained
from nnunetv2_micd.methods.transmedseg import nnUNetTrainerTransMedSeg
from nnunetv2_micd.methods.uamt import nnUNetTrainerUAMT
from nnunetv2_micd.methods.unimatch import nnUNetTrainerUniMatch

__all__ = [
    "nnUNetTrainerBCP",
    "nnUNetTrainerBCP_LabeledOnly",
    "nnUNetTrainerBCP_half",
    "nnUNetTrainerBCP_half_LabeledOnly",
    "nnUNetTrainerC3S3",
    "nnUNetTrainerCAD",
    "nnUNetTrainerCPS",
    "nnUNetTrainerCPS_VOC",
    "nnUNetTrainerDHC",
    "nnUNetTrainerEMA",
    "nnUNetTrainerERSR",
    "nnUNetTrainerFilterMatch",
    "nnUNetTrainerM3HL",
    "nnUNetTrainerMCF",
    "nnUNetTrainerMEDL",
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
    "nnUNetTrainerMICD_paper",
    "nnUNetTrainerMandN",
    "nnUNetTrainerMandN_SegFormer",
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerPseudoLabels",
    "nnUNetTrainerPseudoLabels_fullLength",
    "nnUNetTrainerSPCL",
    "nnUNetTrainerSPCL_pretrained",
    "nnUNetTrainerSelfTraining",
    "nnUNetTrainerSelfTraining_LabeledOnly",
    "nnUNetTrainerTransMedSeg",
    "nnUNetTrainerUAMT",
    "nnUNetTrainerUniMatch",
]
