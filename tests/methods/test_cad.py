"""CAD: confidence, donors, schedules and the step by hand, and that it trains. See test_displacement.py too."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, REGIONS, TinyDataset, make_trainer, relabel

from nnunetv2_micd.augmentation.displacement import displace, find_displacement
from nnunetv2_micd.losses.dice import hard_dice
from nnunetv2_micd.methods.cad import confidence_of, donors_of, hard_dice_loss, nnUNetTrainerCAD
from nnunetv2_micd.training.networks import forward_with_features, full_resolution

LOG3 = math.log(3.0)


def start(dataset: TinyDataset, configuration: str = "3d_fullres", **fields: Any) -> Any:
    method = type("Trainer", (nnUNetTrainerCAD,), {"config": replace(nnUNetTrainerCAD.config, **fields)})
    trainer = make_trainer(method, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def next_batches(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), trainer.next_unlabeled()


def test_confidence_is_the_probability_of_what_is_decided() -> None:
    logits = torch.tensor([[[LOG3, 0.0, LOG3], [0.0, 0.0, -LOG3]]])
    assert confidence_of(logits).flatten().tolist() == pytest.approx([3 / 4, 1 / 2, 9 / 10])
    # sigmoids (3/4, 1/2), (1/2, 1/2), (3/4, 1/4): the least certain region counts
    assert confidence_of(logits, regions=True).flatten().tolist() == pytest.approx([1 / 2, 1 / 2, 3 / 4])
    assert confidence_of(logits.half()).dtype == torch.float32


def test_donor_is_the_other_view_of_the_next_sample() -> None:
    weak, strong = torch.tensor([1, 2, 3]), torch.tensor([10, 20, 30])
    assert donors_of(weak, strong).tolist() == [20, 30, 10, 2, 3, 1]
    assert donors_of(weak[:1], strong[:1]).tolist() == [10, 1]  # a batch of one


def authors_dice(logits: np.ndarray, labels: np.ndarray) -> float:
    """ABD's loss: per class over the whole batch, with squares in the denominator, then the mean of all classes."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probability = powers / powers.sum(1, keepdims=True)
    losses = []
    for one in range(logits.shape[1]):
        score, target = probability[:, one], labels == one
        losses.append(1 - (2 * score[target].sum() + 1e-5) / ((score**2).sum() + target.sum() + 1e-5))
    return float(np.mean(losses))


@pytest.mark.parametrize("spatial", [(6, 5), (2, 3, 4)])
def test_dice_is_that_of_the_parents_authors(spatial: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, *spatial, generator=generator)
    labels = torch.randint(0, 3, (2, *spatial), generator=generator).to(torch.int16)  # class 3 is absent
    loss = hard_dice_loss(logits, labels)
    assert loss.item() == pytest.approx(authors_dice(logits.double().numpy(), labels.numpy()), rel=1e-5)


def test_dice_of_regions_by_hand() -> None:
    logits = torch.tensor([[[LOG3, -LOG3], [LOG3, LOG3]]])
    labels = torch.tensor([[[True, False], [False, False]]])
    # region 0: 2 * 3/4 / (9/16 + 1/16 + 1); region 1 has no overlap
    assert hard_dice_loss(logits, labels).item() == pytest.approx(1 - (1.5 / 1.625) / 2, rel=1e-4)


def test_dice_in_half_precision() -> None:
    logits = (torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 1e4).half().requires_grad_()
    loss = hard_dice_loss(logits, torch.ones(2, 40, 40, dtype=torch.int16))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_threshold_and_size_rise_over_the_training(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerCAD, dataset)  # of four steps
    values = []
    for trainer.iteration in (0, 1, 4, 5):
        values.append(trainer.scheduled((0.6, 0.95)))
    assert values == pytest.approx([0.6, 0.6875, 0.95, 0.95])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_step_is_put_together_from_its_parts(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration, threshold=(0.5, 0.9))
    trainer.iteration = 2  # half of the training: tau = 0.7, s = 0.375
    labeled, unlabeled = next_batches(trainer)
    state = trainer.generator.get_state()
    losses = {name: loss for group in trainer.compute_losses(labeled, unlabeled) for name, loss in group.named.items()}

    trainer.generator.set_state(state)
    strong = trainer.strong_view(unlabeled, trainer.config.view, trainer.generator)
    assert not torch.equal(strong, unlabeled)
    views = {"a": unlabeled, "b": strong}
    logits = {name: forward_with_features(trainer.teachers[name], views[name])[0].detach() for name in "ab"}
    labels = {name: logits[name].argmax(1) for name in "ab"}
    low, high = (logits[name].softmax(1).amax(1) for name in "ab")
    other_labels = {"a": labels["b"], "b": labels["a"]}
    displacement = find_displacement(torch.cat((low, high)), donors_of(low, high), 0.7, 0.375)
    assert displacement.inside.any()
    images = displace(torch.cat((unlabeled, strong)), donors_of(unlabeled, strong), displacement)
    for name in "ab":
        student, label = trainer.students[name], other_labels[name]
        expected = hard_dice_loss(forward_with_features(student, views[name])[0], label)
        torch.testing.assert_close(losses[f"cps_{name}"], expected)
        moved = displace(torch.cat((label, label)), donors_of(label, label), displacement)
        for kind, image, target in zip(("weak", "strong"), images.chunk(2), moved.chunk(2), strict=True):
            expected = hard_dice_loss(forward_with_features(student, image)[0], target) / 2
            torch.testing.assert_close(losses[f"displaced_{kind}_{name}"], expected)
    torch.testing.assert_close(trainer.metrics["displaced"], displacement.inside.float().mean())
    torch.testing.assert_close(trainer.metrics["low_confidence"], (torch.cat((low, high)) < 0.7).float().mean())


def test_each_loss_teaches_one_student(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    labeled, unlabeled = next_batches(trainer)
    for group in trainer.compute_losses(labeled, unlabeled):
        [(name, loss)] = group.named.items()
        trainer.optimizer.zero_grad()
        loss.backward()
        learns = [any(p.grad is not None for p in trainer.students[student].parameters()) for student in "ab"]
        assert learns == ([False, True] if name.endswith("_b") else [True, False])
    assert all(p.grad is None for teacher in trainer.teachers.values() for p in teacher.parameters())


def test_labeled_images_alone(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    labeled, _ = next_batches(trainer)
    names = [name for group in trainer.compute_losses(labeled, None) for name in group.named]
    assert names == ["supervised", "supervised_b"]


@pytest.mark.parametrize("description", [REGIONS, BOTH], ids=["regions", "regions and ignore"])
def test_regions_and_ignored_voxels(description: dict[str, Any], dataset: TinyDataset) -> None:
    relabel(dataset, description, annotated_slices=6 if description is BOTH else None)
    trainer = start(dataset)
    record = trainer.train_step(next(trainer.dataloader_train))
    assert all(np.isfinite(value) for value in record.values())
    panels = trainer.picture_panels(trainer._last_unlabeled)
    assert {panel.shape for panel in panels.values()} == {trainer._last_unlabeled[:, 0].shape}


def test_batch_of_one(dataset: TinyDataset) -> None:
    trainer = start(dataset, unlabeled_ratio=0.5)
    record = trainer.train_step(next(trainer.dataloader_train))
    assert len(trainer._last_unlabeled) == 1
    assert record["displaced"] > 0
    assert np.isfinite(record["loss"])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_picture_shows_what_is_displaced(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    trainer.iteration = 4
    unlabeled = trainer.next_unlabeled()
    states = trainer.generator.get_state(), torch.get_rng_state()
    with torch.no_grad():
        panels = trainer.picture_panels(unlabeled)
    assert torch.equal(trainer.generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    box = panels["box of low confidence"]
    assert box.flatten(1).any(1).all()
    assert (panels["confidence"][box] < 0.95).any()
    assert torch.equal(panels["displaced image"][~box], panels["image"][~box])
    assert (panels["displaced image"][box] != panels["image"][box]).any()


@pytest.mark.slow
def test_learns_the_labels(dataset: TinyDataset) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = start(dataset, "2d")
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 60
    batch = next(trainer.dataloader_train)
    truth = full_resolution(batch["target"])[:, 0]

    def dice() -> float:
        with torch.no_grad():
            label = trainer.pseudo_label(forward_with_features(trainer.teachers["a"], batch["data"])[0])
        return hard_dice(label, truth, 3)[1:].mean().item()

    before = dice()
    records = [trainer.train_step(batch) for _ in range(120)]
    for name in ("supervised", "supervised_b"):
        assert records[-1][name] < records[0][name] - 0.5
    assert dice() > before + 0.2
    assert records[-1]["low_confidence"] < records[0]["low_confidence"]


def test_learns_what_the_teachers_see(dataset: TinyDataset) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = start(dataset, "2d")
    labeled, unlabeled = next_batches(trainer)
    state = trainer.generator.get_state()

    def learn() -> dict[str, float]:
        trainer.generator.set_state(state)
        trainer.optimizer.zero_grad()
        values = {}
        for group in trainer.compute_losses(labeled, unlabeled):
            for name, loss in group.unsupervised.items():
                loss.backward()
                values[name] = loss.item()
        trainer.optimizer.step()
        return values

    first, *_, last = (learn() for _ in range(12))
    assert len(first) == 6
    assert all(last[name] < first[name] for name in first), (first, last)
