"""Losses, hard labels and class weights in plain PyTorch: usable without nnU-Net.

Examples:
    >>> import torch
    >>> from nnunetv2_micd.losses import cross_pseudo_supervision, pseudo_label
    >>> logits_a, logits_b = torch.randn(2, 1, 3, 8, 8, requires_grad=True)
    >>> loss = cross_pseudo_supervision(logits_a, logits_b, pseudo_label(logits_a), pseudo_label(logits_b))
    >>> loss.backward()
"""

from nnunetv2_micd.losses.class_weights import DifficultyWeights, DistributionWeights
from nnunetv2_micd.losses.consistency import (
    CFC_STAGE_WEIGHTS,
    cfc,
    cfc_stage_weights,
    cmd,
    cross_pseudo_supervision,
    masked_mean,
    mcpc,
    mean_teacher_consistency,
)
from nnunetv2_micd.losses.contrastive import Contrast, model_age, pace_weights, self_paced_contrast
from nnunetv2_micd.losses.dice import confident_dice_loss, hard_dice, soft_dice_error
from nnunetv2_micd.losses.evidential import (
    Opinion,
    curriculum_weight,
    fisher_evidential_loss,
    fuse,
    log_fisher_information,
    opinion,
    reliability,
    trigamma,
)
from nnunetv2_micd.losses.fused import chunked_mean, hard_binary_cross_entropy, hard_cross_entropy, symmetric_kl
from nnunetv2_micd.losses.labels import (
    class_masks,
    count_classes,
    differing,
    foreground_share,
    hard_target,
    label_map,
    probabilities,
    pseudo_label,
)

__all__ = [
    "CFC_STAGE_WEIGHTS",
    "Contrast",
    "DifficultyWeights",
    "DistributionWeights",
    "Opinion",
    "cfc",
    "cfc_stage_weights",
    "chunked_mean",
    "class_masks",
    "cmd",
    "confident_dice_loss",
    "count_classes",
    "cross_pseudo_supervision",
    "curriculum_weight",
    "differing",
    "fisher_evidential_loss",
    "foreground_share",
    "fuse",
    "hard_binary_cross_entropy",
    "hard_cross_entropy",
    "hard_dice",
    "hard_target",
    "label_map",
    "log_fisher_information",
    "masked_mean",
    "mcpc",
    "mean_teacher_consistency",
    "model_age",
    "opinion",
    "pace_weights",
    "probabilities",
    "pseudo_label",
    "reliability",
    "self_paced_contrast",
    "soft_dice_error",
    "symmetric_kl",
    "trigamma",
]
