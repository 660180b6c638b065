"""Known values follow DHC's code at github.com/xmed-lab/DHC, commit b3dee972dc1a77307f6aaef16dc78b10838e0a8d."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nnunetv2_micd.losses.class_weights import DifficultyWeights, DistributionWeights


@pytest.mark.parametrize(
    ("counts", "floor", "expected"),
    [
        ([100, 10, 1], 0.0, [0.0, 1.5, 3.0]),
        ([100, 10, 1], 0.2, [0.6, 1.5, 3.0]),
        ([90, 10], 0.0, [0.0, 2.0]),  # the literal formula removes the background
        ([90, 10], 0.1, [0.2, 2.0]),
        ([7, 7, 7], 0.0, [3.0, 3.0, 3.0]),
        ([0, 0], 0.0, [2.0, 2.0]),
        ([100, 10, 0], 0.0, [0.0, 3 * math.log(10) / math.log(1e10), 3.0]),
        ([100, 0, 0], 0.0, [0.0, 3.0, 3.0]),
    ],
)
def test_distribution_weights_of_the_label_counts(counts: list[int], floor: float, expected: list[float]) -> None:
    weights = DistributionWeights(torch.tensor(counts), floor).weights
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_the_largest_of_three_regions_keeps_a_weight() -> None:
    """All voxels together, most of which are in no region, are more."""
    weights = DistributionWeights(torch.tensor([100, 10, 1]), floor=0.0, num_voxels=1000).weights
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 3.0]))
    module = DistributionWeights(torch.tensor([1, 2, 3]), floor=0.0, momentum=0.0, num_voxels=1000)
    masks = torch.zeros(1, 3, 1000, dtype=torch.bool)
    masks[0, 0, :100] = masks[0, 1, :10] = masks[0, 2, :1] = True
    torch.testing.assert_close(module.update(masks), torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("spatial", [(4,), (2, 2), (1, 2, 2)])
def test_distribution_weights_average_weights_not_counts(spatial: tuple[int, ...]) -> None:
    module = DistributionWeights(torch.tensor([100, 10, 1]), floor=0.0, momentum=0.9)
    updated = module.update(torch.tensor([1, 1, 0, 2]).reshape(1, *spatial))  # counts 1, 2, 1: weights 3, 0, 3
    torch.testing.assert_close(updated, torch.tensor([0.3, 1.35, 3.0]))


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan])
def test_distribution_weights_refuse_a_floor_outside_the_unit_interval(floor: float) -> None:
    with pytest.raises(ValueError, match="floor"):
        DistributionWeights(torch.tensor([1, 2]), floor)


def test_distribution_weights_refuse_counts_that_are_no_vector() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        DistributionWeights(torch.tensor([[1, 2]]), 0.0)


def test_difficulty_weights_known_values_over_two_steps() -> None:
    module = DifficultyWeights(2, tau=2)
    assert module.weights.tolist() == [2.0, 2.0]

    first = module.update(torch.tensor([0.5, 0.25]))
    learn = [0.5 * d * math.log(d / 1e-8) for d in (0.5, 0.25)]
    raw = [(1e-8 / x) ** 0.2 * error for x, error in zip(learn, (0.75, 0.875), strict=True)]
    torch.testing.assert_close(first, torch.tensor([2 * raw[0] / max(raw), 2 * raw[1] / max(raw)]))

    second = module.update(torch.tensor([0.25, 0.5]))  # class 0 is unlearned, class 1 learned further
    step = 0.5 * 0.25 * math.log(2)
    raw = [(step / (learn[0] / 2)) ** 0.2 * 0.75, (1e-8 / (learn[1] / 2 + step)) ** 0.2 * (0.875 + 0.5) / 2]
    torch.testing.assert_close(second, torch.tensor([2.0, 2 * raw[1] / raw[0]]), rtol=1e-4, atol=1e-6)


def test_difficulty_weights_stay_finite_at_the_extremes() -> None:
    module = DifficultyWeights(3, tau=5)
    for dice in ([0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 0.0, 0.0], *([[1.0, 1.0, 1.0]] * 800)):
        weights = module.update(torch.tensor(dice))
        assert torch.isfinite(weights).all()
        assert weights.max() == 3.0


def test_difficulty_weights_refuse_no_memory() -> None:
    with pytest.raises(ValueError, match="got 0"):
        DifficultyWeights(2, tau=0)


@pytest.mark.parametrize(
    ("make", "update"),
    [
        (lambda: DifficultyWeights(2), torch.tensor([0.5, 0.2])),
        (lambda: DistributionWeights(torch.tensor([9, 1]), 0.1), torch.tensor([[0, 1, 1]])),
    ],
)
def test_state_dict_resumes_and_updates_leave_earlier_weights_alone(
    make: Callable[[], nn.Module], update: torch.Tensor
) -> None:
    module, resumed = make(), make()
    held = module.update(update)
    copy = held.clone()
    resumed.load_state_dict(module.state_dict())
    assert torch.equal(module.update(update.flip(-1)), resumed.update(update.flip(-1)))
    assert not torch.equal(module.weights, copy)
    assert torch.equal(held, copy)
    assert held._version == 0  # a pending backward pass would refuse weights that were written to


def test_distribution_weights_count_regions() -> None:
    module = DistributionWeights(torch.tensor([10, 1]), floor=0.0, momentum=0.0)
    masks = torch.tensor([[[True, False, False], [True, True, True]]])
    torch.testing.assert_close(module.update(masks), torch.tensor([2.0, 0.0]))
