"""Masks, boxes and strong views of batches in plain PyTorch: usable without nnU-Net.

Examples:
    >>> import torch
    >>> from nnunetv2_micd.augmentation import apply_mask, sample_mask
    >>> images = torch.ones(2, 1, 8, 8)
    >>> masked = apply_mask(images, sample_mask(2, (8, 8), 0.5, 4, torch.Generator().manual_seed(0)))
    >>> masked.mean().item()
    0.5
"""

from nnunetv2_micd.augmentation.intensity import (
    Range,
    Strengths,
    StrongView,
    add_noise,
    apply_strengths,
    gaussian_blur,
    sample_strengths,
    strong_view,
)
from nnunetv2_micd.augmentation.masks import apply_mask, box_mask, sample_mask, sample_starts

__all__ = [
    "Range",
    "Strengths",
    "StrongView",
    "add_noise",
    "apply_mask",
    "apply_strengths",
    "box_mask",
    "gaussian_blur",
    "sample_mask",
    "sample_starts",
    "sample_strengths",
    "strong_view",
]
