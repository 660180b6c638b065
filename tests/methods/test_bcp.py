import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer, preprocess_labeled
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)

from nnunetv2_micd.augmentation.masks import sample_box
from nnunetv2_micd.methods.bcp import hide, largest_components, mix, nnUNetTrainerBCP, nnUNetTrainerBCP_half

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "second": 2}, "regions_class_order": [1, 2]}
IGNORE = {"labels": {"background": 0, "first": 1, "second": 2, "ignore": 3}}
BOTH = {**REGIONS, "labels": {**REGIONS["labels"], "ignore": 3}}


def relabel(dataset: TinyDataset, description: dict[str, Any]) -> None:
    for folder in (dataset.raw, dataset.preprocessed):
        path = folder / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | description))
    preprocess_labeled(dataset)


# ------------------------------------------------------------------------------------------------------ pure functions


def test_mix_pastes_in_both_directions() -> None:
    first, second = torch.tensor([[[1, 2, 3]]]), torch.tensor([[[7, 8, 9]]])
    box = torch.tensor([[[[False, True, False]]]])
    assert mix(first, second, box).tolist() == [[[1, 8, 3]], [[7, 2, 9]]]
    assert mix(first[:, None], second[:, None], box).tolist() == [[[[1, 8, 3]]], [[[7, 2, 9]]]]


def test_hide() -> None:
    hidden = torch.tensor([[[True, False, False]]])
    assert hide(torch.tensor([[[1, 2, 0]]]), hidden, 3).tolist() == [[[[3, 2, 0]]]]
    regions = torch.tensor([[[[True, True, False]], [[False, True, False]]]])
    target = hide(regions, hidden, 3)
    assert torch.equal(target[:, :2], regions)
    assert torch.equal(target[:, 2], hidden)


def test_largest_component_of_each_class_by_hand() -> None:
    labels = torch.tensor(
        [
            [1, 1, 0, 0, 2],
            [0, 0, 1, 0, 0],  # touches the two by a corner
            [0, 0, 0, 0, 2],
            [1, 0, 2, 2, 0],  # touches the one above by a corner
        ]
    )
    expected = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 2], [0, 0, 2, 2, 0]])
    batch = torch.stack((labels, labels.flip(1), torch.zeros_like(labels)))
    kept = largest_components(batch)
    assert torch.equal(kept, torch.stack((expected, expected.flip(1), torch.zeros_like(labels))))
    assert kept.dtype == labels.dtype
    volume = torch.zeros(1, 3, *labels.shape, dtype=torch.int64)
    volume[0, 1] = labels
    assert torch.equal(largest_components(volume)[0, 1], expected)


def test_largest_component_of_overlapping_regions() -> None:
    whole = torch.tensor([[1, 1, 1, 0, 1]]).bool()
    part = torch.tensor([[0, 1, 0, 0, 1]]).bool()
    kept = largest_components(torch.stack((whole, part))[None])
    assert kept.dtype == torch.bool
    assert kept[0, 0].int().tolist() == [[1, 1, 1, 0, 0]]
    assert kept[0, 1].sum() == 1


# ---------------------------------------------------------------------------------------------------------- the method


def start(
    dataset: TinyDataset, configuration: str = "3d_fullres", method: type = nnUNetTrainerBCP, **changed: Any
) -> Any:
    trainer = make_trainer(method, dataset, configuration)
    trainer.config = replace(trainer.config, **{"pretraining": 0.0} | changed)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def batch(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


def losses(trainer: Any, labeled: dict[str, Any], unlabeled: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {name: loss for group in trainer.compute_losses(labeled, unlabeled) for name, loss in group.named.items()}


@pytest.mark.parametrize("description", [None, REGIONS, IGNORE, BOTH], ids=["classes", "regions", "ignore", "both"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_targets_at_all_resolutions_are_those_of_nnunets_loader(
    configuration: str, description: dict[str, Any] | None, dataset: TinyDataset
) -> None:
    if description is not None:
        relabel(dataset, description)
    trainer = start(dataset, configuration)
    expected = next(trainer.dataloader_train)["target"]
    targets = trainer.at_all_resolutions(expected[0])
    assert len(targets) == len(expected) == 2
    assert all(torch.equal(target, other) for target, other in zip(targets, expected, strict=True))


@pytest.mark.parametrize("description", [None, REGIONS, IGNORE, BOTH], ids=["classes", "regions", "ignore", "both"])
def test_gradient_of_each_loss_is_where_its_voxels_are(
    description: dict[str, Any] | None, dataset: TinyDataset
) -> None:
    """The gradient with respect to the finest output: labeled voxels, unlabeled voxels, nowhere for ignored ones."""
    if description is not None:
        relabel(dataset, description)
    trainer = start(dataset)
    labeled, unlabeled = batch(trainer)
    ignores = trainer.label_manager.has_ignore_label
    if ignores:
        for target in labeled["target"]:
            target[:, -1, :4] = 3 if description is IGNORE else True
            assert description is not IGNORE or target.shape[1] == 1
    outputs = []
    network = trainer.network

    def forward(images: torch.Tensor) -> Any:
        outputs.append((images, network(images)))
        return outputs[-1][1]

    trainer.network = forward
    state = trainer.generator.get_state()
    named = losses(trainer, labeled, unlabeled)
    trainer.generator.set_state(state)
    box = sample_box(unlabeled.shape[2:], trainer.config.box, trainer.generator)
    trainer.network = network
    [(mixed, output)] = outputs
    assert torch.equal(mixed, mix(labeled["data"], unlabeled, box))
    is_unlabeled = torch.cat((box.expand(2, *box.shape[1:]), ~box.expand(2, *box.shape[1:])))
    if ignores:  # of the labeled image
        is_unlabeled[:2, :, :4] = True
        is_unlabeled[2:, :, :4] = True
    for name, voxels in (("supervised", ~is_unlabeled), ("copy_paste", is_unlabeled)):
        gradient = torch.autograd.grad(named[name], output[0], retain_graph=True)[0]
        assert torch.equal((gradient != 0).any(1, keepdim=True), voxels)


def test_values_by_hand(dataset: TinyDataset) -> None:
    """A network that is always sure of the truth, or of the first class, on a truth of two halves."""
    trainer = start(dataset)
    truth = torch.zeros(2, *trainer.configuration_manager.patch_size, dtype=torch.int16)
    truth[..., ::2], truth[..., 1::2] = 1, 2
    labels = torch.cat((truth, truth))
    nowhere = torch.zeros_like(labels, dtype=torch.bool)

    def output(sure_of: torch.Tensor) -> list[torch.Tensor]:
        onehot = torch.nn.functional.one_hot(sure_of.long(), 3).movedim(-1, 1).float() * 50
        return [onehot, onehot[:, :, ::2, ::2, ::2]]

    # Only full resolution counts, as nnU-Net gives the coarsest of the resolutions, here the second, no weight.
    assert trainer._loss(output(labels), labels, nowhere) == pytest.approx(-1, abs=1e-4)
    first = float(trainer._loss(output(torch.ones_like(labels)), labels, nowhere))
    assert first == pytest.approx(50 / 2 - (2 / 3 + 0) / 2, abs=1e-3)  # cross entropy; Dice of 2 * .5 / 1.5 and of 0
    hidden = nowhere.clone()
    hidden[..., 1::2] = True  # all of the second class, so all that is wrong
    half = float(trainer._loss(output(torch.ones_like(labels)), labels, hidden))
    assert half == pytest.approx(0 - (1 + 1) / 2, abs=1e-3)  # nnU-Net's Dice of a class that is nowhere is 1
    hidden[2:] = False  # in one direction only
    assert trainer._loss(output(torch.ones_like(labels)), labels, hidden) == pytest.approx((half + first) / 2, abs=1e-3)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("description", [None, REGIONS], ids=["classes", "regions"])
def test_self_training_teaches_the_student_but_not_the_teacher(
    configuration: str, description: dict[str, Any] | None, dataset: TinyDataset
) -> None:
    if description is not None:
        relabel(dataset, description)
    trainer = start(dataset, configuration)
    named = losses(trainer, *batch(trainer))
    assert set(named) == {"supervised", "copy_paste"}
    named["copy_paste"].backward()
    assert next(iter(trainer.network.encoder.parameters())).grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in trainer.teachers["a"].parameters())
    assert named["copy_paste"] >= 0
    assert 0 <= trainer.metrics["agreement"] <= 1


def test_unlabeled_weight_scales_the_unlabeled_part_only(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    data = batch(trainer)
    state = trainer.generator.get_state()
    half = losses(trainer, *data)
    trainer.generator.set_state(state)
    trainer.config = replace(trainer.config, unlabeled_weight=1.0)
    whole = losses(trainer, *data)
    assert half["copy_paste"] == whole["copy_paste"] / 2
    assert half["supervised"] == whole["supervised"]


def test_pretraining_mixes_labeled_images_and_ends(dataset: TinyDataset) -> None:
    trainer = start(dataset, pretraining=0.5)
    labeled, unlabeled = batch(trainer)
    state = trainer.generator.get_state()
    assert set(losses(trainer, labeled, unlabeled)) == {"supervised"}
    trainer.generator.set_state(state)
    boxes = [sample_box(unlabeled.shape[2:], trainer.config.box, trainer.generator) for _ in range(2)]
    mixed, labels = trainer.last_mixed
    assert torch.equal(mixed, mix(labeled["data"], labeled["data"].flip(0), *boxes))
    truth = labeled["target"][0][:, 0]
    assert torch.equal(labels, mix(truth, truth.flip(0), *boxes))
    assert len({tuple(image.flatten().tolist()) for image in mixed}) == 4  # none of them twice
    trainer.iteration = 1
    assert trainer.is_pretraining
    assert list(trainer.picture_panels(unlabeled)) == ["unlabeled image", "teacher", "largest components"]
    trainer.iteration = 2  # of four
    assert set(losses(trainer, labeled, unlabeled)) == {"supervised", "copy_paste"}
    assert "mixed in" in trainer.picture_panels(unlabeled)
    assert set(losses(trainer, labeled, None)) == {"supervised"}


def test_half_of_a_batch_makes_as_many_mixed_images_as_nnunets(dataset: TinyDataset) -> None:
    trainer = start(dataset, method=nnUNetTrainerBCP_half, pretraining=0.5)
    labeled, unlabeled = batch(trainer)
    labeled = {
        "data": labeled["data"].repeat(2, 1, 1, 1, 1),
        "target": [x.repeat(2, 1, 1, 1, 1) for x in labeled["target"]],
    }
    labeled["data"] += torch.arange(4.0).view(4, 1, 1, 1, 1)
    state = trainer.generator.get_state()
    assert set(losses(trainer, labeled, unlabeled)) == {"supervised"}
    trainer.generator.set_state(state)
    _, box = (sample_box(unlabeled.shape[2:], trainer.config.box, trainer.generator) for _ in range(2))
    mixed, _ = trainer.last_mixed
    assert torch.equal(mixed, torch.where(box, labeled["data"], labeled["data"].roll(1, 0)))  # of four images, four
    trainer.iteration = 2
    state = trainer.generator.get_state()
    unlabeled = torch.cat([unlabeled] * 2)
    assert set(losses(trainer, labeled, unlabeled)) == {"supervised", "copy_paste"}
    trainer.generator.set_state(state)
    box = sample_box(unlabeled.shape[2:], trainer.config.box, trainer.generator)
    mixed, labels = trainer.last_mixed
    assert torch.equal(mixed, mix(labeled["data"][2:], unlabeled, box))
    assert torch.equal(labels[:2].where(~box[:, 0], 0), labeled["target"][0][2:, 0].where(~box[:, 0], 0))


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 1), (2, 1), (3, 2), (12, 6)])
def test_half_of_a_batch(batch_size: int, expected: int, dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerBCP_half, dataset)
    trainer.batch_size = batch_size
    assert trainer.unlabeled_batch_size == expected


def test_loss_of_regions_is_nnunets_where_nothing_is_hidden(dataset: TinyDataset) -> None:
    relabel(dataset, REGIONS)
    trainer = start(dataset)
    target = next(trainer.dataloader_train)["target"]
    output = [torch.randn_like(each.float()) for each in target]
    nowhere = torch.zeros_like(target[0][:, 0], dtype=torch.bool)
    masked = trainer.masked_loss(output, trainer.at_all_resolutions(hide(target[0].bool(), nowhere, 3)))
    torch.testing.assert_close(masked, trainer.loss(output, target))


def test_components_are_kept_where_a_class_has_several_parts(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    unlabeled = batch(trainer)[1]
    logits = trainer.run_teacher(unlabeled)
    largest = trainer.pseudo_labels(logits)
    trainer.config = replace(trainer.config, largest_component=False)
    everything = trainer.pseudo_labels(logits)
    assert torch.equal(largest, largest_components(everything))


def test_loss_of_the_dataset_is_left_as_it_was(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerBCP, dataset)
    manager = trainer.label_manager
    trainer.initialize()
    assert trainer.label_manager is manager
    assert not manager.has_ignore_label
    assert trainer.hidden_label == 3
    assert trainer.loss.loss.ignore_label is None
    assert trainer.masked_loss.loss.ignore_label == 3


@pytest.mark.parametrize(
    "description",
    [None, *(pytest.param(labels, marks=pytest.mark.slow) for labels in (REGIONS, IGNORE, BOTH))],
    ids=["classes", "regions", "ignore", "both"],
)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_trains(configuration: str, description: dict[str, Any] | None, dataset: TinyDataset) -> None:
    if description is not None:
        relabel(dataset, description)
    trainer = make_trainer(nnUNetTrainerBCP, dataset, configuration, draws=True)
    trainer.config = replace(trainer.config, pretraining=0.5)
    trainer.run_training()
    assert "copy_paste" not in trainer.monitor.history[0]
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    assert set(trainer.monitor.history[-1]) >= {"supervised", "copy_paste", "agreement", "foreground_teacher"}
    assert len(list((Path(trainer.output_folder) / "unlabeled_patches").iterdir())) == 2


def test_without_deep_supervision(dataset: TinyDataset) -> None:
    trainer = make_trainer(type("Trainer", (nnUNetTrainerNoDeepSupervision, nnUNetTrainerBCP), {}), dataset)
    trainer.run_training()
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
