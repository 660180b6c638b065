"""Mutual correction framework: its two losses and the competition by hand, and that it trains."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, TinyDataset, make_trainer, relabel

from nnunetv2_micd.losses.dice import soft_dice_error
from nnunetv2_micd.methods.mcf import competitive_consistency, difference_review, nnUNetTrainerMCF
from nnunetv2_micd.training.networks import forward_with_features, full_resolution

LOG3 = math.log(3.0)
# Three voxels, two classes. Foreground probability of A: 1/4, 3/4, 3/4; of B: 3/4, 3/4, 1/4.
A = torch.tensor([[[LOG3, 0.0, 0.0], [0.0, LOG3, LOG3]]])
B = torch.tensor([[[0.0, 0.0, LOG3], [LOG3, LOG3, 0.0]]])
TRUTH = torch.tensor([[1, 0, 1]])
YES, NO = torch.tensor(True), torch.tensor(False)


def start(dataset: TinyDataset, configuration: str = "3d_fullres") -> Any:
    trainer = make_trainer(nnUNetTrainerMCF, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_review_is_the_error_where_the_networks_differ() -> None:
    # voxels 0 and 2: A errs by 3/4 and 1/4, B by 1/4 and 3/4
    assert difference_review(A, B, TRUTH).item() == pytest.approx(2 * (9 / 16 + 1 / 16) / 2)
    ignored = torch.tensor([[False, False, True]])
    assert difference_review(A, B, TRUTH, ignored).item() == pytest.approx(9 / 16 + 1 / 16)
    label_of_ignored = torch.tensor([[1, 0, 2]])
    assert difference_review(A, B, label_of_ignored, ignored) == difference_review(A, B, TRUTH, ignored)
    assert difference_review(A, A, TRUTH).item() == 0


def test_review_does_not_shrink_with_further_classes() -> None:
    # A is sure of class 1 and B of class 2; each errs by half of the squared distance of two corners, 1, or not at all
    a, b = 100 * torch.eye(4)[1].view(1, 4, 1), 100 * torch.eye(4)[2].view(1, 4, 1)
    assert difference_review(a, b, torch.tensor([[1]])).item() == pytest.approx(1)
    assert difference_review(a, b, torch.tensor([[3]])).item() == pytest.approx(2)


def test_review_of_regions_is_where_they_differ_about_the_region() -> None:
    a = torch.tensor([[[LOG3, LOG3], [-LOG3, LOG3]]])
    b = torch.tensor([[[-LOG3, LOG3], [-LOG3, -LOG3]]])
    truth = torch.tensor([[[True, False], [False, False]]])
    # region 0, voxel 0: A errs by 1/4, B by 3/4; region 1, voxel 1: A errs by 3/4, B by 1/4
    assert difference_review(a, b, truth, regions=True).item() == pytest.approx(2 * (1 / 16 + 9 / 16) / 2)
    ignored = torch.tensor([[True, False]])
    assert difference_review(a, b, truth, ignored, regions=True).item() == pytest.approx(9 / 16 + 1 / 16)


def test_the_better_network_gives_sharpened_labels() -> None:
    a, b = torch.tensor([[[LOG3], [0.0]]]), torch.tensor([[[0.0], [0.0]]])
    # (3/4, 1/4) sharpened with T = 1/2 is (9/10, 1/10); (1/2, 1/2) stays
    assert competitive_consistency(a, b, YES, 0.5).item() == pytest.approx(0.4**2)
    assert competitive_consistency(a, b, NO, 0.5).item() == pytest.approx(0.25**2)
    assert competitive_consistency(a, b, YES, 1.0).item() == pytest.approx(0.25**2)
    # as regions: sigmoids (3/4, 1/2), sharpened (9/10, 1/2), against (1/2, 1/2)
    assert competitive_consistency(a, b, YES, 0.5, regions=True).item() == pytest.approx(0.4**2 / 2)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_sharpening_is_the_power_of_probabilities(temperature: float) -> None:
    a, b = random_logits(2, 4, 3, 5), random_logits(2, 4, 3, 5, seed=1)
    power = a.softmax(1) ** (1 / temperature)
    expected = (b.softmax(1) - power / power.sum(1, keepdim=True)).square().mean()
    torch.testing.assert_close(competitive_consistency(a, b, YES, temperature), expected)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(6, 5), (2, 3, 4)])
@pytest.mark.parametrize("a_is_better", [YES, NO])
def test_only_the_worse_network_learns(a_is_better: torch.Tensor, spatial: tuple[int, ...], regions: bool) -> None:
    a, b = random_logits(2, 3, *spatial), random_logits(2, 3, *spatial, seed=1)
    competitive_consistency(a, b, a_is_better, 0.1, regions).backward()
    better, worse = (a, b) if a_is_better else (b, a)
    assert not better.grad.any()
    assert worse.grad.any()


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(6, 5), (2, 3, 4)])
def test_review_reaches_both_networks_where_they_differ_only(spatial: tuple[int, ...], regions: bool) -> None:
    a, b = random_logits(2, 3, *spatial), random_logits(2, 3, *spatial, seed=1)
    truth = torch.zeros(2, 3, *spatial, dtype=torch.bool) if regions else torch.zeros(2, *spatial)
    difference_review(a, b, truth, regions=regions).backward()
    differ = (a > 0) != (b > 0) if regions else (a.argmax(1) != b.argmax(1))[:, None].expand_as(a)
    assert differ.any()
    assert not differ.all()
    for logits in (a, b):
        assert torch.equal(logits.grad != 0, differ)


def test_extreme_float16_logits_stay_finite() -> None:
    a, b = ((random_logits(2, 3, 40, 40, seed=s) * 1e4).half().detach().requires_grad_() for s in (0, 1))
    losses = [competitive_consistency(a, b, YES, 0.1), difference_review(a, b, torch.zeros(2, 40, 40))]
    sum(losses).backward()
    for loss in losses:
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    assert all(logits.grad.isfinite().all() for logits in (a, b))


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_step_is_put_together_from_the_losses(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    on_labeled, on_unlabeled = (losses.named for losses in trainer.compute_losses(labeled, unlabeled))
    assert set(on_labeled) == {"supervised", "supervised_b", "review"}
    assert set(on_unlabeled) == {"consistency"}
    losses = on_labeled | on_unlabeled
    on_labels, on_others = (
        [forward_with_features(trainer.students[name], images)[0] for name in "ab"]
        for images in (labeled["data"], unlabeled)
    )
    truth = full_resolution(labeled["target"])[:, 0]
    a_is_better = soft_dice_error(on_labels[0], truth) < soft_dice_error(on_labels[1], truth)
    assert trainer.metrics["a_is_better"] == a_is_better
    torch.testing.assert_close(losses["consistency"], competitive_consistency(*on_others, a_is_better, 0.1))
    torch.testing.assert_close(losses["review"], 0.5 * difference_review(*on_labels, truth))
    for loss in (losses["review"], losses["consistency"]):
        trainer.optimizer.zero_grad()
        loss.backward()
        learns = [next(iter(trainer.students[name].encoder.parameters())).grad for name in "ab"]
        assert learns[1 if a_is_better else 0].any()
        assert (loss is losses["review"]) == learns[0 if a_is_better else 1].any()
    assert all(p.grad is None for teacher in trainer.teachers.values() for p in teacher.parameters())


def test_review_has_its_constant_weight_in_all_steps(dataset: TinyDataset) -> None:
    """Also where the others are left out, and not at all without unsupervised weight."""
    trainer = start(dataset)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    groups = list(trainer.compute_losses(labeled, unlabeled))
    assert "review" in groups[0].supervised
    assert list(groups[1].unsupervised) == ["consistency"]
    assert [set(group.supervised) for group in trainer.compute_losses(labeled, None)] == [set(groups[0].supervised)]
    trainer.config = replace(trainer.config, ramp_peak=0.0)
    assert [set(group.named) for group in trainer.compute_losses(labeled, None)] == [{"supervised", "supervised_b"}]


def test_regions_and_ignored_voxels(dataset: TinyDataset) -> None:
    relabel(dataset, BOTH, annotated_slices=6)
    trainer = start(dataset)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    record = trainer.train_step(labeled)
    assert all(np.isfinite(value) for value in record.values())
    for target in labeled["target"]:
        target[:, -1] = 1
    losses = next(trainer.compute_losses(labeled, unlabeled)).named
    assert losses["review"] == 0
