"""nnFilterMatch: its schedule, turned pseudo-labels in nnU-Net's loss, and the entropy filter."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, REGIONS, TinyDataset, make_trainer, relabel

from nnunetv2_micd.methods.filter_match import Turn, most_uncertain, nnUNetTrainerFilterMatch


def start(dataset: TinyDataset, configuration: str = "3d_fullres", **changed: Any) -> Any:
    trainer = make_trainer(nnUNetTrainerFilterMatch, dataset, configuration)
    trainer.config = replace(trainer.config, **{"supervised": 0.0} | changed)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def test_turn_by_hand() -> None:
    batch = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    assert Turn(1, ())(batch).tolist() == [[[3, 6], [2, 5], [1, 4]]]
    assert Turn(2, ())(batch).tolist() == [[[6, 5, 4], [3, 2, 1]]]
    assert Turn(1, (-1,))(batch).tolist() == [[[6, 3], [5, 2], [4, 1]]]
    assert Turn(3, (-1, -2))(batch).tolist() == Turn(1, ())(batch).tolist()


def test_the_most_certain_images_are_taken_out() -> None:
    entropy = {"a": 5.0, "b": 1.0, "c": 2.0, "d": 3.0}
    assert most_uncertain(entropy, 0.15) == ["a", "c", "d"]
    assert most_uncertain(entropy, 0.5) == ["a", "d"]
    assert most_uncertain({"a": 1.0}, 0.15) == ["a"]
    assert most_uncertain({"a": 1.0, "b": 1.0}, 0.15) == ["a", "b"]
    assert most_uncertain({"a": math.nan, "b": 1.0, "c": 2.0}, 0.15) == ["a", "c"]
    assert most_uncertain({"a": math.inf}, 0.15) == ["a"]


@pytest.mark.parametrize(("epochs", "expected"), [(300, [100, 200]), (100, [34, 67]), (1000, [334, 667]), (12, [4, 8])])
def test_filtering_is_due_twice(epochs: int, expected: list[int], dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerFilterMatch, dataset)
    trainer.num_epochs = epochs
    trainer.build_method()
    due: list[int] = []
    trainer._filter = lambda: due.append(trainer.current_epoch)
    for trainer.current_epoch in range(epochs):
        trainer.on_epoch_start()
    assert due == expected


def test_a_missing_image_is_named_when_a_training_is_continued(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    trainer.kept = ["image_0", "image_9"]
    with pytest.raises(ValueError, match=r"1 unlabeled images that are missing now \(image_9\); put them back"):
        trainer.build_unlabeled_loader()


@pytest.mark.parametrize("description", [None, REGIONS, BOTH], ids=["classes", "regions", "regions and ignore"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_network_learns_its_own_labels_on_the_turned_image(
    configuration: str, description: dict[str, Any] | None, dataset: TinyDataset
) -> None:
    if description is not None:
        relabel(dataset, description, annotated_slices=6 if description is BOTH else None)
    trainer = start(dataset, configuration)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    state = trainer.generator.get_state()
    on_labeled, on_unlabeled = trainer.compute_losses(labeled, unlabeled)
    assert list(on_labeled.supervised) == ["supervised"]
    trainer.generator.set_state(state)
    turn = trainer._draw_turn(trainer.generator)
    images = torch.cat((labeled["data"], unlabeled)) if description is BOTH else unlabeled
    with torch.no_grad():
        outputs = trainer.network(images)
    targets = []
    for output in outputs:
        target = output.argmax(1, keepdim=True) if description is None else output > 0
        if description is BOTH:  # a channel of ignored voxels
            target = torch.cat((target, torch.zeros_like(target[:, :1])), 1)
        targets.append(turn(target))
    expected = 1 + trainer.loss(trainer.network(turn(images)), targets)
    torch.testing.assert_close(on_unlabeled.unsupervised["pseudo_label"], expected)
    on_unlabeled.unsupervised["pseudo_label"].backward()
    assert next(iter(trainer.network.encoder.parameters())).grad.any()
    panels = trainer.picture_panels(unlabeled)
    assert panels["they differ"].shape == panels["turned image"].shape


def test_turns_and_flips(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerFilterMatch, dataset)
    trainer.num_epochs = 30
    trainer.iteration = 19  # in epoch 9
    turns = {trainer._draw_turn(trainer.generator) for _ in range(50)}
    assert turns == {Turn(1, ()), Turn(2, ()), Turn(3, ())}
    trainer.iteration = 20  # a third of the training
    for axes, flips in (
        ((0, 1, 2), {(), (-1,), (-2,), (-1, -2)}),
        ((0, 1), {(), (-2,)}),  # nnU-Net mirrors along these
        (None, {()}),
    ):
        trainer.inference_allowed_mirroring_axes = axes
        assert {trainer._draw_turn(trainer.generator).flips for _ in range(50)} == flips
    kwargs = trainer.configuration_manager.network_arch_init_kwargs
    kwargs["strides"] = [[1, 1, 1], [2, 2, 1], [2, 2, 2]]  # the edges of a patch cannot be exchanged
    assert {trainer._draw_turn(trainer.generator).quarters for _ in range(20)} == {2}


def test_supervised_start_and_two_filterings(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerFilterMatch, dataset)
    trainer.num_epochs = 6
    trainer.config = replace(trainer.config, supervised=1 / 6, filtered=0.3)
    kept = []
    epoch_start = trainer.on_epoch_start

    def on_epoch_start() -> None:
        epoch_start()
        kept.append(len(trainer.dataloader_unlabeled.data_loader._data.identifiers))

    trainer.on_epoch_start = on_epoch_start
    trainer.run_training()
    history = trainer.monitor.history
    assert ["pseudo_label" in row for row in history] == [False, *[True] * 5]
    assert [row["b"] for row in history] == [0, *[1] * 5]
    assert kept == [4, 4, 3, 3, 2, 2]  # at a third and at two thirds
    assert "The entropy filter keeps 3 of 4 unlabeled images." in Path(trainer.log_file).read_text()
    assert all(np.isfinite(value) for row in history for value in row.values())


def test_filtered_images_are_continued_from_a_checkpoint(dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = start(dataset, filtered=0.3)
    trainer.current_epoch = 1
    trainer.on_epoch_start()
    assert len(trainer.kept) < 4
    checkpoint = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(checkpoint)
    other = make_trainer(nnUNetTrainerFilterMatch, dataset)
    other.load_checkpoint(checkpoint)
    other.on_train_start()
    assert (other.kept, other.filterings) == (trainer.kept, trainer.filterings)
    assert other.dataloader_unlabeled.data_loader._data.identifiers == trainer.kept
