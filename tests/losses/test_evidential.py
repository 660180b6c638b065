"""Beliefs, their fusion, ranks and the Fisher loss: by hand, against float64 and the numbers of I-EDL's own code."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from nnunetv2_micd.losses import fused as fused_losses
from nnunetv2_micd.losses.evidential import (
    Opinion,
    curriculum_weight,
    fisher_evidential_loss,
    fuse,
    log_fisher_information,
    opinion,
    reliability,
    trigamma,
)
from nnunetv2_micd.losses.fused import chunked_mean


def logits_of(*evidence: float) -> Tensor:
    """Return the logits of one voxel with this evidence of each class."""
    return torch.tensor(evidence, dtype=torch.float64).expm1().log().view(1, -1, 1).float()


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def random_labels(k: int, *shape: int) -> Tensor:
    return torch.randint(k, shape, generator=torch.Generator().manual_seed(5))


def test_opinion_of_three_classes() -> None:
    belief, uncertainty = opinion(logits_of(4.0, 2.0, 1.0))  # S = 10
    np.testing.assert_allclose(belief.flatten(), [0.4, 0.2, 0.1], rtol=1e-5)
    assert uncertainty.item() == pytest.approx(0.3)


def test_region_is_a_decision_between_two() -> None:
    logits = random_logits(2, 3, 4, 5)
    belief, uncertainty = opinion(logits, regions=True)
    assert belief.shape == (2, 2, 3, 4, 5)
    assert uncertainty.shape == (2, 3, 4, 5)
    torch.testing.assert_close(belief.sum(1) + uncertainty, torch.ones(2, 3, 4, 5))
    one = opinion(torch.stack((-logits[:, 1], logits[:, 1]), 1))
    torch.testing.assert_close((belief[:, :, 1], uncertainty[:, 1]), tuple(one))
    assert torch.equal(belief[:, 1] > belief[:, 0], logits > 0)


def test_fusion_by_hand() -> None:
    one = Opinion(torch.tensor([[[0.4], [0.2], [0.1]]]), torch.tensor([[0.3]]))
    other = Opinion(torch.tensor([[[0.1], [0.3], [0.0]]]), torch.tensor([[0.6]]))
    # a class counts 1 / (1 + 3) of what only one of both believes
    raw = np.array([0.04 + (0.24 + 0.03) / 4, 0.06 + (0.12 + 0.09) / 4, (0.06 + 0.0) / 4, 0.18])
    for fused in (fuse(one, other), fuse(other, one)):
        np.testing.assert_allclose(fused.belief.flatten(), raw[:3] / raw.sum(), rtol=1e-6)
        assert fused.uncertainty.item() == pytest.approx(raw[3] / raw.sum())


@pytest.mark.parametrize("regions", [False, True])
def test_two_that_agree_are_surer_than_one_and_two_that_know_nothing_know_nothing(regions: bool) -> None:
    sure, unsure = (opinion(torch.tensor([[[9.0], [-9.0]]]) * scale, regions) for scale in (1.0, 0.1))
    assert (fuse(sure, sure).uncertainty < sure.uncertainty).all()
    assert (fuse(sure, sure).uncertainty < fuse(sure, unsure).uncertainty).all()
    nothing = Opinion(torch.zeros(1, 2, 1), torch.ones(1, 1))
    assert torch.equal(fuse(nothing, nothing).uncertainty, torch.ones(1, 1))


def test_reliability_by_hand_and_between_its_limits() -> None:
    fused = Opinion(torch.tensor([[[0.5], [0.25], [0.0]]]), torch.tensor([[0.25]]))
    assert reliability(fused).item() == pytest.approx(math.exp(-0.25 * (0.5 * 1 + 0.25 * 2)))
    values = reliability(fuse(*(opinion(random_logits(2, 5, 30, 30, seed=seed)) for seed in (0, 1))))
    assert values.min() > 0
    assert values.max() <= 1
    certain = Opinion(torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 1))
    assert reliability(certain).item() == 1


def test_nothing_of_it_has_a_gradient_or_another_dtype() -> None:
    logits = random_logits(1, 3, 4, 4).half()
    with torch.autocast("cpu", torch.bfloat16):
        fused = fuse(opinion(logits), opinion(logits.bfloat16()))
        for tensor in (*fused, reliability(fused), curriculum_weight(fused.uncertainty, 0.3, 0.5)):
            assert tensor.dtype == torch.float32
            assert not tensor.requires_grad


def test_opposite_extreme_opinions_stay_finite() -> None:
    one = torch.tensor([[[6e4], [-6e4], [-6e4]]], dtype=torch.float16)
    fused = fuse(opinion(one), opinion(one.flip(1)))
    assert all(tensor.isfinite().all() for tensor in (*fused, reliability(fused)))
    assert (fused.belief.sum(1) + fused.uncertainty).item() == pytest.approx(1)


def by_sorting(uncertainty: Tensor) -> Tensor:
    ranks = torch.empty(uncertainty.numel(), dtype=torch.float64)
    ranks[uncertainty.flatten().argsort()] = torch.arange(uncertainty.numel(), dtype=torch.float64) + 0.5
    return (2 * ranks / uncertainty.numel() - 1).view_as(uncertainty)


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
def test_curriculum_is_that_of_sorted_voxels(progress: float) -> None:
    uncertainty = opinion(random_logits(2, 3, 40, 40)).uncertainty
    expected = 1 + 0.5 * torch.tanh(by_sorting(uncertainty) * (2 * progress - 1))
    weight = curriculum_weight(uncertainty, progress, 0.5)
    assert (weight - expected).abs().max() < 5e-3
    assert weight.mean().item() == pytest.approx(1, abs=1e-3)


def test_certain_voxels_weigh_more_at_first_and_uncertain_ones_at_last() -> None:
    uncertainty = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
    at_first, in_the_middle, at_last = (curriculum_weight(uncertainty, progress, 0.8)[0] for progress in (0, 0.5, 1))
    assert (at_first.diff() < 0).all()
    assert (in_the_middle == 1).all()
    assert (at_last.diff() > 0).all()
    # middle ranks (0.5, 1.5, 2.5, 3.5) of 4
    np.testing.assert_allclose(at_last, 1 + 0.8 * np.tanh([-0.75, -0.25, 0.25, 0.75]), rtol=1e-6)


def test_equal_voxels_weigh_the_same() -> None:
    weight = curriculum_weight(torch.tensor([[0.5, 0.1, 0.5, 0.5]]), 1.0, 0.5)[0]
    np.testing.assert_allclose(weight, 1 + 0.5 * np.tanh([0.25, -0.75, 0.25, 0.25]), rtol=1e-6)
    assert torch.equal(curriculum_weight(torch.ones(2, 3), 1.0, 0.5), torch.ones(2, 3))


def test_voxels_that_do_not_count_have_no_rank() -> None:
    uncertainty = torch.tensor([[0.1, 0.5, 0.3, 0.9]])
    counted = torch.tensor([[True, False, True, True]])
    weight = curriculum_weight(uncertainty, 0.0, 0.5, counted)
    assert torch.equal(weight[counted], curriculum_weight(uncertainty[counted][None], 0.0, 0.5)[0])
    assert weight[0, 1] == 0
    assert not curriculum_weight(uncertainty, 0.0, 0.5, torch.zeros_like(counted)).any()
    by_voxel = curriculum_weight(uncertainty[:, None].expand(1, 2, 4), 0.0, 0.5, counted[:, None])
    assert torch.equal(by_voxel != 0, counted[:, None].expand(1, 2, 4))


@pytest.mark.parametrize("classes", [2, 3, 14])
def test_fisher_information_is_the_determinant_of_the_matrix(classes: int) -> None:
    alpha = functional.softplus(random_logits(1, classes, 50)) + 1
    exact = alpha.detach().double()
    matrices = torch.diag_embed(torch.polygamma(1, exact).transpose(1, 2)) - torch.polygamma(
        1, exact.sum(1, keepdim=True)
    ).transpose(1, 2).unsqueeze(-1)
    torch.testing.assert_close(log_fisher_information(alpha)[:, 0].double(), matrices.logdet(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("evidence", [0.0, 1e-30, 1e-6, 1e2, 1e4, 1e6, 1e9, 1e12])
def test_fisher_information_is_finite_for_tiny_and_large_evidence(evidence: float) -> None:
    for others in (0.0, evidence):
        alpha = (torch.tensor([[evidence], [others], [others]])[None] + 1).requires_grad_()
        value = log_fisher_information(alpha)
        value.sum().backward()
        assert value.isfinite().all()
        assert alpha.grad.isfinite().all()


def test_fisher_information_of_much_evidence() -> None:
    """There psi1(x) is 1 / x: the determinant is (C - 1) / 2 / S / (alpha_1 ... alpha_C)."""
    for evidence in (1e3, 1e7):  # at the latter nothing but the limits of the rounding errors is left
        value = log_fisher_information(torch.full((1, 3, 1), evidence)).item()
        exact = math.log(2 / 2 / (3 * evidence)) - 3 * math.log(evidence)
        assert value == pytest.approx(exact, abs=0.005 if evidence < 1e4 else 0.4)


def test_trigamma_and_its_derivative() -> None:
    x = torch.cat((torch.linspace(1, 12, 200), torch.logspace(1, 6, 50))).requires_grad_()
    trigamma(x).sum().backward()
    exact = x.detach().double()
    torch.testing.assert_close(trigamma(x).double(), torch.polygamma(1, exact), rtol=1e-5, atol=0)
    torch.testing.assert_close(x.grad.double(), torch.polygamma(2, exact), rtol=1e-5, atol=0)


def loss_by_formula(logits: Tensor, labels: Tensor, weight: Tensor, fisher_weight: float) -> Tensor:
    alpha = functional.softplus(logits.double()) + 1
    strength = alpha.sum(1, keepdim=True)
    truth = functional.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)
    variance = alpha * (strength - alpha) / (strength**2 * (strength + 1))
    error = (((truth - alpha / strength) ** 2 + variance) * torch.polygamma(1, alpha)).sum(1)
    rest = 1 - (torch.polygamma(1, strength) / torch.polygamma(1, alpha)).sum(1)
    return (weight * error - fisher_weight * (torch.polygamma(1, alpha).log().sum(1) + rest.log())).mean()


def test_loss_agrees_with_the_authors_of_iedl() -> None:
    """Squared error, variance and log-determinant that ``compute_fisher_mse`` of commit 4aca7db2 returns for these."""
    logits = torch.tensor([[1.5, 4.0], [-2.0, 0.0], [0.3, -1.0]])[None]
    labels, ones = torch.tensor([[0, 1]]), torch.ones(1, 2)
    assert fisher_evidential_loss(logits, labels, ones, 0.0).item() == pytest.approx(0.432792 + 0.05518, abs=1e-5)
    with_fisher = fisher_evidential_loss(logits, labels, ones, 0.5).item()
    assert with_fisher == pytest.approx(0.432792 + 0.05518 + 0.5 * 3.232728, abs=1e-5)


@pytest.mark.parametrize("chunk", [50, 2**22])
@pytest.mark.parametrize("spatial", [(6, 5), (2, 3, 4)])
def test_value_and_gradient_are_those_of_the_formula(
    spatial: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_losses, "CHUNK", chunk)
    ours, reference = random_logits(2, 4, *spatial), random_logits(2, 4, *spatial)
    labels, weight = random_labels(4, 2, *spatial), random_labels(3, 2, *spatial) / 2
    value, expected = (3 * loss(ours, labels, weight, 0.05) for loss in (fisher_evidential_loss, loss_by_formula))
    value.backward()
    (3 * loss_by_formula(reference, labels, weight, 0.05)).backward()
    torch.testing.assert_close(value, expected.float())
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-4, atol=1e-7)


def test_regions_are_so_many_problems_of_two_classes() -> None:
    logits, masks = random_logits(2, 3, 4, 5), random_labels(2, 2, 3, 4, 5).bool()
    weight = random_labels(3, 2, 3, 4, 5) / 2
    value = fisher_evidential_loss(logits, masks, weight, 0.05, regions=True)
    pairs = torch.stack((-logits, logits), 1)
    parts = [loss_by_formula(pairs[:, :, k], masks[:, k], weight[:, k], 0.05) for k in range(3)]
    torch.testing.assert_close(value, torch.stack(parts).mean().float())
    value.backward()
    assert logits.grad.all()


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_extreme_half_precision_logits_stay_finite(dtype: torch.dtype, scale: float, regions: bool) -> None:
    logits = (random_logits(2, 3, 20, 20, scale=scale)).to(dtype).detach().requires_grad_()
    labels = random_labels(2, 2, 3, 20, 20).bool() if regions else random_labels(3, 2, 20, 20)
    with torch.autocast("cpu", dtype):
        value = fisher_evidential_loss(logits, labels, torch.ones(labels.shape), 0.05, regions)
    (2**10 * value).backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_more_evidence_of_the_label_lowers_the_error_and_all_evidence_costs_information() -> None:
    def loss(*evidence: float, **options: Any) -> float:
        return fisher_evidential_loss(
            logits_of(*evidence), torch.tensor([[0]]), torch.ones(1, 1), options.get("fisher_weight", 0.0)
        ).item()

    assert loss(9.0, 1.0) < loss(3.0, 1.0) < loss(1.0, 3.0) < loss(1.0, 9.0)
    price = [loss(e, e, fisher_weight=1.0) - loss(e, e) for e in (1.0, 3.0, 9.0)]
    assert price[0] < price[1] < price[2]


def test_chunked_mean_without_gradient() -> None:
    value = chunked_mean(lambda values: values.sum(1), torch.ones(2, 3, 4))
    assert value.item() == 3
    assert not value.requires_grad


def test_an_uncertainty_that_is_not_a_number_has_a_weight() -> None:
    assert curriculum_weight(torch.tensor([[0.5, float("nan"), float("inf")]]), 0.5, 0.5).isfinite().all()
