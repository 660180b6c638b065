"""Random block masks: ``sample_mask`` draws, ``apply_mask`` applies (MICD, equation 2)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sample_mask(
    batch_size: int,
    spatial: Sequence[int],
    ratio: float,
    block_size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw which blocks of each image are hidden, one mask per sample for all channels.

    The image is divided into a grid of cubes (the last one of an axis is cut off at the border) and exactly
    ``round(ratio * blocks)`` of them are hidden. Source: MICD, https://arxiv.org/abs/2503.14013, equation 2, and MIC,
    Hoyer et al., CVPR 2023.

    Args:
        batch_size: Number of samples B.
        spatial: Size of the two or three spatial axes in voxels.
        ratio: Share of the blocks that is hidden, in [0, 1).
        block_size: Edge of a block in voxels.
        generator: CPU generator, the only source of randomness, so that a mask does not depend on the device.
        device: Where the mask is needed.

    Returns:
        Boolean ``(B, 1, *spatial)``, True where the image is hidden.

    Raises:
        ValueError: If ``ratio`` lies outside [0, 1) or ``block_size`` is less than one.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"The mask ratio must be at least 0 and less than 1, got {ratio}.")
    if block_size < 1:
        raise ValueError(f"The block size of the mask must be at least 1 voxel, got {block_size}.")
    grid = [math.ceil(size / block_size) for size in spatial]
    blocks = math.prod(grid)
    # Each row of ranks is a permutation, hence the exact number of hidden blocks.
    ranks = torch.rand(batch_size, blocks, generator=generator).argsort(dim=1)
    mask = (ranks < round(ratio * blocks)).view(batch_size, 1, *grid).to(device)
    for axis, size in enumerate(spatial, start=2):
        mask = mask.repeat_interleave(block_size, dim=axis).narrow(axis, 0, size)
    return mask


def apply_mask(image: Tensor, mask: Tensor) -> Tensor:
    """Hide the masked voxels of an image in all channels.

    They become zero, which is the mean after nnU-Net's z-score and CT normalization; MIC does the same.

    Args:
        image: ``(B, C, *spatial)``; not modified, gradient flows through what stays visible.
        mask: Boolean ``(B, 1, *spatial)``, True where the image is hidden.

    Returns:
        Masked copy ``(B, C, *spatial)``.
    """
    return image.masked_fill(mask, 0)
