import math

import pytest
import torch

from nnunetv2_micd.losses.labels import (
    class_masks,
    count_classes,
    differing,
    foreground_share,
    hard_target,
    label_map,
    probabilities,
    pseudo_label,
)

CLASSES = torch.tensor([[[0, 1], [2, 3]]])
REGIONS = torch.tensor([[[[True, False]], [[True, True]]]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_probabilities_of_classes_and_of_regions(dtype: torch.dtype) -> None:
    logits = torch.tensor([[[math.log(3.0), 1e4], [0.0, -1e4]]], dtype=dtype)
    for regions, expected in ((False, [[3 / 4, 1], [1 / 4, 0]]), (True, [[3 / 4, 1], [1 / 2, 0]])):
        values = probabilities(logits, regions)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, torch.tensor([expected]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 5)])
def test_pseudo_label_is_the_argmax_without_gradient(spatial: tuple[int, ...]) -> None:
    logits = torch.randn(2, 3, *spatial, requires_grad=True)
    label = pseudo_label(logits)
    assert label.dtype == torch.int16
    assert torch.equal(label, logits.argmax(1).to(torch.int16))
    assert not label.requires_grad


def test_pseudo_labels_of_regions_are_masks() -> None:
    logits = torch.tensor([[[1.0, -1.0], [2.0, 0.0]]], requires_grad=True)
    label = pseudo_label(logits, regions=True)
    assert label.tolist() == [[[True, False], [True, False]]]
    assert not label.requires_grad


def test_target_of_classes_and_of_regions() -> None:
    labels, ignored = hard_target(CLASSES[:, None], False, None)
    assert torch.equal(labels, CLASSES)
    assert ignored is None
    _, ignored = hard_target(CLASSES[:, None], False, 3)
    assert ignored.tolist() == [[[False, False], [False, True]]]
    labels, ignored = hard_target(REGIONS, True, None)
    assert torch.equal(labels, REGIONS)
    assert ignored is None
    labels, ignored = hard_target(REGIONS, True, 3)  # the last channel is the ignore label
    assert labels.tolist() == [[[[True, False]]]]
    assert ignored.tolist() == [[[True, True]]]


def test_foreground_differences_and_maps() -> None:
    assert foreground_share(CLASSES) == 0.75
    assert foreground_share(REGIONS) == 1
    assert differing(CLASSES, torch.ones_like(CLASSES)).tolist() == [[[True, False], [True, True]]]
    assert differing(REGIONS, REGIONS.flip(1)).tolist() == [[[False, True]]]  # as many regions, but others
    assert label_map(REGIONS).tolist() == [[[2, 1]]]
    assert label_map(CLASSES) is CLASSES


def test_masks_and_counts_leave_out_what_is_no_class() -> None:
    labels = torch.tensor([[[-1, 0], [2, 3]]])
    assert class_masks(labels, 3).tolist() == [[[[0, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [1, 0]]]]
    assert count_classes(labels, 3).tolist() == [1, 0, 1]


def test_masks_and_counts_of_regions() -> None:
    assert class_masks(REGIONS, 2).tolist() == [[[[1, 0]], [[1, 1]]]]
    assert count_classes(REGIONS, 2).tolist() == [1, 2]
