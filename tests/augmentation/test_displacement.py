"""Displacement: boxes, windows and the images that come of them by hand, in two and three dimensions."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunetv2_micd.augmentation.displacement import (
    Displacement,
    displace,
    find_displacement,
    low_confidence_boxes,
    most_confident_windows,
)


def test_box_is_around_the_largest_region() -> None:
    low = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 1],  # touches at a corner
            [0, 0, 0, 0, 1, 1],
        ]
    ).bool()
    starts, edges = low_confidence_boxes(torch.stack((low, ~low)), limit=(9, 9))
    assert starts.tolist() == [[1, 3], [0, 0]]
    assert edges.tolist() == [[3, 3], [4, 6]]


def test_box_is_cut_around_its_center() -> None:
    low = torch.zeros(1, 6, 7, 9, dtype=torch.bool)
    low[0, 2, 1:6, 3] = True  # 5 long, from 1: center 3
    low[0, 2, 3, 2:8] = True  # 6 long, from 2: voxels 4 and 5 are the middle
    low[0, 5, 6, 0] = True  # a smaller region
    for limit, start, edge in (
        ((9, 9, 9), [2, 1, 2], [1, 5, 6]),
        ((1, 3, 2), [2, 2, 4], [1, 3, 2]),
        ((1, 1, 3), [2, 3, 3], [1, 1, 3]),
    ):
        starts, edges = low_confidence_boxes(low, limit)
        assert (starts.tolist(), edges.tolist()) == ([start], [edge])


def test_no_box_without_low_confidence() -> None:
    starts, edges = low_confidence_boxes(torch.zeros(2, 3, 3, dtype=torch.bool), limit=(2, 2))
    assert starts.tolist() == edges.tolist() == [[0, 0]] * 2


def test_window_of_highest_mean() -> None:
    confidence = torch.full((2, 3, 4), 0.5)
    confidence[0, 0, 0] = 1.0  # the highest single confidence, mean of its window 2.5 / 4
    confidence[0, 1:3, 2:4] = 0.8
    confidence[1, 2, 1] = 0.6
    assert most_confident_windows(confidence, torch.tensor([[2, 2], [1, 1]])).tolist() == [[1, 2], [2, 1]]
    # the whole axis, and an empty box, which counts as one voxel
    assert most_confident_windows(confidence, torch.tensor([[3, 1], [0, 0]])).tolist() == [[0, 2], [2, 1]]


def test_first_of_equal_windows() -> None:
    assert most_confident_windows(torch.ones(1, 4, 5, 6), torch.tensor([[2, 3, 2]])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("spatial", [(7, 9), (5, 6, 8)])
def test_windows_and_boxes_agree_with_scipy(spatial: tuple[int, ...]) -> None:
    confidence = torch.rand(4, *spatial, generator=torch.Generator().manual_seed(0))
    limit = [size // 2 for size in spatial]
    starts, edges = low_confidence_boxes(confidence < 0.3, limit)
    sources = most_confident_windows(confidence, edges)
    for sample, start, edge, source in zip(confidence.numpy(), starts, edges.tolist(), sources, strict=True):
        regions, number = ndimage.label(sample < 0.3, np.ones([3] * len(spatial)))
        largest = 1 + np.argmax(ndimage.sum_labels(np.ones(spatial), regions, range(1, number + 1)))
        for axis, bounds in enumerate(ndimage.find_objects(regions)[largest - 1]):
            whole = bounds.stop - bounds.start
            assert edge[axis] == min(whole, limit[axis])
            assert start[axis] == bounds.start + (whole - edge[axis]) // 2
        windows = np.lib.stride_tricks.sliding_window_view(sample, edge)
        means = windows.mean(tuple(range(len(spatial), 2 * len(spatial))))
        assert means[tuple(source)] == pytest.approx(means.max(), rel=1e-6)


def make_displacement(spatial: tuple[int, ...], start: list[int], edge: list[int], source: list[int]) -> Displacement:
    """Return a displacement of the first sample; nothing of the second is replaced."""
    inside = torch.zeros(2, 1, *spatial, dtype=torch.bool)
    inside[0, 0][tuple(slice(first, first + size) for first, size in zip(start, edge, strict=True))] = True
    shift = torch.tensor(source) - torch.tensor(start)
    return Displacement(inside, torch.stack((shift, torch.zeros_like(shift))))


def test_displaced_image_by_hand() -> None:
    image, donor = torch.arange(12).view(1, 1, 3, 4), torch.arange(100, 112).view(1, 1, 3, 4)
    displacement = make_displacement((3, 4), start=[0, 2], edge=[2, 2], source=[1, 0])
    displaced = displace(image.repeat(2, 2, 1, 1), donor.repeat(2, 2, 1, 1), displacement)
    expected = torch.tensor([[0, 1, 104, 105], [4, 5, 108, 109], [8, 9, 10, 11]])
    assert torch.equal(displaced[0], expected.expand(2, 3, 4))
    assert torch.equal(displaced[1], image[0].expand(2, 3, 4))


@pytest.mark.parametrize("source", [[0, 0, 0], [1, 2, 3], [3, 1, 5]])
def test_image_and_labels_move_together(source: list[int]) -> None:
    spatial, start, edge = (5, 4, 8), [2, 0, 4], [2, 2, 3]
    generator = torch.Generator().manual_seed(0)
    labels, other = torch.randint(0, 3, (2, 2, *spatial), generator=generator).to(torch.int16)
    displacement = make_displacement(spatial, start, edge, source)
    displaced = displace(labels, other, displacement)
    expected = labels.clone()
    expected[0, 2:4, 0:2, 4:7] = other[0][tuple(slice(s, s + e) for s, e in zip(source, edge, strict=True))]
    assert torch.equal(displaced, expected)
    assert displaced.dtype == torch.int16
    images, other_images = labels[:, None].float(), other[:, None].float()
    assert torch.equal(displace(images, other_images, displacement)[:, 0], expected.float())
    masks, other_masks = torch.stack((labels > 0, labels > 1), 1), torch.stack((other > 0, other > 1), 1)
    assert torch.equal(displace(masks, other_masks, displacement), torch.stack((expected > 0, expected > 1), 1))


def test_gradient_comes_from_where_a_voxel_comes_from() -> None:
    image, donor = torch.ones(2, 1, 3, 4, requires_grad=True), torch.ones(2, 1, 3, 4, requires_grad=True)
    displace(image, donor, make_displacement((3, 4), start=[0, 2], edge=[2, 2], source=[1, 0])).sum().backward()
    assert image.grad[:, 0].tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], [[1] * 4] * 3]
    assert donor.grad[:, 0].tolist() == [[[0] * 4, [1, 1, 0, 0], [1, 1, 0, 0]], [[0] * 4] * 3]


@pytest.mark.parametrize("last", [8, 9])
def test_search_is_in_cells_of_two_voxels(last: int) -> None:
    """An odd last voxel is in no cell."""
    confidence, donor = torch.ones(1, 6, last), torch.full((1, 6, last), 0.5)
    confidence[0, 0, 7] = 0.0  # cell (0, 3), mean 3/4
    confidence[0, :, 8:] = 0.0
    donor[0, 2:4, 1] = 1.0  # cell (1, 0), mean 3/4
    donor[0, :, 8:] = 1.0
    inside, shift = find_displacement(confidence, donor, threshold=0.76, largest_edge=1.0)
    assert inside.nonzero().tolist() == [[0, 0, row, column] for row in (0, 1) for column in (6, 7)]
    assert shift.tolist() == [[2, -6]]
    assert not find_displacement(confidence, donor, threshold=0.75, largest_edge=1.0).inside.any()


def test_size_of_the_box_is_limited() -> None:
    confidence = torch.zeros(1, 8, 12, 1)
    for share, expected in ((1.0, (8, 12, 1)), (0.5, (4, 6, 1)), (0.3, (2, 2, 1)), (0.01, (2, 2, 1))):
        inside, _ = find_displacement(confidence, torch.ones_like(confidence), threshold=0.5, largest_edge=share)
        places = inside.nonzero()[:, 2:]
        assert tuple((places.amax(0) - places.amin(0) + 1).tolist()) == expected
        assert len(places) == np.prod(expected)
