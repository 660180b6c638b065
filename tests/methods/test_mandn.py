"""M&N: its sampling and its loss by hand, the two networks in turn, and the modes of nnU-Net."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, IGNORE, REGIONS, TinyDataset, make_trainer, relabel
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)

from nnunetv2_micd.export import has_second_network
from nnunetv2_micd.losses.dice import hard_dice
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN, pseudo_labeled_samples, soft_label_loss
from nnunetv2_micd.profiling.passes import count_passes
from nnunetv2_micd.training.networks import full_resolution
from nnunetv2_micd.training.slice_networks import SliceNetwork
from nnunetv2_micd.training.step import Losses

LOG3 = math.log(3.0)


def start(dataset: TinyDataset, configuration: str = "3d_fullres", iteration: int = 0, **fields: Any) -> Any:
    """Return a trainer of ten epochs of two steps, the first of which is supervised, with A about to learn."""
    method = type("Trainer", (nnUNetTrainerMandN,), {"config": replace(nnUNetTrainerMandN.config, **fields)})
    trainer = make_trainer(method, dataset, configuration)
    trainer.num_epochs = 10
    trainer.on_train_start()
    trainer.iteration = iteration
    trainer.current_epoch = iteration // 2
    trainer.learning = "a"
    trainer.on_train_epoch_start()
    return trainer


def set_share(trainer: Any, share: float) -> None:
    """Set the learning rate at which this share of the samples is to be pseudo-labeled."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = (1 - share) * trainer.initial_lr


def batches(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("learning_rate", [1.0, 0.93, 0.7, 0.5])
def test_share_of_pseudo_labeled_samples_is_right_on_average(batch_size: int, learning_rate: float) -> None:
    numbers = [pseudo_labeled_samples(batch_size, learning_rate, step) for step in range(1000)]
    wanted = batch_size * (1 - learning_rate)
    assert np.mean(numbers) == pytest.approx(wanted, abs=1e-3)
    assert set(numbers) <= {math.floor(wanted + 1e-9), math.ceil(wanted - 1e-9)}


def test_one_sample_is_always_labeled() -> None:
    for batch_size in (2, 3, 5):
        assert {pseudo_labeled_samples(batch_size, 0.001, step) for step in range(50)} == {batch_size - 1}
    assert {pseudo_labeled_samples(1, 0.0, step) for step in range(50)} == {1}  # beside the labeled one
    assert {pseudo_labeled_samples(4, 1.5, step) for step in range(50)} == {0}  # as while a learning rate warms up


def test_sampling_is_that_of_the_authors_when_rounded_down() -> None:
    """Theirs, in epoch e of the co-training's E, is floor(e / E * 5); the first step rounds down here too."""
    for epoch in range(100, 3500, 350):
        assert pseudo_labeled_samples(5, 1 - epoch / 3500, step=0) == math.floor(epoch / 3500 * 5)


def authors_loss(logits: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Return ``DiceLoss`` and ``KLDivLoss(reduction="mean")`` of the authors, which they add."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    by_class = [np.moveaxis(values, 1, 0).reshape(logits.shape[1], -1) for values in (probabilities, target)]
    numerator = (by_class[0] * by_class[1]).sum(1)
    denominator = (by_class[0] ** 2).sum(1) + (by_class[1] ** 2).sum(1)
    divergence = np.where(target > 0, target * np.log(np.maximum(target, 1e-30) / probabilities), 0).mean()
    return 1 - (2 * numerator / np.maximum(denominator, 1e-6)).mean(), divergence


@pytest.mark.parametrize("spatial", [(6, 5), (2, 3, 4)])
@pytest.mark.parametrize("hard", [False, True])
def test_loss_is_that_of_the_authors_but_for_the_number_of_classes(spatial: tuple[int, ...], hard: bool) -> None:
    logits, target = random_logits(2, 3, *spatial), random_logits(2, 3, *spatial, seed=1).softmax(1)
    if hard:
        target = torch.zeros_like(target).scatter_(1, target.argmax(1, keepdim=True), 1.0)
    dice, divergence = authors_loss(logits.double().numpy(), target.double().numpy())
    assert soft_label_loss(logits, target).item() == pytest.approx(dice + 3 * divergence, rel=1e-5)


def test_loss_by_hand() -> None:
    logits = torch.tensor([[[LOG3, 0.0], [0.0, LOG3]]])  # classes (3/4, 1/4) and (1/4, 3/4)
    same = logits.softmax(1)
    assert soft_label_loss(logits, same).item() == pytest.approx(0, abs=1e-6)
    swapped = same.flip(2)
    # Dice of both classes: 2 (3/16 + 3/16) / (2 * 10/16); divergence 3/4 ln 3 + 1/4 ln 1/3
    assert soft_label_loss(logits, swapped).item() == pytest.approx(1 - 0.6 + LOG3 / 2)
    # Of a class that is nowhere the Dice is zero, and it stays finite.
    assert soft_label_loss(torch.tensor([[[200.0], [-200.0]]]), torch.tensor([[[1.0], [0.0]]])).item() == 0.5


def test_loss_of_regions_by_hand() -> None:
    logits, target = torch.tensor([[[LOG3], [0.0]]]), torch.tensor([[[0.25], [0.5]]])
    # probabilities 3/4 and 1/2; divergence of the first region as above, of the second none
    dice = (2 * 3 / 16 / (10 / 16) + 1) / 2
    assert soft_label_loss(logits, target, regions=True).item() == pytest.approx(1 - dice + LOG3 / 2 / 2)


@pytest.mark.parametrize("regions", [False, True])
def test_gradient_pulls_towards_the_soft_labels(regions: bool) -> None:
    logits = random_logits(1, 3, 4, 5).requires_grad_()
    target = random_logits(1, 3, 4, 5, seed=1)
    target = target.sigmoid() if regions else target.softmax(1)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        soft_label_loss(logits, target, regions).backward()
        optimizer.step()
    torch.testing.assert_close(logits.sigmoid() if regions else logits.softmax(1), target, atol=0.01, rtol=0)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_computed_in_float32(dtype: torch.dtype, regions: bool) -> None:
    logits = (random_logits(2, 3, 40, 40) * 1e4).to(dtype).requires_grad_()
    target = random_logits(2, 3, 40, 40, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = soft_label_loss(logits, target.sigmoid() if regions else target.softmax(1), regions)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_the_supervised_start_has_whole_epochs(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMandN, dataset, shortened=False)
    trainer.iteration = 125 * trainer.num_iterations_per_epoch - 1
    assert trainer.is_supervised
    trainer.iteration += 1
    assert not trainer.is_supervised
    trainer.config = replace(trainer.config, ramp_peak=0.0)
    assert trainer.is_supervised


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("learning", ["a", "b"])
def test_step_is_put_together_from_the_losses(configuration: str, learning: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration, iteration=4)
    trainer.learning = learning
    set_share(trainer, 0.5)
    labeled, unlabeled = batches(trainer)
    supervised, pseudo = trainer.compute_losses(labeled, unlabeled)
    suffix = "" if learning == "a" else "_b"
    name, other = f"supervised{suffix}", f"pseudo_label{suffix}"
    assert (set(supervised.supervised), set(pseudo.unsupervised)) == ({name}, {other})
    assert supervised.shares[name] == pseudo.shares[other] == trainer.metrics["pseudo_labeled"] == 0.5

    frozen = "b" if learning == "a" else "a"
    student, teacher = trainer.students[learning], trainer.students[frozen]
    assert isinstance(trainer.students["b"], SliceNetwork) == (configuration == "3d_fullres")
    output, targets = student(labeled["data"][1:]), [target[1:] for target in labeled["target"]]
    if isinstance(output, torch.Tensor):  # the 2D network in 3D has no deep supervision
        expected = trainer.loss.loss(output, targets[0])
    else:
        expected = trainer.loss(output, targets)
    torch.testing.assert_close(supervised.supervised[name], expected)
    soft = full_resolution(teacher(unlabeled[:1])).softmax(1)
    expected = soft_label_loss(full_resolution(student(unlabeled[:1])), soft)
    torch.testing.assert_close(pseudo.unsupervised[other], expected)

    (supervised | pseudo).total(1.0).backward()
    assert all(parameter.grad is not None for name, parameter in student.named_parameters() if "seg_layers" not in name)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_each_loss_counts_by_its_share_of_the_samples() -> None:
    losses = Losses(
        {"supervised": torch.tensor(3.0)}, {"pseudo_label": torch.tensor(5.0)}, {"supervised": 0.8, "pseudo_label": 0.2}
    )
    assert losses.total(0.5).item() == pytest.approx(0.8 * 3 + 0.5 * 0.2 * 5)
    assert losses.detached() == losses
    assert (Losses(supervised={"other": torch.tensor(1.0)}) | losses).total(0.0).item() == pytest.approx(1 + 0.8 * 3)


def test_logged_share_of_the_loss_knows_the_samples(dataset: TinyDataset) -> None:
    trainer = start(dataset, iteration=6)
    set_share(trainer, 0.5)
    record = trainer.train_step(next(trainer.dataloader_train))
    errors = 2 + record["supervised"] + record["supervised_b"]
    pseudo = record["pseudo_label"] + record["pseudo_label_b"]
    assert record["loss"] == record["supervised"]
    assert record["unsupervised_share"] == pytest.approx(pseudo / (pseudo + errors))


@pytest.mark.parametrize("bad_turns", ["first", "second", "both"])
def test_both_turns_are_one_step(bad_turns: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start(dataset, iteration=6)
    set_share(trainer, 0.5)
    good = next(trainer.dataloader_unlabeled)
    bad = {**good, "data": torch.full_like(good["data"], math.nan)}
    trainer.dataloader_unlabeled = iter([bad if bad_turns in (turn, "both") else good for turn in ("first", "second")])
    shown: list[None] = []
    monkeypatch.setattr(trainer._step_bar, "update", lambda: shown.append(None))
    record = trainer.train_step(next(trainer.dataloader_train))
    assert (trainer.iteration, len(shown), trainer.monitor._skipped_in_a_row) == (7, 1, 1)
    trainer.on_train_epoch_end([{**record, "loss": np.float32(0)}])
    assert trainer.monitor.history[-1]["skipped_steps"] == 1


def test_steps_without_pseudo_labels_load_no_unlabeled_patches(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    trainer.optimizer.param_groups[0]["lr"] = 0.75 * trainer.initial_lr  # half a sample of a batch of two on average
    needed = []
    for trainer.iteration in range(4, 8):
        assert not trainer.is_supervised
        needed.append((trainer.wanted_samples, trainer.needs_unlabeled))
    assert needed == [(0, False), (1, True)] * 2
    assert trainer.unlabeled_patch_cost == 2 * 0.6  # each network has patches of its own


def test_b_learns_from_a_and_then_a_from_the_new_b(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weight decay nor momentum move the frozen network, though both share an optimizer."""
    trainer = start(dataset)
    trainer.train_step(next(trainer.dataloader_train))  # from now on both have momentum
    trainer.iteration = 4
    weights = [{name: [p.clone() for p in net.parameters()] for name, net in trainer.students.items()}]
    step = trainer._optimizer_step

    def record_weights() -> bool:
        has_changed = step()
        weights.append({name: [p.clone() for p in net.parameters()] for name, net in trainer.students.items()})
        return has_changed

    monkeypatch.setattr(trainer, "_optimizer_step", record_weights)
    trainer.train_step(next(trainer.dataloader_train))
    assert trainer.iteration == 5
    before, between, after = weights

    def same(one: dict[str, list[torch.Tensor]], other: dict[str, list[torch.Tensor]], name: str) -> bool:
        return all(map(torch.equal, one[name], other[name]))

    assert (same(before, between, "a"), same(before, between, "b")) == (True, False)
    assert (same(between, after, "a"), same(between, after, "b")) == (False, True)
    for name, network in trainer.students.items():
        assert all(map(torch.equal, trainer.teachers[name].parameters(), network.parameters()))


def test_without_unsupervised_weight_a_is_nnunets(dataset: TinyDataset) -> None:
    class Supervised(nnUNetTrainerMandN):
        config = replace(nnUNetTrainerMandN.config, ramp_peak=0.0)

    weights = []
    for method in (nnUNetTrainer, Supervised):
        torch.manual_seed(1)
        np.random.seed(1)
        trainer = make_trainer(method, dataset)
        trainer.run_training()
        weights.append(trainer.network.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert trainer.unlabeled_images is None


def test_batch_of_one(dataset: TinyDataset) -> None:
    trainer = start(dataset, iteration=6)
    set_share(trainer, 1.0)
    labeled, unlabeled = batches(trainer)
    labeled = {"data": labeled["data"][:1], "target": [target[:1] for target in labeled["target"]]}
    supervised, pseudo = trainer.compute_losses(labeled, unlabeled[:1])
    assert supervised.shares == {"supervised": 0.5}
    assert pseudo.shares == {"pseudo_label": 0.5}


def test_steps_without_unlabeled_images_keep_all_labeled_ones(dataset: TinyDataset) -> None:
    trainer = start(dataset, iteration=7, consistency_every=2)
    set_share(trainer, 0.5)
    labeled, _ = batches(trainer)
    (only,) = trainer.compute_losses(labeled, None)
    assert only.shares == {"supervised": 1}
    torch.testing.assert_close(
        only.supervised["supervised"], trainer.loss(trainer.network(labeled["data"]), labeled["target"])
    )


@pytest.mark.parametrize(
    "description",
    [BOTH, *(pytest.param(labels, marks=pytest.mark.slow) for labels in (REGIONS, IGNORE))],
    ids=["regions and ignore", "regions", "ignore"],
)
def test_regions_and_ignore_label(description: dict[str, Any], dataset: TinyDataset) -> None:
    relabel(dataset, description, annotated_slices=None if description is REGIONS else 6)
    trainer = make_trainer(nnUNetTrainerMandN, dataset)
    trainer.run_training()
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())


def test_unannotated_voxels_of_labeled_images_are_pseudo_labeled(dataset: TinyDataset) -> None:
    relabel(dataset, IGNORE, annotated_slices=6)
    trainer = start(dataset, iteration=6)
    set_share(trainer, 0.5)
    labeled, unlabeled = batches(trainer)
    labeled["data"].requires_grad_()
    _, pseudo = trainer.compute_losses(labeled, unlabeled)
    gradient = torch.autograd.grad(pseudo.unsupervised["pseudo_label"], labeled["data"])[0]
    assert gradient.flatten(1).any(1).tolist() == [False, True]  # of the one that is left


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_without_deep_supervision(configuration: str, dataset: TinyDataset) -> None:
    method = type("Trainer", (nnUNetTrainerNoDeepSupervision, nnUNetTrainerMandN), {})
    trainer = make_trainer(method, dataset, configuration)
    trainer.run_training()
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_channels_last(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration, channels_last=True)
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["supervised_b"])
    weights = [weight for network in trainer.students.values() for weight in network.parameters() if weight.ndim > 3]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    assert all(weight.is_contiguous(memory_format=formats[weight.ndim]) for weight in weights)


def test_continued_equals_uninterrupted(dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = start(dataset, iteration=4)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    batch, unlabeled = batches(trainer)
    steps = []
    resumed = make_trainer(nnUNetTrainerMandN, dataset)
    resumed.num_epochs = 10
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    checkpoint["trainer_name"] = nnUNetTrainerMandN.__name__
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.on_train_epoch_start()
    for each in (trainer, resumed):
        set_share(each, 0.5)
        each.dataloader_unlabeled = repeat({"data": unlabeled, "keys": [], "positions": torch.zeros(0)})
        steps.append(each.train_step(batch))
    assert steps[0] == steps[1]
    assert "pseudo_label" in steps[0]
    for name, network in trainer.students.items():
        assert all(map(torch.equal, network.parameters(), resumed.students[name].parameters()))


def test_picture_shows_both_networks_and_disturbs_nothing(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    unlabeled = next(trainer.dataloader_unlabeled)["data"]
    states = trainer.generator.get_state(), torch.get_rng_state()
    with torch.no_grad():
        panels = trainer.picture_panels(unlabeled)
    assert list(panels) == ["image", "label of A", "label of B", "A and B differ"]
    assert {panel.shape for panel in panels.values()} == {panels["image"].shape}
    assert torch.equal(trainer.generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize(("configuration", "exports"), [("2d", True), ("3d_fullres", False)])
def test_second_network_is_exported_where_nnunet_can_build_it(
    configuration: str, exports: bool, dataset: TinyDataset, tmp_path: Path
) -> None:
    trainer = make_trainer(nnUNetTrainerMandN, dataset, configuration)
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert has_second_network(tmp_path / "checkpoint.pth") == exports


def test_passes_of_a_step(dataset: TinyDataset) -> None:
    trainer = start(dataset, iteration=4)
    set_share(trainer, 0.5)
    counted: Counter[tuple[str, bool, bool]] = Counter()
    for kind in count_passes(trainer, next(trainer.dataloader_train)):
        counted[kind.network, kind.teacher, kind.gradient] += kind.times * kind.images / trainer.batch_size
    assert counted == {(n, teacher, not teacher): 0.5 if teacher else 1.0 for n in "ab" for teacher in (False, True)}


@pytest.mark.slow
def test_both_networks_learn_a_batch(dataset: TinyDataset) -> None:
    """In a short training the losses fall, and both networks find the foreground of the labeled patch that is left."""
    plans = json.loads(dataset.plans_file.read_text())
    for name in ("2d", "3d_fullres"):
        plans["configurations"][name]["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 32, 32]
    dataset.plans_file.write_text(json.dumps(plans))
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = make_trainer(nnUNetTrainerMandN, dataset)
    trainer.config = replace(trainer.config, supervised=0.5)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 8, 25
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    trainer.dataloader_unlabeled = repeat(next(trainer.dataloader_unlabeled))
    truth = full_resolution(batch["target"])[-1:, 0]

    def dice(name: str) -> float:
        with torch.no_grad():
            labels = trainer.pseudo_label(full_resolution(trainer.teachers[name](batch["data"][-1:])))
        return float(hard_dice(labels, truth, 3)[1:].mean())

    before = {name: dice(name) for name in "ab"}
    records: dict[str, list[float]] = {"supervised": [], "supervised_b": [], "pseudo_label": [], "pseudo_label_b": []}
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            record = trainer.train_step(batch)
            for name in records.keys() & record.keys():
                records[name].append(float(record[name]))
    for losses in (records["supervised"], records["supervised_b"]):
        assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5
    after = {name: dice(name) for name in "ab"}
    assert min(after.values()) > max(0.6, *before.values()), (before, after)
    for losses in (records["pseudo_label"], records["pseudo_label_b"]):
        assert np.mean(losses[-10:]) < np.mean(losses[:10])
