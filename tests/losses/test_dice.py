"""The three Dice by hand, where their gradient is, and their limits."""

import math

import pytest
import torch
from torch import Tensor

from nnunetv2_micd.losses.dice import confident_dice_loss, hard_dice, soft_dice_error

LOG3 = math.log(3.0)
# Three voxels, two classes. Foreground probability: 1/4, 3/4, 3/4.
LOGITS = torch.tensor([[[LOG3, 0.0, 0.0], [0.0, LOG3, LOG3]]])
TRUTH = torch.tensor([[1, 0, 1]])


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def random_labels(batch_size: int, spatial: tuple[int, ...], regions: bool) -> tuple[Tensor, Tensor]:
    """Return hard labels of three classes or regions, and where they are confident."""
    generator = torch.Generator().manual_seed(2)
    shape = (batch_size, 3, *spatial) if regions else (batch_size, *spatial)
    labels = torch.randint(2 if regions else 3, shape, generator=generator)
    confident = torch.rand(batch_size, 3 if regions else 1, *spatial, generator=generator) < 0.5
    return labels.bool() if regions else labels, confident


# ----------------------------------------------------------------------------------------------------- of hard labels


def test_hard_dice_over_the_batch() -> None:
    prediction = torch.tensor([[0, 0], [1, 1]])
    target = torch.tensor([[0, 1], [1, 2]])
    # class 0: 2*1/(2+1), class 1: 2*1/(2+2), class 2: missed, class 3: in neither
    expected = torch.tensor([2 / 3, 0.5, 0.0, 0.5])
    torch.testing.assert_close(hard_dice(prediction, target, 4), expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(hard_dice(prediction[:, None, None], target[:, None, None], 4), expected)


def test_hard_dice_of_a_voxel_without_a_class() -> None:
    dice = hard_dice(torch.tensor([[0, 1]]), torch.tensor([[0, -1]]), 2)
    torch.testing.assert_close(dice, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


def test_hard_dice_of_regions_and_without_ignored_voxels() -> None:
    prediction = torch.tensor([[[True, True, False], [True, False, False]]])
    target = torch.tensor([[[True, False, False], [True, True, True]]])
    torch.testing.assert_close(hard_dice(prediction, target, 2), torch.tensor([2 / 3, 2 / 4]))
    ignored = torch.tensor([[False, True, False]])
    torch.testing.assert_close(hard_dice(prediction, target, 2, ignored), torch.tensor([1.0, 2 / 3]))
    labels, truth = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 2, 0]])
    torch.testing.assert_close(hard_dice(labels, truth, 2, ignored), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(hard_dice(labels, truth, 2), torch.tensor([1.0, 2 / 3]))


# --------------------------------------------------------------------------------------------------- of probabilities


def test_soft_dice_error_of_the_foreground() -> None:
    # hits 1/4 + 3/4, squares 1/16 + 9/16 + 9/16, truth 2
    assert soft_dice_error(LOGITS, TRUTH).item() == pytest.approx(1 - 2 / (19 / 16 + 2), abs=1e-5)
    ignored = torch.tensor([[True, False, False]])
    assert soft_dice_error(LOGITS, TRUTH, ignored).item() == pytest.approx(1 - 1.5 / (18 / 16 + 1), abs=1e-5)
    sure = torch.tensor([[[-50.0, 50.0, -50.0], [50.0, -50.0, 50.0]]])
    assert soft_dice_error(sure, TRUTH).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_error(-sure, TRUTH).item() == pytest.approx(1, abs=1e-4)


def test_soft_dice_error_leaves_out_classes_that_the_truth_lacks() -> None:
    # a hundredth of class 2 in each voxel, which is not there, would be an error of one
    logits = torch.tensor([[0.495, 0.495, 0.01], [0.495, 0.495, 0.01]]).log().T[None]
    truth = torch.tensor([[0, 1]])
    expected = 1 - 2 * 0.495 / (2 * 0.495**2 + 1)
    assert soft_dice_error(logits, truth).item() == pytest.approx(expected, abs=1e-4)
    assert soft_dice_error(logits, torch.tensor([[0, 0]])).item() == pytest.approx(1, abs=0.03)  # it lacks both


def test_soft_dice_error_of_regions_is_the_mean_of_all() -> None:
    logits = torch.tensor([[[50.0, -50.0], [50.0, -50.0]]])
    truth = torch.tensor([[[True, False], [False, True]]])
    assert soft_dice_error(logits, truth, regions=True).item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_soft_dice_error_has_no_gradient_and_2d_is_3d_with_depth_one(regions: bool) -> None:
    logits, (labels, _) = random_logits(2, 3, 4, 5), random_labels(2, (4, 5), regions)
    error = soft_dice_error(logits, labels, regions=regions)
    assert not error.requires_grad
    deep = soft_dice_error(logits.unsqueeze(-3), labels.unsqueeze(-3), regions=regions)
    torch.testing.assert_close(error, deep)


def test_soft_dice_error_of_extreme_float16_logits_is_finite() -> None:
    error = soft_dice_error((random_logits(2, 3, 40, 40) * 1e4).half(), torch.zeros(2, 40, 40))
    assert error.dtype == torch.float32
    assert error.isfinite()


# --------------------------------------------------------------------------------- where pseudo-labels are confident


def test_confident_dice_by_hand() -> None:
    """Two classes, three voxels, the last of them not confident."""
    p = torch.tensor([0.8, 0.3, 0.1])
    logits = torch.stack((p.log(), (1 - p).log()))[None, :, None]
    labels = torch.tensor([[[0, 1, 1]]])
    confident = torch.tensor([[[[True, True, False]]]])
    background = 2 * 0.8 / (0.8**2 + 0.3**2 + 1)
    foreground = 2 * 0.7 / (0.2**2 + 0.7**2 + 1)
    expected = 1 - (background + foreground) / 2
    assert confident_dice_loss(logits, labels, confident) == pytest.approx(expected, abs=1e-5)


def test_confident_dice_of_regions_by_hand() -> None:
    p = torch.tensor([[0.8, 0.3], [0.6, 0.1]])
    labels = torch.tensor([[True, False], [True, False]])
    confident = torch.tensor([[True, True], [False, True]])
    expected = 1 - (2 * 0.8 / (0.8**2 + 0.3**2 + 1) + 0) / 2  # region 1 is confident in one voxel, outside the region
    loss = confident_dice_loss(torch.logit(p)[None, :, None], labels[None, :, None], confident[None, :, None])
    assert loss == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(5, 6), (4, 5, 6)])
def test_gradient_is_where_labels_are_confident(regions: bool, spatial: tuple[int, ...]) -> None:
    logits, (labels, confident) = random_logits(2, 3, *spatial), random_labels(2, spatial, regions)
    confident_dice_loss(logits, labels, confident).backward()
    assert torch.equal(logits.grad != 0, confident.expand_as(logits))


@pytest.mark.parametrize("regions", [False, True])
def test_confident_dice_in_2d_is_3d_with_depth_one(regions: bool) -> None:
    logits, (labels, confident) = random_logits(2, 3, 4, 5), random_labels(2, (4, 5), regions)
    deep = [tensor.unsqueeze(-3) for tensor in (logits, labels, confident)]
    torch.testing.assert_close(confident_dice_loss(logits, labels, confident), confident_dice_loss(*deep))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nothing_confident_is_zero_without_gradient(dtype: torch.dtype) -> None:
    logits = random_logits(2, 3, 4, 5).detach().to(dtype).requires_grad_()
    labels, confident = random_labels(2, (4, 5), regions=False)
    loss = confident_dice_loss(logits, labels, confident & False)
    loss.backward()
    assert loss == 0
    assert loss.dtype == torch.float32
    assert not logits.grad.any()


@pytest.mark.parametrize("regions", [False, True])
def test_confident_dice_of_extreme_float16_logits_is_finite(regions: bool) -> None:
    logits = (random_logits(2, 3, 4, 5) * 1e4).half().detach().requires_grad_()
    loss = confident_dice_loss(logits, *random_labels(2, (4, 5), regions))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
