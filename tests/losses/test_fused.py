"""Values and gradients of the fused losses against the ones that autograd finds for the formula."""

import math

import pytest
import torch
import torch.nn.functional as functional
from helpers import needs_cuda
from torch import Tensor

from nnunetv2_micd.losses import fused as fused_losses
from nnunetv2_micd.losses.fused import (
    channel_cosine,
    hard_binary_cross_entropy,
    hard_cross_entropy,
    symmetric_kl,
)


def by_autograd(a: Tensor, b: Tensor) -> Tensor:
    log_p, log_q = a.float().log_softmax(1), b.float().log_softmax(1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean()


def features(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).mul(2).to(dtype).requires_grad_()


def test_known_value_and_gradients() -> None:
    # One voxel: p = (3/4, 1/4), q = (1/2, 1/2), d = (log 3/2, log 1/2)
    a, b = torch.tensor([[[math.log(3.0)], [0.0]]]).requires_grad_(), torch.zeros(1, 2, 1).requires_grad_()
    value = symmetric_kl(a, b)
    value.backward()
    assert value.item() == pytest.approx(0.5 * 0.25 * math.log(3))
    # KL(A || B) = 3/4 log 3/2 + 1/4 log 1/2, so p_0 (d_0 - KL) = 3/16 log 3
    assert a.grad[0, 0, 0].item() == pytest.approx(0.5 * (3 / 16 * math.log(3) + 1 / 4))
    # KL(B || A) = -(log 3/2 + log 1/2) / 2, so q_0 (-d_0 - KL) = -1/4 log 3
    assert b.grad[0, 0, 0].item() == pytest.approx(-0.5 * (1 / 4 * math.log(3) + 1 / 4))
    assert torch.equal(a.grad[0, 1], -a.grad[0, 0])


@pytest.mark.parametrize("chunk", [1, 100, 500, 1500, 2**22])
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 6, 7), (3, 4, 5, 6, 7)])
def test_gradients_are_those_of_autograd(shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_losses, "CHUNK", chunk)
    ours, reference = ([features(shape, seed) for seed in (0, 1)] for _ in range(2))
    value, expected = 3 * symmetric_kl(*ours), 3 * by_autograd(*reference)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    for fused, plain in zip(ours, reference, strict=True):
        torch.testing.assert_close(fused.grad, plain.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_channels_last(dtype: torch.dtype) -> None:
    a, b = (
        features((2, 8, 4, 5, 6), seed, dtype).detach().to(memory_format=torch.channels_last_3d).requires_grad_()
        for seed in (0, 1)
    )
    reference = [tensor.detach().clone().requires_grad_() for tensor in (a, b)]
    # As a GradScaler does.
    (2**10 * symmetric_kl(a, b)).backward()
    (2**10 * by_autograd(*reference)).backward()
    for fused, plain in zip((a, b), reference, strict=True):
        assert fused.grad.dtype == dtype
        assert fused.grad.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(fused.grad, plain.grad, rtol=2e-2, atol=2e-2)


def test_gradient_of_millions_of_voxels_does_not_vanish_in_half_precision() -> None:
    a, b = (features((1, 2, 128, 128, 64), seed, torch.float16) for seed in (0, 1))
    (2**16 * symmetric_kl(a, b)).backward()
    assert (a.grad != 0).float().mean() > 0.99


def test_features_without_gradient_get_none() -> None:
    a, b = features((1, 3, 4), 0), features((1, 3, 4), 1).detach()
    symmetric_kl(a, b).backward()
    assert a.grad is not None
    assert b.grad is None
    with torch.no_grad():
        assert not symmetric_kl(a, b).requires_grad


def weighted_mean(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    return functional.cross_entropy(logits.float(), target.long(), weight)


def labels(shape: tuple[int, ...], classes: int) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(2), dtype=torch.int16)


def test_known_cross_entropy_and_gradients() -> None:
    # Two voxels: softmax (3/4, 1/4) on label 1 with weight 3, and (1/2, 1/2) on label 0 with weight 1
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]]).requires_grad_()
    value = hard_cross_entropy(logits, torch.tensor([[1, 0]]), torch.tensor([1.0, 3.0]))
    value.backward()
    assert value.item() == pytest.approx((3 * math.log(4) + math.log(2)) / 4)
    torch.testing.assert_close(logits.grad, torch.tensor([[[9 / 16, -1 / 8], [-9 / 16, 1 / 8]]]))


@pytest.mark.parametrize("weight", [None, torch.tensor([0.3, 1.0, 0.0, 2.0])])
@pytest.mark.parametrize("chunk", [1, 100, 500, 1500, 2**22])
@pytest.mark.parametrize("spatial", [(7,), (6, 7), (5, 6, 7)])
def test_gradients_of_the_cross_entropy_are_those_of_autograd(
    spatial: tuple[int, ...], chunk: int, weight: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_losses, "CHUNK", chunk)
    ours, reference, target = features((2, 4, *spatial), 0), features((2, 4, *spatial), 0), labels((2, *spatial), 4)
    value, expected = 3 * hard_cross_entropy(ours, target, weight), 3 * weighted_mean(reference, target, weight)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, reference.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_in_half_precision(dtype: torch.dtype) -> None:
    ours, reference, target = features((2, 4, 5, 6), 0, dtype), features((2, 4, 5, 6), 0, dtype), labels((2, 5, 6), 4)
    (2**10 * hard_cross_entropy(ours, target)).backward()
    (2**10 * weighted_mean(reference, target, None)).backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, reference.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_size_of_the_weights_says_nothing(device: str) -> None:
    # With weights of 1000 the factor is 5e-7, which half precision rounds by 5 %; the gradients are well in its range.
    logits, target = torch.zeros(1, 2, 2000, dtype=torch.float16, device=device), labels((1, 2000), 2).to(device)
    gradients = []
    for weight in (None, 1000.0, 1e-4):
        ours = logits.clone().requires_grad_()
        hard_cross_entropy(ours, target, None if weight is None else torch.full((2,), weight, device=device)).backward()
        gradients.append(ours.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cross_entropy_without_any_weight_is_zero(dtype: torch.dtype) -> None:
    logits = features((1, 2, 4), 0, dtype)
    value = hard_cross_entropy(logits, torch.zeros(1, 4, dtype=torch.int16), torch.tensor([0.0, 2.0]))
    (2**16 * value).backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def weighted_mean_of_regions(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    voxels = functional.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    regions = voxels.transpose(0, 1).flatten(1).mean(1)
    return regions.mean() if weight is None else (weight * regions).sum() / weight.sum()


def test_known_binary_cross_entropy_and_gradients() -> None:
    # Two regions with weights 1 and 3, one voxel: sigmoid 3/4 on true, 1/2 on false
    logits = torch.tensor([[[math.log(3.0)], [0.0]]]).requires_grad_()
    value = hard_binary_cross_entropy(logits, torch.tensor([[[True], [False]]]), torch.tensor([1.0, 3.0]))
    value.backward()
    assert value.item() == pytest.approx((math.log(4 / 3) + 3 * math.log(2)) / 4)
    torch.testing.assert_close(logits.grad, torch.tensor([[[-1 / 16], [3 / 8]]]))


@pytest.mark.parametrize("weight", [None, torch.tensor([0.3, 1.0, 0.0, 2.0])])
@pytest.mark.parametrize("chunk", [1, 100, 500, 1500, 2**22])
@pytest.mark.parametrize("spatial", [(7,), (6, 7), (5, 6, 7)])
def test_gradients_of_the_binary_cross_entropy_are_those_of_autograd(
    spatial: tuple[int, ...], chunk: int, weight: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_losses, "CHUNK", chunk)
    ours, reference, target = (
        features((2, 4, *spatial), 0),
        features((2, 4, *spatial), 0),
        labels((2, 4, *spatial), 2) > 0,
    )
    value = 3 * hard_binary_cross_entropy(ours, target, weight)
    expected = 3 * weighted_mean_of_regions(reference, target, weight)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, reference.grad)


def test_binary_cross_entropy_without_any_weight_is_zero() -> None:
    logits = features((1, 2, 4), 0, torch.float16)
    value = hard_binary_cross_entropy(logits, torch.zeros(1, 2, 4, dtype=torch.bool), torch.zeros(2))
    (2**16 * value).backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_2d_is_3d_with_depth_one() -> None:
    a, b, target, weight = features((2, 4, 5, 6), 0), features((2, 4, 5, 6), 1), labels((2, 5, 6), 4), torch.rand(4)
    masks = labels((2, 4, 5, 6), 2) > 0
    deep_a, deep_b, deep_target, deep_masks = (tensor.unsqueeze(-3) for tensor in (a, b, target, masks))
    torch.testing.assert_close(symmetric_kl(a, b), symmetric_kl(deep_a, deep_b))
    torch.testing.assert_close(hard_cross_entropy(a, target, weight), hard_cross_entropy(deep_a, deep_target, weight))
    torch.testing.assert_close(
        hard_binary_cross_entropy(a, masks, weight), hard_binary_cross_entropy(deep_a, deep_masks, weight)
    )


def test_a_loss_is_not_backpropagated_twice() -> None:
    loss = hard_cross_entropy(features((1, 2, 4), 0), labels((1, 4), 2))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 6, 7), (3, 4, 5, 6, 7)])
def test_cosine_is_the_one_of_torch(shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_losses, "CHUNK", chunk)
    ours, reference = ([features(shape, seed) for seed in (0, 1)] for _ in range(2))
    value, expected = channel_cosine(*ours), functional.cosine_similarity(*reference, dim=1)
    torch.testing.assert_close(value, expected)
    (value**2).sum().backward()
    (expected**2).sum().backward()
    for fused, plain in zip(ours, reference, strict=True):
        torch.testing.assert_close(fused.grad, plain.grad)


def test_cosine_of_half_precision_is_computed_in_full() -> None:
    a = (features((1, 3, 6), 0).detach() * 1e4).half().requires_grad_()  # whose squares float16 does not hold
    b = features((1, 3, 6), 1, torch.float16).detach()
    cosine = channel_cosine(a, b)
    cosine.sum().backward()
    torch.testing.assert_close(cosine, functional.cosine_similarity(a.float(), b.float(), dim=1))
    assert cosine.dtype == torch.float32
    assert a.grad.dtype == torch.float16
    assert a.grad.isfinite().all()
    assert b.grad is None


def test_cosine_of_a_zero_vector_has_no_gradient() -> None:
    features = torch.zeros(1, 1, 2, dtype=torch.float16, requires_grad=True)
    channel_cosine(features, torch.ones_like(features)).sum().backward()
    assert features.grad is not None
    assert not features.grad.any()
