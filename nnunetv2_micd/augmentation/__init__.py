"""Masks, intensity augmentation and mirror images: usable without nnU-Net.

All functions work on batches ``(B, channels, *spatial)`` with two or three spatial axes, on any device, and draw from a
``torch.Generator`` on the CPU, never from the global random state. Those about ellipses are for two axes, and fit them
on the CPU.

Examples:
    >>> import torch
    >>> from nnunetv2_micd.augmentation import sample_mask
    >>> images, generator = torch.ones(2, 1, 8, 8), torch.Generator().manual_seed(0)
    >>> masked = images.masked_fill(sample_mask(2, (8, 8), ratio=0.5, block_size=2, generator=generator), 0)
    >>> masked.mean()
    tensor(0.5000)
"""

from nnunetv2_micd.augmentation.intensity import StrongView, strong_view
from nnunetv2_micd.augmentation.masks import sample_mask

__all__ = ["StrongView", "sample_mask", "strong_view"]
