"""The contrastive loss with self-paced weights against its formula, computed pair by pair, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_micd.losses.contrastive import NO_LABEL, Pace, model_age, pace_weights, self_paced_contrast

NONE: Any = torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)


def random_embeddings(number: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1).requires_grad_()


def authors_loss(z: np.ndarray, labels: list[int], gamma: float, pace: Pace, temperature: float) -> tuple[float, float]:
    """Return the loss of ``SelfPacedSupConLoss`` and the mean weight, pair by pair."""
    similarity = z @ z.T / temperature
    of_anchors, all_weights = [], []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [j for j in others if labels[j] == labels[i]]
        total = math.log(sum(math.exp(similarity[i, a]) for a in others))
        pairs = [total - similarity[i, j] for j in positives]
        weights = [float(loss <= gamma) if pace == "hard" else max(0.0, 1 - loss / gamma) for loss in pairs]
        of_anchors.append(sum(w * loss for w, loss in zip(weights, pairs, strict=True)) / len(positives))
        all_weights += weights
    mean_weight = float(np.mean(all_weights))
    return float(np.mean(of_anchors)), mean_weight


@pytest.mark.parametrize("gamma", [0.5, 3.0, 6.0, 60.0])
@pytest.mark.parametrize("pace", ["hard", "soft"])
def test_agrees_with_the_authors_formula(pace: Pace, gamma: float) -> None:
    labels = [0, 1, 1, 0, 2, 2, 0, 1, 1, 0, 2, 2]  # six patches in two views
    z = random_embeddings(12)
    contrast = self_paced_contrast(z, torch.tensor(labels), *NONE, gamma, pace, temperature=0.3)
    loss, weight = authors_loss(z.detach().numpy().astype(float), labels, gamma, pace, temperature=0.3)
    assert contrast.loss.item() == pytest.approx(loss, rel=1e-5)
    assert contrast.weight.item() == pytest.approx(weight, rel=1e-5)
    assert contrast.usable == 1


def test_by_hand() -> None:
    z, labels = torch.eye(2).repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1])
    none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    easy = math.log(1 + 2 / math.e)  # one positive with similarity 1, two negatives with 0
    contrast = self_paced_contrast(z, labels, *none, gamma=2.0, temperature=1.0)
    assert contrast.weight.item() == pytest.approx(1 - easy / 2)
    assert contrast.loss.item() == pytest.approx((1 - easy / 2) * easy)
    # Now a pair at right angles: -log(1 / (1 + 2 e)) of both, beside the easy pair of the others.
    z = torch.eye(2)[[0, 1, 0, 0]]
    first = math.log(1 + 2 * math.e)
    second = math.log(3)
    third = math.log(math.e + math.e + 1) - 1
    contrast = self_paced_contrast(z, labels, *none, gamma=1.0, pace="hard", temperature=1.0)
    assert first > 1 < second  # too hard at this age
    assert contrast.weight == 0.5
    assert contrast.loss.item() == pytest.approx((0 + 0 + 2 * third) / 4)


def test_weights_minimize_what_they_are_derived_from() -> None:
    losses, gamma = torch.tensor([0.0, 1.0, 3.9, 4.1, 9.0]), 4.0
    grid = torch.linspace(0, 1, 1001)
    hard = grid * losses[:, None] - gamma * grid
    soft = grid * losses[:, None] + gamma * (grid**2 / 2 - grid)
    torch.testing.assert_close(pace_weights(losses, gamma, "hard"), grid[hard.argmin(1)])
    torch.testing.assert_close(pace_weights(losses, gamma, "soft"), grid[soft.argmin(1)], atol=1e-3, rtol=0)


def test_age_grows_with_the_root_of_time() -> None:
    assert model_age(0, 80, 5.0, 60.0) == 5
    assert model_age(20, 80, 5.0, 60.0) == pytest.approx(5 + 55 * 0.5)
    assert model_age(80, 80, 5.0, 60.0) == model_age(81, 80, 5.0, 60.0) == 60


def test_further_embeddings_are_compared_with_but_are_no_anchors() -> None:
    z, further = random_embeddings(3), random_embeddings(4, seed=1)
    labels, further_labels = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 2])
    gamma = 1e9  # so all weights are one
    together = self_paced_contrast(torch.cat((z, further)), torch.cat((labels, further_labels)), *NONE, gamma)
    apart = self_paced_contrast(z, labels, further, further_labels, gamma)
    anchors = self_paced_contrast(further, further_labels, z, labels, gamma)  # the last has no positive
    assert together.loss.item() == pytest.approx((3 * apart.loss.item() + 3 * anchors.loss.item()) / 6)
    apart.loss.backward()
    assert z.grad is not None
    assert z.grad.any(1).all()
    assert further.grad is None


def test_empty_places_of_a_queue_do_not_count() -> None:
    z, labels = random_embeddings(4), torch.tensor([0, 0, 1, 1])
    empty = torch.full((5, 8), 7.0), torch.full((5,), NO_LABEL)
    with_empty, without = (self_paced_contrast(z, labels, *queue, 5.0) for queue in (empty, NONE))
    torch.testing.assert_close(with_empty, without)


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]], ids=["alone", "no negative", "no positive"])
def test_nothing_to_contrast(labels: list[int]) -> None:
    z = random_embeddings(len(labels))
    contrast = self_paced_contrast(z, torch.tensor(labels), *NONE, 5.0)
    assert (contrast.loss, contrast.weight, contrast.usable) == (0, 0, 0)
    contrast.loss.backward()
    assert z.grad is not None
    assert not z.grad.any()


def test_pairs_that_are_all_too_hard() -> None:
    z = random_embeddings(4)
    contrast = self_paced_contrast(z, torch.tensor([0, 0, 1, 1]), *NONE, gamma=1e-6, temperature=0.07)
    assert (contrast.loss, contrast.weight, contrast.usable) == (0, 0, 1)
    contrast.loss.backward()
    assert z.grad is not None
    assert not z.grad.any()


@pytest.mark.parametrize("autocast", [False, True])
def test_float32_whatever_the_input(autocast: bool) -> None:
    z, labels = random_embeddings(6), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = self_paced_contrast(z, labels, *NONE, 5.0).loss
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(self_paced_contrast(z, labels, *NONE, 5.0).loss, expected)
        half = self_paced_contrast(z.half(), labels, *NONE, 5.0).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected.item(), rel=0.02)
