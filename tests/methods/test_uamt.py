"""Uncertainty-aware Mean Teacher: entropy, masked consistency and threshold by hand, and that it trains."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, TinyDataset, make_trainer, relabel

from nnunetv2_micd.losses.consistency import mean_teacher_consistency
from nnunetv2_micd.methods.uamt import certain_consistency, is_certain, nnUNetTrainerUAMT

# Two voxels, two classes: softmax of (log 3, 0) is (3/4, 1/4), of (0, 0) it is (1/2, 1/2).
A = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
ENTROPY_75 = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)  # as a share of the largest, ln 2


def start(dataset: TinyDataset, configuration: str = "3d_fullres") -> Any:
    trainer = make_trainer(nnUNetTrainerUAMT, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize(("below", "expected"), [(ENTROPY_75 + 1e-4, [True, False]), (ENTROPY_75 - 1e-4, [False] * 2)])
def test_certain_is_an_entropy_below_the_share_of_its_largest(below: float, expected: list[bool]) -> None:
    assert is_certain(A.softmax(1), below).tolist() == [[expected]]


@pytest.mark.parametrize("classes", [2, 3, 4, 16])
def test_a_voxel_between_two_classes_is_not_certain(classes: int) -> None:
    """Not before the end of the ramp-up, whatever the number of classes: its entropy is ln 2."""
    between_two = torch.tensor([0.5, 0.5, *[0.0] * (classes - 2)]).reshape(1, classes, 1)
    assert not is_certain(between_two, 0.75).any()
    assert not is_certain(between_two, 0.999).any()
    assert is_certain(torch.tensor([1.0, *[0.0] * (classes - 1)]).reshape(1, classes, 1), 1e-6).all()


def test_squared_differences_of_many_classes_are_halved() -> None:
    """As the authors' sum(mask * (p - q)^2) / (2 * sum(mask)), in their ports to many classes too."""
    student, teacher = random_logits(2, 5, 4, 4), random_logits(2, 5, 4, 4, seed=1)
    certain = is_certain(teacher.softmax(1), 1.9)
    assert certain.any()
    assert not certain.all()
    distance = (student.softmax(1) - teacher.softmax(1)) ** 2
    expected = (certain * distance).sum() / (2 * certain.sum())
    torch.testing.assert_close(certain_consistency(student, teacher, certain), expected)


def test_each_region_is_certain_by_itself() -> None:
    mean = torch.tensor([[[0.75, 0.5], [0.0, 0.25]]])
    assert is_certain(mean, ENTROPY_75 + 1e-4, regions=True).tolist() == [[[True, False], [True, True]]]
    assert is_certain(mean, 0.5, regions=True).tolist() == [[[False, False], [True, False]]]


def test_consistency_is_the_mean_over_certain_voxels() -> None:
    other = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])  # (1/2, 1/2) and (1/4, 3/4)
    student = torch.cat((A, A), 2)
    teacher = torch.cat((other, A), 2)
    every, first, none = (torch.tensor(mask).reshape(1, 1, 4) for mask in ([1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]))
    assert certain_consistency(student, teacher, every.bool()).item() == pytest.approx(0.25**2 / 2)
    assert certain_consistency(student, teacher, first.bool()).item() == pytest.approx(0.25**2 / 2)
    assert certain_consistency(student, teacher, every.bool()) == mean_teacher_consistency(student, teacher)
    only_different = torch.tensor([True, True, False, False]).reshape(1, 1, 4)
    assert certain_consistency(student, teacher, only_different).item() == pytest.approx(0.25**2)
    assert certain_consistency(student, teacher, none.bool()).item() == 0


def test_consistency_of_regions_counts_each_region_where_it_is_certain() -> None:
    # sigmoids 3/4 and 1/2 in region 0, 1/2 and 1/2 in region 1, against 1/2 everywhere
    certain = torch.tensor([[[True, False], [False, True]]])
    loss = certain_consistency(A, torch.zeros_like(A), certain, regions=True)
    assert loss.item() == pytest.approx(0.25**2 / 2)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(6, 5), (2, 3, 4)])
def test_gradient_reaches_certain_voxels_of_the_student_only(spatial: tuple[int, ...], regions: bool) -> None:
    student, teacher = random_logits(2, 3, *spatial), random_logits(2, 3, *spatial, seed=1)
    certain = is_certain(teacher.softmax(1).detach(), 0.6, regions)
    assert certain.shape == (2, 3 if regions else 1, *spatial)
    assert certain.any()
    assert not certain.all()
    certain_consistency(student, teacher, certain, regions).backward()
    assert torch.equal(student.grad != 0, certain.expand_as(student))
    assert teacher.grad is None


def test_nothing_certain_keeps_the_graph_and_float16_is_finite() -> None:
    student = (random_logits(1, 2, 30, 30) * 1e4).half().detach().requires_grad_()
    loss = certain_consistency(student, -student.detach(), torch.zeros(1, 1, 30, 30, dtype=torch.bool))
    loss.backward()
    assert not student.grad.any()
    loss = certain_consistency(student, -student.detach(), torch.ones(1, 1, 30, 30, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_threshold_rises_over_the_training(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerUAMT, dataset)
    shares = []
    for trainer.iteration in (0, 2, 4):
        shares.append(trainer._certain_below())
    assert shares == pytest.approx([0.75 + 0.25 * math.exp(-5), 0.75 + 0.25 * math.exp(-1.25), 1])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_student_learns_from_teacher(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    with torch.no_grad():  # so that it is certain anywhere
        trainer.teachers["a"].decoder.seg_layers[-1].weight *= 20
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    _, unsupervised = (losses.named for losses in trainer.compute_losses(labeled, unlabeled))
    assert set(unsupervised) == {"consistency"}
    unsupervised["consistency"].backward()
    assert next(iter(trainer.students["a"].encoder.parameters())).grad.any()
    assert all(parameter.grad is None for parameter in trainer.teachers["a"].parameters())
    assert 0 < trainer.metrics["certain"] <= 1


def test_regions_and_ignore_label(dataset: TinyDataset) -> None:
    relabel(dataset, BOTH, annotated_slices=6)
    trainer = start(dataset)
    record = trainer.train_step(next(trainer.dataloader_train))
    assert all(np.isfinite(value) for value in record.values())
    panels = trainer.picture_panels(trainer._last_unlabeled)
    assert panels["teacher is uncertain"].shape == trainer._last_unlabeled[:, 0].shape
