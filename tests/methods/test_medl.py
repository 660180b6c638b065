"""MEDL: its weighted loss by hand, the step put together from its parts, and that it learns."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, TinyDataset, make_trainer, relabel

from nnunetv2_micd.losses.evidential import curriculum_weight, fisher_evidential_loss, fuse, opinion, reliability
from nnunetv2_micd.losses.labels import class_masks
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL, weighted_dice_cross_entropy
from nnunetv2_micd.training.networks import forward_with_features, full_resolution

LOG3 = math.log(3.0)


def start(dataset: TinyDataset, configuration: str = "3d_fullres") -> Any:
    trainer = make_trainer(nnUNetTrainerMEDL, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_weighted_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [LOG3, LOG3, -LOG3]]])  # foreground 3/4, 3/4, 1/4
    labels, weight = torch.tensor([[1, 0, 5]]), torch.tensor([[0.5, 2.0, 0.0]])
    entropy = (0.5 * math.log(4 / 3) + 2 * math.log(4)) / 2  # two voxels count
    dice = 2 * 0.5 * 0.75 / (0.5 * (0.75 + 1) + 2 * 0.75)
    value = weighted_dice_cross_entropy(logits, labels, weight).item()
    assert value == pytest.approx(entropy + 1 - dice, abs=1e-4)


def test_weighted_loss_of_regions_by_hand() -> None:
    logits = torch.tensor([[[LOG3, LOG3], [-LOG3, 0.0]]])
    masks = torch.tensor([[[True, False], [False, True]]])
    weight = torch.tensor([[[1.0, 2.0], [0.0, 0.5]]])
    entropy = (math.log(4 / 3) + 2 * math.log(4) + 0.5 * math.log(2)) / 3
    dice = (2 * 0.75 / (0.75 + 1 + 2 * 0.75) + 2 * 0.25 / (0.25 + 0.5)) / 2
    value = weighted_dice_cross_entropy(logits, masks, weight).item()
    assert value == pytest.approx(entropy + 1 - dice, abs=1e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_weighted_loss_with_ones_is_nnunets_and_without_weight_nothing(regions: bool, dataset: TinyDataset) -> None:
    """nnU-Net's Dice loss is minus the Dice, so it is one less."""
    if regions:
        relabel(dataset, {"labels": {"background": 0, "whole": [1, 2], "second": 2}, "regions_class_order": [1, 2]})
    trainer = make_trainer(nnUNetTrainerMEDL, dataset)
    trainer.initialize()
    loss = trainer.loss.loss
    loss.dc.batch_dice = True
    logits = random_logits(2, trainer.label_manager.num_segmentation_heads, 5, 6, 7)
    labels = torch.rand(2, 2, 5, 6, 7) > 0.5 if regions else torch.randint(3, (2, 5, 6, 7))
    value = weighted_dice_cross_entropy(logits, labels, torch.ones(labels.shape))
    stock = loss(logits, labels.float() if regions else labels[:, None])
    assert value.item() == pytest.approx(stock.item() + 1, rel=1e-4)
    value = weighted_dice_cross_entropy(logits, labels, torch.zeros(labels.shape))
    value.backward()
    assert value == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("regions", [False, True])
def test_gradient_of_the_weighted_loss_is_where_the_weight_is(regions: bool) -> None:
    logits = random_logits(2, 3, 4, 5)
    labels = torch.rand(2, 3, 4, 5) > 0.5 if regions else torch.randint(3, (2, 4, 5))
    weight = torch.rand(labels.shape) * (torch.rand(labels.shape) > 0.3)
    weighted_dice_cross_entropy(logits, labels, weight).backward()
    expected = (weight > 0) if regions else (weight > 0)[:, None].expand_as(logits)
    assert torch.equal(logits.grad != 0, expected)


def test_extreme_float16_logits_stay_finite() -> None:
    for labels in (torch.randint(3, (2, 9, 9)), torch.rand(2, 3, 9, 9) > 0.5):
        logits = (1e4 * random_logits(2, 3, 9, 9)).detach().half().requires_grad_()
        value = weighted_dice_cross_entropy(logits, labels, torch.ones(labels.shape))
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_step_is_put_together_from_the_losses(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    trainer.iteration = 1  # a quarter of the training
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    on_labeled, on_unlabeled = trainer.compute_losses(labeled, unlabeled)
    assert set(on_labeled.supervised) == {"supervised", "supervised_b"}
    assert set(on_labeled.unsupervised) == {"weighted"}
    assert set(on_unlabeled.named) == set(on_unlabeled.unsupervised) == {"pseudo_label", "evidential"}
    assert trainer.unsupervised_weight == 1  # from the first step on, as in eq. 9
    losses = on_labeled.named | on_unlabeled.named
    on_labels, on_others = (
        [forward_with_features(trainer.students[name], images)[0] for name in "ab"]
        for images in (labeled["data"], unlabeled)
    )
    truth = full_resolution(labeled["target"])[:, 0]
    opinions = [opinion(logits) for logits in on_labels]
    mixed = [(one.uncertainty + fuse(*opinions).uncertainty) / 2 for one in opinions]
    expected = [
        weighted_dice_cross_entropy(logits, truth, curriculum_weight(uncertainty, 0.25, 0.5))
        for logits, uncertainty in zip(on_labels, mixed, strict=True)
    ]
    torch.testing.assert_close(losses["weighted"], sum(expected))
    fused = fuse(*(opinion(logits) for logits in on_others))
    labels, weight = fused.belief.argmax(1), curriculum_weight(fused.uncertainty, 0.25, 0.5)
    expected = [weighted_dice_cross_entropy(logits, labels, reliability(fused)) for logits in on_others]
    torch.testing.assert_close(losses["pseudo_label"], sum(expected))
    assert trainer.metrics["reliability"] == reliability(fused).mean()
    expected = [fisher_evidential_loss(logits, labels, weight, 0.005) for logits in on_others]
    torch.testing.assert_close(losses["evidential"], 0.1 * math.exp(-5 * 0.75**2) * sum(expected))
    for loss in losses.values():
        trainer.optimizer.zero_grad()
        loss.backward(retain_graph=True)
        learns = [next(iter(trainer.students[name].encoder.parameters())).grad for name in "ab"]
        both = loss is not losses["supervised"] and loss is not losses["supervised_b"]
        assert [gradient is not None and bool(gradient.any()) for gradient in learns] == (
            [True, True] if both else [loss is losses["supervised"], loss is losses["supervised_b"]]
        )


def test_weighted_loss_vanishes_with_the_unsupervised_weight(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    labeled = next(trainer.dataloader_train)
    assert [set(group.named) for group in trainer.compute_losses(labeled, None)] == [{"supervised", "supervised_b"}]
    trainer = make_trainer(nnUNetTrainerMEDL, dataset)
    trainer.config = replace(trainer.config, ramp_peak=0.0)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert trainer.dataloader_unlabeled is None
    assert {"weighted", "pseudo_label", "evidential"}.isdisjoint(trainer.train_step(labeled))


def test_regions_and_ignored_voxels(dataset: TinyDataset) -> None:
    relabel(dataset, BOTH, annotated_slices=6)
    trainer = start(dataset)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    record = trainer.train_step(labeled)
    assert all(np.isfinite(value) for value in record.values())
    panels = trainer.picture_panels(unlabeled)
    assert all(panel.shape == unlabeled[:, 0].shape for panel in panels.values())
    for target in labeled["target"]:
        target[:, -1] = 1
    losses = next(trainer.compute_losses(labeled, unlabeled)).named
    assert losses["weighted"] == 0


def test_ignored_voxels_of_classes(dataset: TinyDataset) -> None:
    relabel(dataset, {"labels": {"background": 0, "first": 1, "second": 2, "ignore": 3}}, annotated_slices=6)
    trainer = start(dataset)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    assert next(trainer.compute_losses(labeled, unlabeled)).named["weighted"] > 0
    for target in labeled["target"]:
        target.fill_(3)
    losses = next(trainer.compute_losses(labeled, unlabeled))
    assert losses.named["weighted"] == 0


def test_picture_does_not_disturb_the_training(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    states = trainer.generator.get_state(), torch.get_rng_state()
    panels = trainer.picture_panels(next(trainer.dataloader_unlabeled)["data"])
    assert torch.equal(trainer.generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    assert panels["reliability"].is_floating_point()
    assert not panels["fused label"].is_floating_point()


@pytest.mark.slow
@pytest.mark.parametrize("regions", [False, True])
def test_it_learns(regions: bool, dataset: TinyDataset) -> None:
    if regions:
        relabel(dataset, {"labels": {"background": 0, "whole": [1, 2], "second": 2}, "regions_class_order": [1, 2]})
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = make_trainer(nnUNetTrainerMEDL, dataset)
    trainer.num_iterations_per_epoch = 40
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    truth, _ = trainer.hard_target(full_resolution(batch["target"]))

    def dice() -> float:
        with torch.no_grad():
            predicted = trainer.pseudo_label(forward_with_features(trainer.students["a"], batch["data"])[0])
        masks = [class_masks(labels, trainer.label_manager.num_segmentation_heads) for labels in (predicted, truth)]
        foreground = [mask if regions else mask[:, 1:] for mask in masks]
        return float(2 * (foreground[0] * foreground[1]).sum() / (foreground[0] + foreground[1]).sum())

    before = dice()
    records = [trainer.train_step(batch) for _ in range(80)]
    assert all(np.isfinite(value) for record in records for value in record.values())
    for name in ("supervised", "supervised_b", "weighted", "pseudo_label"):
        first, last = (np.mean([record[name] for record in part]) for part in (records[:10], records[-10:]))
        assert last < first, name
    assert dice() > before + 0.3
