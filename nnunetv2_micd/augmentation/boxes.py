"""Boxes at random places, for methods that paste a part of one image into another."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sample_starts(edges: Tensor, spatial: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw where boxes begin, all places inside the image being equally likely.

    Args:
        edges: ``(B, axes)``, int64, the size of each box in voxels, not larger than the image.
        spatial: size of the two or three spatial axes in voxels.
        generator: CPU generator.

    Returns:
        ``(B, axes)``, int64, the first voxel of each box.
    """
    places = torch.as_tensor(spatial) - edges + 1
    return (torch.rand(edges.shape, generator=generator) * places).long().minimum(places - 1)


def box_mask(starts: Tensor, edges: Tensor, spatial: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Mark the voxels of boxes.

    Args:
        starts: ``(B, axes)``, int64, the first voxel of each box.
        edges: ``(B, axes)``, int64, the size of each box in voxels; an edge of zero is an empty box.
        spatial: size of the two or three spatial axes in voxels.
        device: where the mask is needed; nothing but the bounds is copied there.

    Returns:
        Boolean ``(B, 1, *spatial)``, True inside.
    """
    bounds = torch.stack((starts, starts + edges)).to(device)
    mask = torch.ones((len(starts), 1, *spatial), dtype=torch.bool, device=device)
    for axis, size in enumerate(spatial):
        position = torch.arange(size, device=device)
        start, stop = bounds[:, :, axis, None]
        inside = (position >= start) & (position < stop)
        mask &= inside.view(len(starts), 1, *(size if other == axis else 1 for other in range(len(spatial))))
    return mask
