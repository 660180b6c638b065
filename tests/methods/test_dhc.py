"""Dual-debiased heterogeneous co-training: where its class weights come from and go to, and that it trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import BOTH, REGIONS, TinyDataset, make_trainer, relabel

from nnunetv2_micd.losses.class_weights import DifficultyWeights
from nnunetv2_micd.losses.dice import hard_dice
from nnunetv2_micd.methods.dhc import nnUNetTrainerDHC
from nnunetv2_micd.training.label_counts import count_labels
from nnunetv2_micd.training.networks import forward_with_features


def start(dataset: TinyDataset, configuration: str = "3d_fullres") -> Any:
    trainer = make_trainer(nnUNetTrainerDHC, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def batches(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


def logits_of(trainer: Any, labeled: dict[str, Any], unlabeled: torch.Tensor) -> list[torch.Tensor]:
    images = torch.cat((labeled["data"], unlabeled))
    return [forward_with_features(trainer.students[name], images)[0] for name in "ab"]


def rarity(counts: torch.Tensor) -> torch.Tensor:
    """W_dist written down once more."""
    logarithm = (counts.max() / counts).log()
    return len(counts) * logarithm / logarithm.max()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_difficulty_weighs_a_and_distribution_weighs_b(configuration: str, dataset: TinyDataset) -> None:
    """The weights of the step itself, as in torch's weighted cross entropy, which the authors use."""
    trainer = start(dataset, configuration)
    labeled, unlabeled = batches(trainer)
    before = trainer.distribution.weights
    losses = next(trainer.compute_losses(labeled, unlabeled)).named
    assert set(losses) == {"supervised", "supervised_b", "cps"}

    a, b = logits_of(trainer, labeled, unlabeled)
    truth = labeled["target"][0][:, 0]
    weight_a = DifficultyWeights(3, 50).update(hard_dice(a[: len(truth)].argmax(1), truth, 3))
    counts = torch.bincount(b[len(truth) :].argmax(1).flatten(), minlength=3) + 1e-8
    weight_b = 0.99 * before + 0.01 * rarity(counts)
    assert len(weight_a.unique()) > 1
    expected = F.cross_entropy(a, b.argmax(1), weight_a) + F.cross_entropy(b, a.argmax(1), weight_b)
    torch.testing.assert_close(losses["cps"], expected)


def test_distribution_starts_from_the_labels(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    labels = np.concatenate(
        [trainer.labeled_cases.load_case(c)[1][:].ravel() for c in trainer.labeled_cases.identifiers]
    )
    counts = torch.tensor([(labels == k).sum() for k in range(3)])
    counted, num_voxels = count_labels(trainer.labeled_cases, trainer.label_manager)
    assert torch.equal(counted, counts)
    assert num_voxels is None
    torch.testing.assert_close(trainer.distribution.weights, rarity(counts.float()))
    assert trainer.distribution.weights[0] == 0  # the background


def test_labels_of_regions_are_counted_without_ignored_voxels(dataset: TinyDataset) -> None:
    relabel(dataset, BOTH, annotated_slices=6)
    trainer = start(dataset)
    labels = [trainer.labeled_cases.load_case(case)[1][:] for case in trainer.labeled_cases.identifiers]
    expected = [sum(np.isin(one, values).sum() for one in labels) for values in ([1, 2], [2])]
    counts, num_voxels = count_labels(trainer.labeled_cases, trainer.label_manager)
    assert counts.tolist() == expected
    assert num_voxels == sum((one <= 2).sum() for one in labels)
    assert trainer.distribution.weights.min() > 0  # the largest region counts, too
    record = trainer.train_step(next(trainer.dataloader_train))
    assert all(np.isfinite(value) for value in record.values())


def test_loss_of_regions_weighs_regions(dataset: TinyDataset) -> None:
    relabel(dataset, REGIONS)
    trainer = start(dataset)
    labeled, unlabeled = batches(trainer)
    losses = next(trainer.compute_losses(labeled, unlabeled)).named
    a, b = logits_of(trainer, labeled, unlabeled)

    def loss_of(logits: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        bce = F.binary_cross_entropy_with_logits(logits, (other > 0).float(), reduction="none")
        return (weights * bce.mean((0, 2, 3, 4))).sum() / weights.sum()

    expected = loss_of(a, b, trainer.difficulty.weights) + loss_of(b, a, trainer.distribution.weights)
    torch.testing.assert_close(losses["cps"], expected)


def test_supervised_loss_is_weighed_as_the_unsupervised_one(dataset: TinyDataset) -> None:
    """The authors' loss: weighted cross entropy, the mean of weight times one minus Dice over the foreground."""
    trainer = start(dataset)
    labeled, unlabeled = batches(trainer)
    losses = next(trainer.compute_losses(labeled, unlabeled)).named
    truth = labeled["target"][0][:, 0].long()
    onehot = F.one_hot(truth, 3).movedim(-1, 1)
    outputs = [trainer.students[name](labeled["data"])[0] for name in "ab"]  # the coarser one has no weight in nnU-Net
    weights = trainer.difficulty.weights, trainer.distribution.weights
    for name, output, weight in zip(("supervised", "supervised_b"), outputs, weights, strict=True):
        p = output.softmax(1)
        axes = (2, 3, 4)
        dice = (2 * (p * onehot).sum(axes) + 1e-5) / (p.sum(axes) + onehot.sum(axes) + 1e-5)
        expected = F.cross_entropy(output, truth, weight) + (weight * (1 - dice))[:, 1:].mean() - 1
        torch.testing.assert_close(losses[name], expected)


def test_supervised_loss_of_regions_is_weighed(dataset: TinyDataset) -> None:
    relabel(dataset, REGIONS)
    trainer = start(dataset)
    labeled, unlabeled = batches(trainer)
    losses = next(trainer.compute_losses(labeled, unlabeled)).named
    truth, output = labeled["target"][0].float(), trainer.students["b"](labeled["data"])[0]
    weight, p, axes = trainer.distribution.weights, output.sigmoid(), (2, 3, 4)
    dice = (2 * (p * truth).sum(axes) + 1e-5) / (p.sum(axes) + truth.sum(axes) + 1e-5)
    bce = F.binary_cross_entropy_with_logits(output, truth, reduction="none").mean((0, *axes))
    torch.testing.assert_close(
        losses["supervised_b"], (weight * bce).sum() / weight.sum() + (weight * (1 - dice)).mean() - 1
    )


def test_patches_of_background_alone_are_finite(dataset: TinyDataset) -> None:
    """Whose only class has no weight for B."""
    trainer = start(dataset)
    labeled, unlabeled = batches(trainer)
    for target in labeled["target"]:
        target[:] = 0
    assert trainer.distribution.weights[0] == 0
    assert all(loss.isfinite() for loss in next(trainer.compute_losses(labeled, unlabeled)).named.values())


def test_gradients_are_those_of_the_whole_loss(dataset: TinyDataset) -> None:
    """Of labeled and unlabeled images, though the graphs of the latter are built afterwards, one at a time."""
    trainer = start(dataset)
    labeled, unlabeled = batches(trainer)
    for group in trainer.compute_losses(labeled, unlabeled):
        group.unsupervised["cps"].backward()
    a, b = logits_of(trainer, labeled, unlabeled)
    weights = trainer.difficulty.weights, trainer.distribution.weights
    own_terms = F.cross_entropy(a, b.argmax(1), weights[0]), F.cross_entropy(b, a.argmax(1), weights[1])
    for student, term in zip(trainer.students.values(), own_terms, strict=True):
        parameters = [parameter for parameter in student.parameters() if parameter.grad is not None]
        expected = torch.autograd.grad(term, parameters)
        assert any(gradient.any() for gradient in expected)
        torch.testing.assert_close([parameter.grad for parameter in parameters], list(expected), rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for teacher in trainer.teachers.values() for p in teacher.parameters())


def test_class_weights_are_continued_from_a_checkpoint(dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = start(dataset)
    trainer.train_step(next(trainer.dataloader_train))
    checkpoint = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(checkpoint)
    other = make_trainer(nnUNetTrainerDHC, dataset)
    other.load_checkpoint(checkpoint)
    for weights in ("difficulty", "distribution"):
        saved, loaded = (getattr(each, weights).state_dict() for each in (trainer, other))
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in saved.items())
