"""The numbers of every config are checked when it is made, and what is wrong with one is said in a sentence."""

import re
from typing import Any

import pytest

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.methods.bcp import BCPConfig
from nnunetv2_micd.methods.c3s3 import C3S3Config
from nnunetv2_micd.methods.cad import CADConfig
from nnunetv2_micd.methods.dhc import DHCConfig
from nnunetv2_micd.methods.mandn import MandNConfig
from nnunetv2_micd.methods.mandn_segformer import MandNSegFormerConfig
from nnunetv2_micd.methods.mcf import MCFConfig
from nnunetv2_micd.methods.mean_teacher import MeanTeacherConfig
from nnunetv2_micd.methods.medl import MEDLConfig
from nnunetv2_micd.methods.micd import MICDConfig
from nnunetv2_micd.methods.micd_paper import MICDPaperConfig
from nnunetv2_micd.methods.pseudo_labels.trainer import PseudoLabelsConfig
from nnunetv2_micd.methods.spcl import SPCLConfig
from nnunetv2_micd.methods.uamt import UAMTConfig
from nnunetv2_micd.methods.unimatch import UniMatchConfig
from nnunetv2_micd.training.config import SemiSupervisedConfig

WRONG: list[tuple[type, str, Any, str]] = [
    (SemiSupervisedConfig, "ema_decay", 1, "at least 0 and below 1"),
    (SemiSupervisedConfig, "ramp_peak", -1, "0 or more"),
    (SemiSupervisedConfig, "ramp_length", 2, "between 0 and 1"),
    (SemiSupervisedConfig, "unlabeled_ratio", 0, "above 0"),
    (SemiSupervisedConfig, "consistency_every", 0, "a whole number, 1 or more"),
    (SemiSupervisedConfig, "consistency_every", 1.5, "a whole number, 1 or more"),
    (SemiSupervisedConfig, "consistency_every", True, "a whole number, 1 or more"),
    (SemiSupervisedConfig, "channels_last", "no", "True or False"),
    (SemiSupervisedConfig, "ramp_peak", True, "a number, 0 or more"),
    (MICDConfig, "mask_block", 8.0, "a whole number, 1 or more"),
    (SemiSupervisedConfig, "ramp_peak", float("nan"), "0 or more"),
    (MICDConfig, "mcpc_weight", -1, "0 or more"),
    (MICDConfig, "cfc_weight", -1, "0 or more"),
    (MICDConfig, "cmd_weight", -1, "0 or more"),
    (MICDConfig, "mask_ratio", 1, "at least 0 and below 1"),
    (MICDConfig, "mask_block", 0, "a whole number, 1 or more"),
    (MICDPaperConfig, "dist_floor", 2, "between 0 and 1"),
    (MICDPaperConfig, "difficulty_tau", 0, "a whole number, 1 or more"),
    (BCPConfig, "unlabeled_ratio", 2, "1: images are mixed in pairs"),
    (BCPConfig, "pretraining", 1.5, "between 0 and 1"),
    (BCPConfig, "box", 1, "above 0 and below 1"),
    (BCPConfig, "unlabeled_weight", -1, "0 or more"),
    (C3S3Config, "alpha", 1.1, "between 0 and 1"),
    (C3S3Config, "contrast_temperature", 0, "above 0"),
    (C3S3Config, "projection", 0, "a whole number, 1 or more"),
    (DHCConfig, "difficulty_tau", 0, "a whole number, 1 or more"),
    (DHCConfig, "dist_floor", -0.1, "between 0 and 1"),
    (DHCConfig, "dist_momentum", 1, "at least 0 and below 1"),
    (MandNConfig, "supervised", 2, "between 0 and 1"),
    (MandNSegFormerConfig, "rank", 0, "a whole number, 1 or more"),
    (MandNSegFormerConfig, "dropout", 1, "at least 0 and below 1"),
    (MCFConfig, "review_weight", -1, "0 or more"),
    (MCFConfig, "temperature", 0, "above 0"),
    (MEDLConfig, "curriculum_strength", 1, "at least 0 and below 1"),
    (MEDLConfig, "fused_share", 1.5, "between 0 and 1"),
    (PseudoLabelsConfig, "rounds", 0, "a whole number, 1 or more"),
    (PseudoLabelsConfig, "stable_share", 0, "above 0 and at most 1"),
    (PseudoLabelsConfig, "checkpoints", 1, "a whole number, 2 or more"),
    (UAMTConfig, "noisy_passes", 0, "a whole number, 1 or more"),
    (UAMTConfig, "certain_below", 1.1, "between 0 and 1"),
    (UniMatchConfig, "threshold", 1, "at least 0 and below 1"),
    (UniMatchConfig, "feature_dropout", 1, "at least 0 and below 1"),
    (UniMatchConfig, "cutmix", 2, "between 0 and 1"),
    (UniMatchConfig, "cutmix_share", (-0.1, 0.4), "two numbers, the smaller one first, between 0 and 1"),
    (UniMatchConfig, "cutmix_ratio", (0, 1), "two numbers, the smaller one first, above 0"),
    (CADConfig, "threshold", (0.9, 0.6), "two numbers, the smaller one first, between 0 and 1"),
    (CADConfig, "largest_edge", 0.5, "two numbers, the smaller one first, above 0 and at most 1"),
    (SPCLConfig, "position_gamma", (5.0, "60"), "two numbers, the smaller one first, above 0"),
    (SPCLConfig, "case_gamma", (0, 50), "two numbers, the smaller one first, above 0"),
    (MeanTeacherConfig, "noise_std", -0.1, "0 or more"),
    (UAMTConfig, "noise_limit", "0.2", "a number, 0 or more"),
    (SemiSupervisedConfig, "consistency_every", "2", "a whole number, 1 or more"),
    (StrongView, "jitter", 1.5, "between 0 and 1"),
    (StrongView, "gamma", (-1, 1), "two numbers, the smaller one first, above 0"),
    (StrongView, "blur_sigma", (2, 0.1), "two numbers, the smaller one first, 0 or more"),
]


# Fields of the base class, to which these give another default.
WRONG += [
    (MICDPaperConfig, "cfc_weight", -3, "0 or more"),
    (PseudoLabelsConfig, "ema_decay", 1.5, "at least 0 and below 1"),
    (UniMatchConfig, "ramp_length", 7, "between 0 and 1"),
    (UAMTConfig, "ramp_peak", -1, "0 or more"),
]


@pytest.mark.parametrize(("config", "field", "value", "allowed"), WRONG)
def test_a_value_outside_its_range_is_refused(config: type, field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value!r}, but must be {allowed}")):
        config(**{field: value})
