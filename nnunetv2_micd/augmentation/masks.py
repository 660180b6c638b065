"""Random masks: blocks that hide parts of an image, and boxes that are pasted from one image into another.

A mask is drawn from a generator on the CPU, so that it does not depend on the device, and applied in a second step.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_micd.utils.devices import to_device


def sample_mask(
    batch_size: int,
    spatial: Sequence[int],
    ratio: float,
    block_size: int | Sequence[int],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw the blocks of each image that are hidden: one mask per sample, the same for all channels.

    The image is divided into a grid of blocks, the last block of an axis being cut off at the border. Exactly
    ``round(ratio * blocks)`` of them are hidden. Source: MICD, https://arxiv.org/abs/2503.14013, equation 2, and MIC,
    Hoyer et al., CVPR 2023.

    Args:
        batch_size: Number of samples B.
        spatial: Size of the two or three spatial axes in voxels.
        ratio: Share of the blocks that are hidden, in [0, 1).
        block_size: Edge of a block in voxels, for all axes or for each.
        generator: Generator on the CPU.
        device: Device of the returned mask.

    Returns:
        Mask ``(B, 1, *spatial)``, bool, True where the image is hidden.

    Raises:
        ValueError: ``ratio`` lies outside [0, 1) or ``block_size`` is less than one.

    Examples:
        >>> mask = sample_mask(2, (8, 8), ratio=0.5, block_size=2, generator=torch.Generator())
        >>> mask.shape, mask.flatten(1).sum(1)  # 8 of 16 blocks of 4 voxels
        (torch.Size([2, 1, 8, 8]), tensor([32, 32]))
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"The mask ratio must be at least 0 and less than 1, got {ratio}.")
    edges = [block_size] * len(spatial) if isinstance(block_size, int) else block_size
    if min(edges) < 1:
        raise ValueError(f"The block size of the mask must be at least 1 voxel, got {block_size}.")
    grid = [math.ceil(size / edge) for size, edge in zip(spatial, edges, strict=True)]
    blocks = math.prod(grid)
    # Every row of ranks is a permutation, so the number of hidden blocks is exact.
    ranks = torch.rand(batch_size, blocks, generator=generator).argsort(dim=1)
    mask = to_device((ranks < round(ratio * blocks)).view(batch_size, 1, *grid), device)
    for axis, (size, edge) in enumerate(zip(spatial, edges, strict=True), start=2):
        mask = mask.repeat_interleave(edge, dim=axis).narrow(axis, 0, size)
    return mask


def apply_mask(image: Tensor, mask: Tensor) -> Tensor:
    """Set the hidden voxels of an image to zero in all channels.

    Zero is the mean after nnU-Net's z-score and CT normalization; MIC uses the same value.

    Args:
        image: Images ``(B, C, *spatial)``, not modified. Gradient flows through the visible voxels.
        mask: Mask ``(B, 1, *spatial)``, bool, True where the image is hidden.

    Returns:
        Masked copy ``(B, C, *spatial)``.

    Examples:
        >>> apply_mask(torch.ones(1, 2, 3), torch.tensor([[[True, False, False]]]))
        tensor([[[0., 1., 1.],
                 [0., 1., 1.]]])
    """
    return image.masked_fill(mask, 0)


def sample_starts(edges: Tensor, spatial: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw the first voxel of each box; all places inside the image are equally likely.

    Args:
        edges: Size of each box in voxels ``(B, axes)``, int64, not larger than the image.
        spatial: Size of the two or three spatial axes in voxels.
        generator: Generator on the CPU.

    Returns:
        First voxel of each box ``(B, axes)``, int64.

    Examples:
        >>> sample_starts(torch.tensor([[4, 6]]), (4, 6), torch.Generator())  # as large as the image
        tensor([[0, 0]])
    """
    places = torch.as_tensor(spatial) - edges + 1
    # Rounding can lift the product to `places` itself, one past the last start.
    return (torch.rand(edges.shape, generator=generator) * places).long().minimum(places - 1)


def box_mask(starts: Tensor, edges: Tensor, spatial: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return a mask of the voxels inside each box.

    Args:
        starts: First voxel of each box ``(B, axes)``, int64.
        edges: Size of each box in voxels ``(B, axes)``, int64. A box with an edge of zero is empty.
        spatial: Size of the two or three spatial axes in voxels.
        device: Device of the returned mask. Only the bounds are copied there.

    Returns:
        Mask ``(B, 1, *spatial)``, bool, True inside the box.

    Examples:
        >>> box_mask(torch.tensor([[0, 1]]), torch.tensor([[1, 2]]), (2, 4)).int()
        tensor([[[[0, 1, 1, 0],
                  [0, 0, 0, 0]]]], dtype=torch.int32)
    """
    bounds = to_device(torch.stack((starts, starts + edges)), device)
    mask = torch.ones((len(starts), 1, *spatial), dtype=torch.bool, device=device)
    for axis, size in enumerate(spatial):
        position = torch.arange(size, device=device)
        start, stop = bounds[:, :, axis, None]
        inside = (position >= start) & (position < stop)
        mask &= inside.view(len(starts), 1, *(size if other == axis else 1 for other in range(len(spatial))))
    return mask


def sample_box(
    spatial: Sequence[int], share: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw one box at a random place, with the proportions of the image.

    Args:
        spatial: Size of the two or three spatial axes in voxels.
        share: Edge of the box as a share of the image, the same along every axis; rounded down to voxels.
        generator: Generator on the CPU.
        device: Device of the returned mask.

    Returns:
        Mask ``(1, 1, *spatial)``, bool, True inside the box.

    Examples:
        >>> sample_box((6, 9), share=2 / 3, generator=torch.Generator()).sum()  # 4 x 6 voxels
        tensor(24)
    """
    edges = torch.tensor([[int(size * share) for size in spatial]])
    return box_mask(sample_starts(edges, spatial, generator), edges, spatial, device)


def mix(first: Tensor, second: Tensor, box: Tensor, other_box: Tensor | None = None) -> Tensor:
    """Paste in both directions: ``first`` with the box of ``second``, followed by ``second`` with the box of ``first``.

    Args:
        first: Images, masks ``(B, channels, *spatial)`` or hard labels ``(B, *spatial)``.
        second: Batch of the same shape.
        box: Mask ``(1, 1, *spatial)``, bool, True inside the box.
        other_box: Mask for the second direction; the same by default.

    Returns:
        ``2 B`` samples.
    """
    boxes = box, box if other_box is None else other_box
    box, other_box = boxes if first.ndim == box.ndim else (each[:, 0] for each in boxes)
    return torch.cat((torch.where(box, second, first), torch.where(other_box, first, second)))
