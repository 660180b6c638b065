"""Masks, intensity augmentation and mirror images in plain PyTorch: usable without nnU-Net.

All functions work on batches ``(B, channels, *spatial)`` with two or three spatial axes, on any device, and draw from a
``torch.Generator`` on the CPU, never from the global random state. Those about ellipses
are for two axes, and fit them on the CPU.

Examples:
    >>> import torch
    >>> from nnunetv2_micd.augmentation import apply_mask, sample_mask
    >>> images, generator = torch.ones(2, 1, 8, 8), torch.Generator().manual_seed(0)
    >>> masked = apply_mask(images, sample_mask(2, (8, 8), ratio=0.5, block_size=2, generator=generator))
    >>> masked.mean()
    tensor(0.5000)
"""

from nnunetv2_micd.augmentation.ellipse import Ellipse, Reflection, fit_ellipse, outline
from nnunetv2_micd.augmentation.intensity import (
    Range,
    Strengths,
    StrongView,
    add_noise,
    apply_strengths,
    gaussian_blur,
    keep_outside,
    sample_strengths,
    strong_view,
)
from nnunetv2_micd.augmentation.masks import apply_mask, box_mask, sample_box, sample_mask, sample_starts

__all__ = [
    "Ellipse",
    "Range",
    "Reflection",
    "Strengths",
    "StrongView",
    "add_noise",
    "apply_mask",
    "apply_strengths",
    "box_mask",
    "fit_ellipse",
    "gaussian_blur",
    "keep_outside",
    "outline",
    "sample_box",
    "sample_mask",
    "sample_starts",
    "sample_strengths",
    "strong_view",
]
