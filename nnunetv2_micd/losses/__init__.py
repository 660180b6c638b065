"""Losses, hard labels and class weights in plain PyTorch: usable without nnU-Net.

Examples:
    >>> import torch
    >>> from nnunetv2_micd.losses import cross_pseudo_supervision, pseudo_label
    >>> logits_a, logits_b = torch.randn(2, 1, 3, 8, 8, requires_grad=True)
    >>> loss = cross_pseudo_supervision(logits_a, logits_b, pseudo_label(logits_a), pseudo_label(logits_b))
    >>> loss.backward()
"""

from nnunetv2_micd.losses.consistency import cfc, cmd, cross_pseudo_supervision, mcpc
from nnunetv2_micd.losses.labels import pseudo_label

__all__ = ["cfc", "cmd", "cross_pseudo_supervision", "mcpc", "pseudo_label"]
