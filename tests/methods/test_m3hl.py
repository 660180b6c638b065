from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import PATCH_SIZE, TinyDataset, make_trainer
from torch import Tensor

from nnunetv2_micd.methods.m3hl import nnUNetTrainerM3HL
from nnunetv2_micd.training.networks import forward_with_outputs


def start(dataset: TinyDataset, configuration: str = "3d_fullres", **changed: Any) -> Any:
    trainer = make_trainer(nnUNetTrainerM3HL, dataset, configuration)
    trainer.config = replace(trainer.config, **changed)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def test_half_of_the_blocks_of_each_pair_change_places(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    images = torch.randn(3, 1, *PATCH_SIZE)
    region = trainer.sample_region(images)
    assert region.shape == images.shape
    assert region.flatten(1).sum(1).tolist() == [images[0].numel() // 2] * 3  # 16 x 20 x 24 is four blocks each way
    blocks = region.view(3, 4, 4, 4, 5, 4, 6).movedim((2, 4, 6), (4, 5, 6)).flatten(4)
    assert ((blocks.all(-1)) | (~blocks.any(-1))).all()
    assert not torch.equal(region[0], region[1])


def test_feature_losses_compare_both_mixed_images_with_the_teacher(dataset: TinyDataset) -> None:
    trainer = start(dataset, feature_weight=3.0)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    with torch.no_grad():  # a teacher that is not the student
        for parameter in trainer.teachers["a"].parameters():
            parameter.mul_(1.1)
    (group,) = trainer.compute_losses(labeled, unlabeled)
    mixed, _ = trainer.last_mixed
    with torch.no_grad():
        _, (high, *_, low) = forward_with_outputs(trainer.students["a"], mixed)
        _, (teacher_high, *_, teacher_low) = forward_with_outputs(trainer.teachers["a"], unlabeled)

    def cosine_distance(part: Tensor, teacher: Tensor) -> Tensor:
        part, teacher = part.flatten(1), teacher.flatten(1)
        return 1 - ((part * teacher).sum(1) / part.norm(dim=1) / teacher.norm(dim=1)).mean()

    def absolute_distance(part: Tensor, teacher: Tensor) -> Tensor:
        return (part - teacher).abs().mean()

    expected = [
        1.5 * sum(distance(part, teacher) for part in student.chunk(2)) / 2
        for distance, student, teacher in (
            (cosine_distance, high, teacher_high),
            (absolute_distance, low, teacher_low),
        )
    ]
    assert group.unsupervised["high_level"].item() == pytest.approx(expected[0].item(), rel=1e-4)
    assert group.unsupervised["low_level"].item() == pytest.approx(expected[1].item(), rel=1e-4)


def test_there_is_no_pretraining(dataset: TinyDataset) -> None:
    assert not start(dataset).is_pretraining


def test_an_axis_shorter_than_four_voxels_has_fewer_blocks(dataset: TinyDataset) -> None:
    region = start(dataset).sample_region(torch.zeros(1, 1, 2, 8, 8))
    assert region.sum() == region.numel() // 2
