from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from helpers import BOTH, IGNORE, REGIONS, TinyDataset, make_trainer, relabel

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.augmentation.masks import mix, sample_box
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining


def start(dataset: TinyDataset, configuration: str = "3d_fullres", **changed: Any) -> Any:
    trainer = make_trainer(nnUNetTrainerSelfTraining, dataset, configuration)
    trainer.config = replace(trainer.config, **{"supervised": 0.0} | changed)
    if "view" not in changed:
        trainer.strong_view = lambda images, view, generator: images
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def batch(trainer: Any, repeats: int = 1) -> tuple[dict[str, Any], torch.Tensor]:
    """Return labeled images that all differ, and unlabeled ones."""
    labeled = next(trainer.dataloader_train)
    data = labeled["data"].repeat(repeats, *[1] * (labeled["data"].ndim - 1))
    data = data + torch.arange(float(len(data))).view(-1, *[1] * (data.ndim - 1))
    target = [each.repeat(repeats, *[1] * (each.ndim - 1)) for each in labeled["target"]]
    return {"data": data, "target": target}, next(trainer.dataloader_unlabeled)["data"]


def run(trainer: Any, labeled: dict[str, Any], unlabeled: torch.Tensor | None) -> torch.Tensor:
    """Return the loss; replay the generator, so that the test draws the same box."""
    state = trainer.generator.get_state()
    [group] = trainer.compute_losses(labeled, unlabeled)
    trainer.generator.set_state(state)
    assert set(group.named) == {"supervised"}
    return group.named["supervised"]


def test_a_box_is_exchanged_between_labeled_and_unlabeled_images(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    labeled, unlabeled = batch(trainer)
    assert (len(labeled["data"]), len(unlabeled)) == (2, 1)
    loss = run(trainer, labeled, unlabeled)
    box = sample_box(unlabeled.shape[2:], trainer.config.box, trainer.generator)
    pseudo = trainer.pseudo_label(trainer.logits(trainer.teachers["a"], unlabeled))[:, None]
    mixed, target = trainer.last_mixed
    assert torch.equal(mixed, mix(labeled["data"][1:], unlabeled, box))
    assert torch.equal(target, mix(labeled["target"][0][1:], pseudo, box))
    assert "foreground_teacher" in trainer.metrics
    torch.testing.assert_close(loss, trainer.loss(trainer.network(mixed), trainer.at_all_resolutions(target)))


@pytest.mark.parametrize("size", [3, 4])
def test_first_labeled_images_of_a_batch_take_the_place_of_unlabeled_ones(size: int, dataset: TinyDataset) -> None:
    trainer = start(dataset, supervised=0.5)
    trainer.batch_size = size
    labeled, unlabeled = batch(trainer, repeats=2)
    labeled = {"data": labeled["data"][:size], "target": [each[:size] for each in labeled["target"]]}
    run(trainer, labeled, unlabeled)
    images, truth = labeled["data"], labeled["target"][0]
    box = sample_box(images.shape[2:], trainer.config.box, trainer.generator)
    pairs = size // 2
    mixed, target = trainer.last_mixed
    assert torch.equal(mixed, torch.cat((images[pairs : size - pairs], mix(images[-pairs:], images[:pairs], box))))
    assert torch.equal(target, torch.cat((truth[pairs : size - pairs], mix(truth[-pairs:], truth[:pairs], box))))
    assert len(mixed) == size


def test_student_sees_the_strong_view_and_the_teacher_the_weak_one(dataset: TinyDataset) -> None:
    trainer = start(dataset, view=StrongView(jitter=1, noise=1))
    labeled, unlabeled = batch(trainer)
    seen: list[torch.Tensor] = []
    trainer.logits = lambda network, images: seen.append(images) or torch.zeros(1, 3, *images.shape[2:])
    list(trainer.compute_losses(labeled, unlabeled))
    assert torch.equal(seen[0], unlabeled)
    [mixed, _] = trainer.last_mixed[0]
    outside = mixed != labeled["data"][1]  # the voxels from the unlabeled image
    assert outside.any()
    assert (mixed[outside] != unlabeled[0][outside]).float().mean() > 0.9


def test_stages(dataset: TinyDataset) -> None:
    trainer = start(dataset, supervised=0.25, labels_only=0.1)
    trainer.num_epochs = 20
    steps = trainer.num_iterations_per_epoch
    stages = []
    for trainer.iteration in range(0, 20 * steps, steps):
        stages.append(trainer.stage)
    assert stages == ["supervised"] * 5 + ["self-training"] * 13 + ["labels only"] * 2
    labeled, unlabeled = batch(trainer)
    [group] = trainer.compute_losses(labeled, unlabeled)
    expected = trainer.loss(trainer.network(labeled["data"]), labeled["target"])
    assert group.named["supervised"] == expected


def test_unlabeled_patches_are_loaded_when_they_are_needed(dataset: TinyDataset) -> None:
    trainer = start(dataset, supervised=0.5)
    loaded = []
    original = trainer.next_unlabeled
    trainer.next_unlabeled = lambda: loaded.append(trainer.iteration) or original()
    for _ in range(4):  # two epochs of two steps, of which the second has pseudo-labels
        trainer.train_step(next(trainer.dataloader_train))
    assert loaded == [0, 2, 3]  # the first for the picture


def test_picture_shows_mixed_images_only_if_unlabeled_ones_are_in_them(dataset: TinyDataset) -> None:
    trainer = start(dataset, supervised=0.5)
    titles = []
    for _ in range(4):  # two epochs of two steps, of which the second has pseudo-labels
        trainer.train_step(next(trainer.dataloader_train))
        titles.append(list(trainer.picture_panels(trainer._last_unlabeled)))
    assert titles[0] == titles[1] == ["unlabeled image", "teacher"]
    assert titles[2] == titles[3] == [*titles[0], "mixed in", "its label", "mixed out", "label of it"]


def test_continued_training_takes_the_same_unlabeled_patches(dataset: TinyDataset) -> None:
    def patches(trainer: Any, epochs: int) -> list[torch.Tensor]:
        seen = []
        original = trainer.next_unlabeled
        trainer.next_unlabeled = lambda: seen.append(original()) or seen[-1]
        for _ in range(2 * epochs):
            trainer.train_step(next(trainer.dataloader_train))
        trainer.next_unlabeled = original
        return seen

    torch.manual_seed(3)
    whole = start(dataset, supervised=0.5)
    path = str(Path(whole.output_folder) / "checkpoint_latest.pth")
    first = patches(whole, 1)
    whole.save_checkpoint(path)
    rest = patches(whole, 1)
    continued = make_trainer(nnUNetTrainerSelfTraining, dataset)
    continued.config = whole.config
    continued.load_checkpoint(path)
    continued.on_train_start()
    again = patches(continued, 1)
    assert (len(first), len(rest), len(again)) == (1, 2, 2)
    assert all(torch.equal(*pair) for pair in zip(rest, again, strict=True))


def test_without_unlabeled_images_the_supervised_stage_goes_on(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    labeled, _ = batch(trainer)
    run(trainer, labeled, None)
    box = sample_box(labeled["data"].shape[2:], trainer.config.box, trainer.generator)
    assert torch.equal(trainer.last_mixed[0], mix(labeled["data"][1:], labeled["data"][:1], box))


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_unlabeled_patches_keep_their_intensities(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    names = []
    for transform in trainer.dataloader_unlabeled.data_loader.transforms.transforms:
        while isinstance(transform, RandomTransform):
            transform = transform.transform
        names.append(type(transform).__name__)
    assert "SpatialTransform" in names
    assert "MirrorTransform" in names
    assert not [name for name in names if any(part in name for part in ("Gauss", "Bright", "Contrast", "Gamma", "Low"))]


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 1), (2, 1), (3, 1), (12, 6)])
def test_half_of_a_batch(batch_size: int, expected: int, dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerSelfTraining, dataset)
    trainer.batch_size = batch_size
    assert trainer.unlabeled_batch_size == expected


@pytest.mark.parametrize(
    "description",
    [None, REGIONS, *(pytest.param(labels, marks=pytest.mark.slow) for labels in (IGNORE, BOTH))],
    ids=["classes", "regions", "ignore", "both"],
)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_trains(configuration: str, description: dict[str, Any] | None, dataset: TinyDataset) -> None:
    if description is not None:
        relabel(dataset, description)
    trainer = make_trainer(nnUNetTrainerSelfTraining, dataset, configuration, draws=True)
    trainer.config = replace(trainer.config, supervised=0.5)
    trainer.run_training()
    assert "foreground_teacher" not in trainer.monitor.history[0]
    assert "foreground_teacher" in trainer.monitor.history[-1]
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    assert len(list((Path(trainer.output_folder) / "unlabeled_patches").iterdir())) == 2
