import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.losses.dice import confident_dice_loss
from nnunetv2_micd.methods.unimatch import (
    UniMatchConfig,
    confident_labels,
    nnUNetTrainerUniMatch,
    paste,
    sample_cutmix,
    sample_kept_channels,
)
from nnunetv2_micd.training.networks import forward_with_features, forward_with_scaled_features


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# ------------------------------------------------------------------------------------------------------ pure functions


def test_confident_labels_of_classes() -> None:
    logits = torch.tensor([[0.96, 0.94, 0.02], [0.03, 0.05, 0.97], [0.01, 0.01, 0.01]]).log()[None, :, None]
    labels, confident = confident_labels(logits, False, 0.95)
    assert labels.tolist() == [[[0, 0, 1]]]
    assert confident.tolist() == [[[[True, False, True]]]]


def test_confident_labels_of_regions_have_a_confidence_each() -> None:
    logits = torch.tensor([[logit(0.96), logit(0.94)], [logit(0.04), logit(0.06)]])[None, :, None]
    labels, confident = confident_labels(logits, True, 0.95)
    assert labels.tolist() == [[[[True, True]], [[False, False]]]]
    assert confident.tolist() == [[[[True, False]], [[True, False]]]]


def test_paste_takes_the_box_of_the_next_sample() -> None:
    labels = torch.tensor([1, 2, 3])[:, None, None].expand(3, 2, 2)
    box = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    box[0, 0, 0, 1] = box[2, 0, 1] = True
    expected = [[[1, 2], [1, 1]], [[2, 2], [2, 2]], [[3, 3], [1, 1]]]
    assert paste(labels, box).tolist() == expected
    assert paste(labels[:, None].float(), box)[:, 0].tolist() == expected


@pytest.mark.parametrize("spatial", [(40, 60), (30, 40, 50)])
def test_cutmix_boxes(spatial: tuple[int, ...]) -> None:
    config = UniMatchConfig()
    mask = sample_cutmix(600, spatial, config, torch.Generator().manual_seed(0))
    assert mask.shape == (600, 1, *spatial)
    shares = mask.flatten(1).float().mean(1)
    mixed = shares > 0
    assert mixed.float().mean() == pytest.approx(0.5, abs=0.06)
    assert shares.max() <= 0.4
    assert shares[mixed].mean() > 0.12
    covered = mask.any(0)[0]
    for axis in range(len(spatial)):
        others = [other + 2 for other in range(len(spatial)) if other != axis]
        edges = mask[mixed].amax(others).flatten(1).sum(1)
        assert edges.float().std() > 2
        assert covered.select(axis, 0).any()  # boxes reach the border
        assert covered.select(axis, -1).any()


def test_kept_channels_are_dropout2d() -> None:
    factors = sample_kept_channels(200, [10, 20], 0.5, torch.Generator().manual_seed(0), "cpu")
    assert [tuple(factor.shape) for factor in factors] == [(200, 10), (200, 20)]
    for factor in factors:
        assert factor.unique().tolist() == [0, 2]
        assert factor.mean() == pytest.approx(1, abs=0.1)


# ---------------------------------------------------------------------------------------------------------- the method


def start(dataset: TinyDataset, configuration: str = "3d_fullres", **changed: Any) -> Any:
    trainer = make_trainer(nnUNetTrainerUniMatch, dataset, configuration)
    trainer.config = replace(trainer.config, **changed)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def batch(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


def test_scaled_features_are_those_of_the_decoder(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    network, images = trainer.network, batch(trainer)[1]
    ones = [torch.ones(len(images), count) for count in network.encoder.output_channels]
    clean, same = forward_with_scaled_features(network, images, ones)
    assert torch.equal(clean, forward_with_features(network, images)[0])
    assert torch.equal(clean, same)
    assert same.requires_grad
    assert not clean.requires_grad
    changed = [factor.clone() for factor in ones]
    changed[0][0, 1] = 0  # one channel of one stage of the first sample
    clean, scaled = forward_with_scaled_features(network, images, changed)
    assert not torch.allclose(scaled[0], clean[0])
    assert torch.equal(scaled[1], clean[1])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_every_loss_teaches_encoder_and_decoder(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration, threshold=0.0)
    names = []
    for group in trainer.compute_losses(*batch(trainer)):
        [(name, loss)] = group.named.items()
        names.append(name)
        trainer.network.zero_grad()
        loss.backward()
        assert next(iter(trainer.network.encoder.parameters())).grad.abs().sum() > 0
        assert trainer.network.decoder.stages[-1].convs[0].conv.weight.grad.abs().sum() > 0
    assert names == ["supervised", "feature_dropout", "strong_1", "strong_2"]
    assert all(parameter.grad is None for parameter in trainer.teachers["a"].parameters())
    assert trainer.metrics["confident"] == 1


def test_losses_put_together_by_hand(dataset: TinyDataset) -> None:
    trainer = start(dataset, threshold=0.4)
    labeled, unlabeled = batch(trainer)
    state = trainer.generator.get_state()
    losses = {name: loss for group in trainer.compute_losses(labeled, unlabeled) for name, loss in group.named.items()}
    trainer.generator.set_state(state)
    channels = trainer.network.encoder.output_channels
    kept = sample_kept_channels(len(unlabeled), channels, 0.5, trainer.generator, "cpu")
    weak, dropped = forward_with_scaled_features(trainer.network, unlabeled, kept)
    labels, confident = confident_labels(weak, False, 0.4)
    assert 0 < confident.float().mean() < 1
    assert losses["feature_dropout"] == 0.5 * confident_dice_loss(dropped, labels, confident)
    for name in ("strong_1", "strong_2"):
        box = trainer._sample_cutmix(unlabeled, trainer.generator)
        view = trainer._strong_view(unlabeled, trainer.generator)
        logits, _ = forward_with_features(trainer.network, paste(view, box))
        assert losses[name] == 0.25 * confident_dice_loss(logits, paste(labels, box), paste(confident, box))
    assert losses["strong_1"] != losses["strong_2"]


def test_views_leave_the_segmentation_of_a_cascades_first_stage_alone(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    trainer.is_cascaded = True
    images = torch.cat((torch.randn(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 2, 8, 8, 8))), dim=1)
    view = trainer._strong_view(images, torch.Generator().manual_seed(0))
    assert torch.equal(view[:, 1:], images[:, 1:])
    assert not torch.equal(view[:, 0], images[:, 0])
