"""C3S3: its losses by hand and against the authors' formula, its competition and projectors, and that it learns."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, IGNORE, TinyDataset, make_trainer, relabel

from nnunetv2_micd.losses.dice import hard_dice, soft_dice_error
from nnunetv2_micd.losses.fused import channel_cosine
from nnunetv2_micd.losses.intersection_union import intersection_union_contrast
from nnunetv2_micd.methods.c3s3 import competition_score, nnUNetTrainerC3S3
from nnunetv2_micd.methods.mcf import competitive_consistency
from nnunetv2_micd.training.networks import forward_with_features, full_resolution
from nnunetv2_micd.training.step import Losses

UNSUPERVISED = {"cosine", "competition", "contrast"}


def start(dataset: TinyDataset, configuration: str = "3d_fullres", **fields: Any) -> Any:
    trainer_class = type("Trainer", (nnUNetTrainerC3S3,), {"config": replace(nnUNetTrainerC3S3.config, **fields)})
    trainer = make_trainer(trainer_class, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def next_batches(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


def backpropagate(trainer: Any, labeled: dict[str, Any], unlabeled: torch.Tensor | None, weight: float) -> Losses:
    together = Losses()
    for group in trainer.compute_losses(labeled, unlabeled):
        group.total(weight).backward()
        together |= group.detached()
    return together


def gradients_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def by_authors(features_a: np.ndarray, features_b: np.ndarray, labels_a: Any, labels_b: Any, tau: float) -> float:
    """Their ``ContrastiveLoss`` for one foreground class: features (voxels, channels), labels (voxels,)."""
    unit_a, unit_b = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (features_a, features_b))
    similarity = (unit_a * unit_b).sum(1)
    both, either = (labels_a == 1) & (labels_b == 1), (labels_a == 1) | (labels_b == 1)
    loss = 0.0
    for numerator, rest in ((both, ~both), (~either, either)):
        positive, negative = np.exp(numerator * similarity / tau), np.exp(rest * similarity / tau)
        loss += -np.log(positive / (negative.sum() + positive + 1e-8)).mean()
    return loss


def test_contrast_by_hand() -> None:
    """Three voxels: both see the class, one does, none does. e^s is 2, 3 and 5."""
    cosine = torch.tensor([[2.0, 3.0, 5.0]]).log() / 10
    a, b = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]])
    intersection = math.log((1 + 3 + 5 + 2) / 2) + 2 * math.log(1 + 3 + 5 + 1)
    union = math.log((2 + 3 + 1 + 5) / 5) + 2 * math.log(2 + 3 + 1 + 1)
    loss = intersection_union_contrast(cosine, a, b, num_classes=2, temperature=0.1)
    assert loss.item() == pytest.approx((intersection + union) / 3, rel=1e-5)
    assert intersection_union_contrast(cosine, b, a, 2, 0.1) == loss  # the networks are equals
    assert intersection_union_contrast(cosine, a, b, 9, 0.1) == loss  # classes that nobody sees do not count


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrast_of_one_class_is_the_authors(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 6, 4, 5, generator=generator)
    labels_a, labels_b = torch.randint(0, 2, (2, 2, 4, 5), generator=generator)
    flat = [features.movedim(1, -1).reshape(-1, 6).double().numpy() for features in (a, b)]
    expected = by_authors(*flat, labels_a.flatten().numpy(), labels_b.flatten().numpy(), temperature)
    loss = intersection_union_contrast(channel_cosine(a, b), labels_a, labels_b, 2, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_classes_are_contrasted_with_the_rest_and_regions_by_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    cosine = 2 * torch.rand(2, 6, 7, generator=generator) - 1
    a, b = torch.randint(0, 4, (2, 2, 6, 7), generator=generator).to(torch.int16)
    of_classes = [intersection_union_contrast(cosine, (a == k).int(), (b == k).int(), 2, 0.1) for k in (1, 2, 3)]
    expected = torch.stack(of_classes).mean()
    torch.testing.assert_close(intersection_union_contrast(cosine, a, b, 4, 0.1), expected)
    regions_a, regions_b = (torch.stack([labels >= k for k in (1, 2, 9)], 1) for labels in (a, b))
    expected = torch.stack(
        [intersection_union_contrast(cosine, (a >= k).int(), (b >= k).int(), 2, 0.1) for k in (1, 2)]
    ).mean()
    torch.testing.assert_close(intersection_union_contrast(cosine, regions_a, regions_b, 3, 0.1), expected)


def test_contrast_attracts_where_both_agree() -> None:
    """Up on the intersection and outside the union more than elsewhere, by the gradient of each term alone."""
    cosine = torch.zeros(1, 40, requires_grad=True)
    a, b = torch.zeros(2, 1, 40, dtype=torch.bool)
    a[0, :20], b[0, 10:30] = True, True  # 10 of both, 20 of one, 10 of none
    intersection_union_contrast(cosine, a[:, None], b[:, None], 1, 0.1).backward()
    both, one, none = cosine.grad[0, 15], cosine.grad[0, 5], cosine.grad[0, 35]
    torch.testing.assert_close(both, none)  # at a cosine of 0 all weigh the same
    assert both < one
    assert one > 0


def test_nothing_seen_is_no_contrast() -> None:
    cosine = torch.rand(1, 5, requires_grad=True)
    labels = torch.zeros(1, 5, dtype=torch.int16)
    loss = intersection_union_contrast(cosine, labels, labels, 3, 0.1)
    loss.backward()
    assert loss == 0
    assert not cosine.grad.any()


def test_contrast_is_finite_in_half_precision_and_with_cosines_of_one() -> None:
    features = (torch.randn(2, 8, 30, 30, generator=torch.Generator().manual_seed(0)) * 1e3).half().requires_grad_()
    labels = torch.randint(0, 3, (2, 30, 30), generator=torch.Generator().manual_seed(1))
    cosine = channel_cosine(features, features.detach() * 2)
    loss = intersection_union_contrast(cosine, labels, labels, 3, 0.001)
    loss.backward()
    assert cosine.dtype == loss.dtype == torch.float32
    assert loss.isfinite()
    assert features.grad.isfinite().all()


def test_score_is_cross_entropy_and_dice() -> None:
    # Two voxels of class 1, whose probability is 3/4 and 1/4; the third one is ignored.
    log3 = math.log(3.0)
    logits = torch.tensor([[[0.0, log3, 9.0], [log3, 0.0, 0.0]]])
    truth, ignored = torch.tensor([[1, 1, 7]]), torch.tensor([[False, False, True]])
    entropy = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    dice = 2 * (3 / 4 + 1 / 4) / (9 / 16 + 1 / 16 + 2)
    score = competition_score(logits, truth, ignored, alpha=0.8)
    assert score.item() == pytest.approx(0.8 * entropy + 0.2 * (1 - dice), rel=1e-4)
    assert not score.requires_grad
    # As regions: probabilities 1/2, 3/4 and 3/4, 1/2
    truth = torch.tensor([[[True, False, True], [True, True, True]]])
    entropy = -(math.log(1 / 2) + math.log(1 / 4) + math.log(3 / 4) + math.log(1 / 2)) / 4
    score = competition_score(logits, truth, ignored, alpha=1.0, regions=True)
    assert score.item() == pytest.approx(entropy, rel=1e-5)
    assert competition_score(logits, truth, ignored, 0.0, True) == soft_dice_error(logits, truth, ignored, True)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_step_is_put_together_from_the_losses(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    trainer.iteration = 3
    labeled, unlabeled = next_batches(trainer)
    state = trainer.generator.get_state()
    losses = backpropagate(trainer, labeled, unlabeled, weight=1.0)
    assert set(losses.supervised) == {"supervised", "supervised_b"}
    assert set(losses.unsupervised) == UNSUPERVISED
    gradients = {name: gradients_of(network) for name, network in trainer.students.items()}
    assert all(gradient.any() for name in ("projector_a", "projector_b") for gradient in gradients[name].values())

    trainer.generator.set_state(state)
    trainer.optimizer.zero_grad()
    views = trainer._draw_views(unlabeled, trainer.generator)
    assert not torch.equal(*views)
    truth = full_resolution(labeled["target"])[:, 0]
    logits, projected, scores, supervised = {}, {}, {}, []
    for name in "ab":
        network = trainer.students[name]
        output = network(labeled["data"])
        supervised.append(trainer.loss(output, labeled["target"]))
        scores[name] = competition_score(output[0], truth, None, 0.5)
        passes = [forward_with_features(network, view) for view in views]
        logits[name] = [of_pass[0] for of_pass in passes]
        projected[name] = [trainer.students[f"projector_{name}"](of_pass[1][-1]) for of_pass in passes]
    a_is_better = scores["a"] < scores["b"]
    assert trainer.metrics["a_is_better"] == a_is_better
    similarity = torch.nn.functional.cosine_similarity
    cosine = sum(1 - similarity(*logits[name], dim=1).mean() for name in "ab")
    pairs = list(zip(logits["a"], logits["b"], strict=True))
    strength = 0.1 * math.exp(-5 * (1 - 3 / round(2.4 * 4)) ** 2)
    competition = strength * sum(competitive_consistency(a, b, a_is_better, 0.1) for a, b in pairs)
    contrast = (
        2
        * strength
        * sum(
            intersection_union_contrast(
                similarity(projected["a"][i], projected["b"][j], dim=1),
                logits["a"][i].argmax(1),
                logits["b"][j].argmax(1),
                3,
                0.1,
            )
            for i in (0, 1)
            for j in (0, 1)
        )
    )
    named = losses.named
    expected = {"cosine": cosine, "competition": competition, "contrast": contrast}
    expected |= dict(zip(("supervised", "supervised_b"), supervised, strict=True))
    for name, loss in expected.items():
        torch.testing.assert_close(named[name], loss.detach(), rtol=1e-4, atol=1e-5)
    sum(expected.values()).backward()
    for name, network in trainer.students.items():
        torch.testing.assert_close(gradients[name], gradients_of(network), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("better", "worse"), ["ab", "ba"])
def test_only_the_worse_network_learns_from_the_competition(better: str, worse: str, dataset: TinyDataset) -> None:
    trainer = start(dataset)
    _, unlabeled = next_batches(trainer)
    logits = {name: forward_with_features(trainer.students[name], unlabeled)[0] for name in "ab"}
    projected = torch.ones(len(unlabeled), 2, *unlabeled.shape[2:])
    outputs = [(logits[name], projected) for name in "aabb"]
    trainer._consistency_losses(outputs, torch.tensor(better == "a"))["competition"].backward()
    learns = {name: next(iter(trainer.students[name].encoder.parameters())).grad for name in "ab"}
    assert learns[worse].any()
    assert not learns[better].any()


def test_ramp_is_of_the_competition_alone(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    weights = []
    for trainer.iteration in (0, 2, 4):  # of 4 steps
        weights.append(trainer.competition_weight)
        assert trainer.unsupervised_weight == 1
    assert weights == pytest.approx([0.1 * math.exp(-5 * (1 - step / 10) ** 2) for step in (0, 2, 4)])
    assert weights[-1] == pytest.approx(0.0165, abs=1e-3)  # where the authors' training ends


def test_labeled_images_alone_without_unsupervised_weight(dataset: TinyDataset) -> None:
    trainer = start(dataset, ramp_peak=0.0)
    assert trainer.dataloader_unlabeled is None
    labeled = next(trainer.dataloader_train)
    state = trainer.generator.get_state()
    groups = [set(group.named) for group in trainer.compute_losses(labeled, None)]
    assert groups == [{"supervised"}, {"supervised_b"}]
    assert torch.equal(trainer.generator.get_state(), state)


def test_projectors_are_trained_saved_and_no_part_of_the_networks(dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = start(dataset)
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    projectors = [trainer.students[f"projector_{name}"] for name in "ab"]
    assert all(id(p) in trained for projector in projectors for p in projector.parameters())
    assert not any("projector" in key for name in "ab" for key in trainer.students[name].state_dict())
    before = [p.clone() for projector in projectors for p in projector.parameters()]
    trainer.train_step(next(trainer.dataloader_train))
    after = [p for projector in projectors for p in projector.parameters()]
    assert not any(map(torch.equal, before, after))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    other = make_trainer(type(trainer), dataset)
    other.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    for name in "ab":
        loaded = other.students[f"projector_{name}"].parameters()
        assert all(map(torch.equal, loaded, trainer.students[f"projector_{name}"].parameters()))


def test_regions_and_ignored_voxels(dataset: TinyDataset) -> None:
    relabel(dataset, BOTH, annotated_slices=6)
    trainer = start(dataset)
    record = trainer.train_step(next(trainer.dataloader_train))
    assert all(np.isfinite(value) for value in record.values())


def test_unannotated_voxels_of_labeled_images_are_unlabeled_ones(dataset: TinyDataset) -> None:
    relabel(dataset, IGNORE, annotated_slices=6)
    trainer = start(dataset)
    labeled, unlabeled = next_batches(trainer)
    seen = []
    draw_views = trainer._draw_views
    trainer._draw_views = lambda images, generator: (seen.append(images), draw_views(images, generator))[1]
    backpropagate(trainer, labeled, unlabeled, weight=1.0)
    assert torch.equal(seen[0], torch.cat((labeled["data"], unlabeled)))


def test_picture_shows_the_views_and_does_not_disturb(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    states = trainer.generator.get_state(), torch.get_rng_state()
    with torch.no_grad():
        panels = trainer.picture_panels(next_batches(trainer)[1])
    assert list(panels) == ["image", "first view", "second view", "label of A", "label of B", "A and B differ"]
    assert not torch.equal(panels["first view"], panels["second view"])
    assert torch.equal(trainer.generator.get_state(), states[0])


@pytest.mark.slow
def test_learns_a_labeled_batch(dataset: TinyDataset) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = start(dataset)
    trainer.num_iterations_per_epoch = 50
    labeled, _ = next_batches(trainer)
    truth = full_resolution(labeled["target"])[:, 0]

    def dice() -> np.ndarray:
        with torch.no_grad():
            logits = [forward_with_features(trainer.students[name], labeled["data"])[0] for name in "ab"]
        return np.array([hard_dice(trainer.pseudo_label(of_one), truth, 3)[1:].mean() for of_one in logits])

    before = dice()
    records = [trainer.train_step(labeled) for _ in range(100)]
    for name in ("supervised", "supervised_b"):
        assert records[-1][name] < records[0][name] - 0.2
    assert (dice() > before + 0.2).all()
    assert {record["a_is_better"] for record in records} <= {0.0, 1.0}
    assert all(record["cosine"] < 0.1 for record in records[-5:])
