"""MICD without one of its parts, and MICD closer to the paper: what a comparison of its settings trains."""

from dataclasses import replace

from nnunetv2_micd.methods.micd import nnUNetTrainerMICD


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
    """Ablation of MICD: both networks and teachers, weight zero for all that is unsupervised; needs no unlabeled image.

    Network A is trained exactly as by nnUNetTrainer (in mixed precision up to the steps that an overflow in B skips).
    """

    config = replace(nnUNetTrainerMICD.config, ramp_peak=0.0)
