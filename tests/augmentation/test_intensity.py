import pytest
import torch

from nnunetv2_micd.augmentation.intensity import (
    Strengths,
    StrongView,
    add_noise,
    apply_strengths,
    gaussian_blur,
    sample_strengths,
    strong_view,
)

SHAPES = [(3, 2, 12, 10), (3, 2, 6, 8, 10)]
NEUTRAL = {"brightness": 0.0, "contrast": 1.0, "gamma": 1.0, "blur_sigma": 0.0, "noise_std": 0.0}
ALWAYS = StrongView(jitter=1, blur=1, noise=1)


def strengths(images: torch.Tensor, **changed: float) -> Strengths:
    return Strengths(**{name: torch.full(images.shape[:2], value) for name, value in (NEUTRAL | changed).items()})


@pytest.mark.parametrize("shape", SHAPES)
def test_neutral_strengths_change_nothing(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    torch.testing.assert_close(apply_strengths(images, strengths(images), seed=0), images)
    assert torch.equal(gaussian_blur(images, torch.zeros(shape[:2])), images)


@pytest.mark.parametrize("shape", SHAPES)
def test_known_values(shape: tuple[int, ...]) -> None:
    images = torch.linspace(-1, 3, torch.Size(shape[2:]).numel()).view(shape[2:]).expand(shape)
    assert images[0, 0].mean() == pytest.approx(1)
    brighter = apply_strengths(images, strengths(images, brightness=0.25), seed=0)
    torch.testing.assert_close(brighter, images + 0.25)
    flatter = apply_strengths(images, strengths(images, contrast=0.5), seed=0)
    torch.testing.assert_close(flatter, 1 + (images - 1) / 2)  # about the mean
    darker = apply_strengths(images, strengths(images, gamma=2.0), seed=0)
    torch.testing.assert_close(darker, ((images + 1) / 4) ** 2 * 4 - 1)
    noise = apply_strengths(images, strengths(images, noise_std=0.1), seed=0) - images
    assert noise.std() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("shape", [(3, 2, 14, 16), (3, 2, 12, 14, 16)])
def test_blur_of_a_point_is_a_gaussian_and_keeps_constants(shape: tuple[int, ...]) -> None:
    constant = torch.full(shape, 2.5)
    torch.testing.assert_close(gaussian_blur(constant, torch.full(shape[:2], 1.5)), constant)
    sigma = torch.rand(shape[:2]) * 0.2 + 0.4
    images = torch.zeros(shape)
    center = tuple(size // 2 for size in shape[2:])
    images[(..., *center)] = 1
    blurred = gaussian_blur(images, sigma)
    torch.testing.assert_close(blurred.flatten(2).sum(2), torch.ones(shape[:2]), rtol=1e-3, atol=0)
    for axis in range(len(center)):
        neighbor = tuple(place + (other == axis) for other, place in enumerate(center))
        ratio = blurred[(..., *neighbor)] / blurred[(..., *center)]
        torch.testing.assert_close(ratio, torch.exp(-0.5 / sigma**2), rtol=1e-3, atol=0)


def test_a_constant_image_stays_finite() -> None:
    images = torch.zeros(2, 1, 8, 8)
    assert strong_view(images, ALWAYS, torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_each_sample_and_channel_has_its_own_view_and_the_generator_decides(shape: tuple[int, ...]) -> None:
    images = torch.randn(1, 1, *shape[2:]).expand(shape).contiguous()
    copy = images.clone()
    first, again, other = (strong_view(images, ALWAYS, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, copy)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    views = first.flatten(0, 1)
    assert all(not torch.allclose(views[i], views[j], atol=0.01) for i in range(6) for j in range(i))


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    strong_view(torch.zeros(2, 1, 8, 8), ALWAYS, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_zeros_outside_of_the_mask_stay_zero_in_masked_channels_only() -> None:
    images = torch.randn(2, 2, 8, 8)
    images[..., :3] = 0
    view = strong_view(images, ALWAYS, torch.Generator().manual_seed(0), masked_channels=[1])
    assert (view[:, 1, :, :3] == 0).all()
    assert (view[:, 0, :, :3] != 0).any()
    assert (view[:, 1, :, 3:] != images[:, 1, :, 3:]).all()


def test_strengths_are_within_their_ranges_and_as_frequent_as_asked() -> None:
    drawn = sample_strengths(2000, 2, StrongView(), torch.Generator().manual_seed(0))
    for name, low, high, share in (
        ("brightness", -0.5, 0.5, 0.8),
        ("contrast", 0.5, 1.5, 0.8),
        ("gamma", 0.7, 1.5, 0.8),
        ("blur_sigma", 0, 2, 0.5),
        ("noise_std", 0, 0.1, 0.5),
    ):
        values = getattr(drawn, name)
        assert values.shape == (2000, 2)
        assert low <= values.min() < values.max() <= high
        assert (values != NEUTRAL[name]).float().mean() == pytest.approx(share, abs=0.03)


def test_a_view_without_anything_is_the_image() -> None:
    images = torch.randn(2, 1, 8, 8)
    none = StrongView(jitter=0, blur=0, noise=0)
    torch.testing.assert_close(strong_view(images, none, torch.Generator()), images)


@pytest.mark.parametrize("spatial", [(50, 50), (10, 15, 20)])
def test_noise_is_limited_and_continues_the_generator(spatial: tuple[int, ...]) -> None:
    images, generator = torch.zeros(2, 1, *spatial), torch.Generator().manual_seed(1)
    first, second = (add_noise(images, 0.1, 0.2, generator) for _ in range(2))
    assert first.abs().max() == pytest.approx(0.2)
    assert first.std() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(first, second)
    assert not images.any()
