"""Random masks: blocks that are hidden (MICD, equation 2), and boxes that are pasted from one image into another.

Drawing and applying are separate functions; only the drawing ones take a generator.
"""

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
        device: Device of the mask.

    Returns:
        Boolean ``(B, 1, *spatial)``, True where the image is hidden.

    Raises:
        ValueError: ``ratio`` lies outside [0, 1) or ``block_size`` is less than one.

    Examples:
        >>> mask = sample_mask(1, (4, 4), ratio=0.5, block_size=2, generator=torch.Generator().manual_seed(0))
        >>> mask.shape, mask.float().mean().item()
        (torch.Size([1, 1, 4, 4]), 0.5)
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

    Examples:
        >>> apply_mask(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[True, False]]]))
        tensor([[[0., 2.]]])
    """
    return image.masked_fill(mask, 0)


def sample_starts(edges: Tensor, spatial: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw the places of boxes, all places inside the image being equally likely.

    Args:
        edges: Size of each box in voxels, ``(B, axes)``, int64, not larger than the image.
        spatial: Size of the two or three spatial axes in voxels.
        generator: CPU generator.

    Returns:
        First voxel of each box, ``(B, axes)``, int64.

    Examples:
        >>> sample_starts(torch.tensor([[4, 4]]), (4, 4), torch.Generator())
        tensor([[0, 0]])
    """
    places = torch.as_tensor(spatial) - edges + 1
    return (torch.rand(edges.shape, generator=generator) * places).long().minimum(places - 1)


def box_mask(starts: Tensor, edges: Tensor, spatial: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Mark the voxels of boxes.

    Args:
        starts: First voxel of each box, ``(B, axes)``, int64.
        edges: Size of each box in voxels, ``(B, axes)``, int64; an edge of zero is an empty box.
        spatial: Size of the two or three spatial axes in voxels.
        device: Device of the mask.

    Returns:
        Boolean ``(B, 1, *spatial)``, True inside the box.

    Examples:
        >>> box_mask(torch.tensor([[1]]), torch.tensor([[2]]), (4,))
        tensor([[[False,  True,  True, False]]])
    """
    # Only the bounds are copied to the device; the mask itself is made there.
    bounds = torch.stack((starts, starts + edges)).to(device)
    mask = torch.ones((len(starts), 1, *spatial), dtype=torch.bool, device=device)
    for axis, size in enumerate(spatial):
        position = torch.arange(size, device=device)
        start, stop = bounds[:, :, axis, None]
        inside = (position >= start) & (position < stop)
        mask &= inside.view(len(starts), 1, *(size if other == axis else 1 for other in range(len(spatial))))
    return mask
