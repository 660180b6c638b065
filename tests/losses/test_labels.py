import torch

from nnunetv2_micd.losses.labels import differing, foreground_share, hard_target, label_map

CLASSES = torch.tensor([[[0, 1], [2, 3]]])
REGIONS = torch.tensor([[[[True, False]], [[True, True]]]])


def test_target_of_classes_and_of_regions():
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


def test_foreground_differences_and_maps():
    assert foreground_share(CLASSES) == 0.75
    assert foreground_share(REGIONS) == 1
    assert differing(CLASSES, torch.ones_like(CLASSES)).tolist() == [[[True, False], [True, True]]]
    assert differing(REGIONS, REGIONS.flip(1)).tolist() == [[[False, True]]]  # as many regions, but others
    assert label_map(REGIONS).tolist() == [[[2, 1]]]
    assert label_map(CLASSES) is CLASSES
