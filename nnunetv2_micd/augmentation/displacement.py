"""Displacement: the largest region of low confidence in an image is replaced by a window of high confidence of another.

Boxes and windows follow from the confidence alone; nothing is drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cc3d
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunetv2_micd.augmentation.masks import box_mask
from nnunetv2_micd.utils.devices import to_device

CELL = 2
"""Edge, in voxels, of the cells in which boxes and windows are sought."""


class Displacement(NamedTuple):
    """What is replaced in a batch, on its device.

    Attributes:
        inside: ``(B, 1, *spatial)``, bool, True inside the box that is replaced.
        shift: Step from a voxel of the box to the voxel of the donor that replaces it ``(B, axes)``, int64.
    """

    inside: Tensor
    shift: Tensor


def low_confidence_boxes(low: Tensor, limit: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Find the box around the largest low-confidence region of each sample, cut to a largest size around its center.

    Voxels that touch at a corner are connected. The regions are found on the CPU, so the host waits for the device.

    Args:
        low: ``(B, *spatial)``, bool, True where the confidence is low.
        limit: Largest edge of a box along each axis.

    Returns:
        First voxel and size of each box ``(B, axes)``, int64, on the CPU; the size is zero where no confidence is low.

    Examples:
        >>> low = torch.tensor([[[0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]]]).bool()
        >>> low_confidence_boxes(low, limit=(2, 2))  # rows 0 and 1, columns 1 to 3
        (tensor([[0, 1]]), tensor([[2, 2]]))
    """
    axes = low.ndim - 1
    starts, edges = np.zeros((2, len(low), axes), np.int64)
    for sample, start, edge in zip(low.cpu().numpy(), starts, edges, strict=True):
        components = cc3d.connected_components(sample, connectivity=26 if axes == 3 else 8)
        sizes = np.bincount(components.ravel())[1:]
        if len(sizes):
            places = np.argwhere(components == np.argmax(sizes) + 1)
            first, whole = places.min(0), np.ptp(places, axis=0) + 1
            edge[:] = np.minimum(whole, limit)
            start[:] = first + (whole - edge) // 2
    return torch.from_numpy(starts), torch.from_numpy(edges)


def most_confident_windows(confidence: Tensor, edges: Tensor) -> Tensor:
    """Find the window of a given size with the highest mean confidence in each sample, the first of equal ones.

    Args:
        confidence: ``(B, *spatial)``, float32.
        edges: Size of each window ``(B, axes)``, int64, on the CPU. A size of zero counts as one.

    Returns:
        First voxel of each window ``(B, axes)``, int64, on the device of the confidence.

    Examples:
        >>> confidence = torch.tensor([[[0.5, 0.5, 1.0], [0.5, 0.9, 0.9]]])
        >>> most_confident_windows(confidence, torch.tensor([[2, 1]]))
        tensor([[0, 2]])
    """
    axes = confidence.ndim - 1
    pool = F.avg_pool3d if axes == 3 else F.avg_pool2d
    starts = []
    for sample, size in zip(confidence, edges.clamp_min(1).tolist(), strict=True):
        means = sample[None, None]
        for axis in range(axes):  # the mean over a box is one mean after the other
            means = pool(means, [size[axis] if other == axis else 1 for other in range(axes)], stride=1)
        place, start = means.argmax(), []
        for extent in reversed(means.shape[2:]):
            start.append(place % extent)
            place = place // extent
        starts.append(torch.stack(start[::-1]))
    return torch.stack(starts)


def find_displacement(
    confidence: Tensor, donor_confidence: Tensor, threshold: float, largest_edge: float
) -> Displacement:
    """Find the box to replace in each sample and the window of its donor that replaces it.

    Both are sought in cells of 2 voxels per axis, whose confidence is the mean of their voxels; an odd last voxel
    belongs to none.

    Args:
        confidence: Confidence of the samples ``(B, *spatial)``, float32.
        donor_confidence: Confidence of the donor of each sample, same shape.
        threshold: tau, below which the confidence of a cell is low.
        largest_edge: s, the largest edge of a box as a share of the edge of the sample.

    Examples:
        >>> confidence, donor_confidence = torch.ones(2, 1, 8, 8)
        >>> confidence[0, 2:4, 4:6] = 0.5
        >>> donor_confidence[0, :, :6] = 0.9
        >>> displacement = find_displacement(confidence, donor_confidence, threshold=0.6, largest_edge=0.5)
        >>> displacement.inside.sum(), displacement.shift
        (tensor(4), tensor([[-2,  2]]))
    """
    spatial = confidence.shape[1:]
    cell = [min(CELL, size) for size in spatial]
    pool = F.avg_pool3d if len(spatial) == 3 else F.avg_pool2d
    cells, donor_cells = (pool(each[:, None], cell)[:, 0] for each in (confidence, donor_confidence))
    limit = [max(1, int(largest_edge * size)) for size in cells.shape[1:]]
    starts, edges = low_confidence_boxes(cells < threshold, limit)
    voxels = torch.tensor(cell)
    inside = box_mask(starts * voxels, edges * voxels, spatial, confidence.device)
    windows = most_confident_windows(donor_cells, edges)
    starts, voxels = (to_device(each, confidence.device) for each in (starts, voxels))
    return Displacement(inside, (windows - starts) * voxels)


def displace(batch: Tensor, donors: Tensor, displacement: Displacement) -> Tensor:
    """Replace the box of each sample by the window of its donor.

    Args:
        batch: Images, masks ``(B, channels, *spatial)`` or hard labels ``(B, *spatial)``.
        donors: Donor of each sample, same shape.
        displacement: Boxes and windows.

    Returns:
        The same shape and type.

    Examples:
        >>> inside = torch.tensor([[[[False, True, True]]]])
        >>> displacement = Displacement(inside, shift=torch.tensor([[0, -1]]))
        >>> displace(torch.tensor([[[1, 2, 3]]]), torch.tensor([[[4, 5, 6]]]), displacement)
        tensor([[[1, 4, 5]]])
    """
    inside, shift = displacement
    first_axis = batch.ndim - shift.shape[1]
    # The window is moved onto the box with the whole donor around it, by indices that stay on the device.
    for axis, steps in enumerate(shift.unbind(1), start=first_axis):
        size = batch.shape[axis]
        index = (torch.arange(size, device=batch.device) + steps[:, None]).clamp(0, size - 1)
        shape = [size if other == axis else 1 for other in range(1, batch.ndim)]
        donors = donors.take_along_dim(index.view(-1, *shape), axis)
    return torch.where(inside if first_axis == 2 else inside[:, 0], donors, batch)
