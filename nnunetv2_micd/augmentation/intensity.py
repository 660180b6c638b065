"""Intensity augmentation: strong views of images (UniMatch) and Gaussian noise (Mean Teacher).

The geometry is not changed, because a label has to hold for all views of an image; nnU-Net's loaders have already
changed it. Strengths are drawn from a generator on the CPU and applied in a second step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from nnunetv2_micd.utils.devices import to_device
from nnunetv2_micd.utils.ranges import Between, Range, Share, check_fields


@dataclass(frozen=True)
class StrongView:
    """Probabilities and ranges from which a strong view is drawn.

    The defaults come from UniMatch's medical variant (``ColorJitter(0.5, 0.5, 0.5, 0.25)`` with probability 0.8, blur
    with 0.5; https://github.com/LiheYoung/UniMatch, commit 0324f3dd, ``more-scenarios/medical/dataset``), with three
    changes:

    - Brightness is added. UniMatch multiplies intensities between 0 and 1; normalized intensities are centered on zero.
    - Gamma, with the range of nnU-Net's own augmentation, replaces saturation and hue, which do nothing to gray images.
    - Noise is new. It survives the normalization layers of the network; brightness and contrast do not.

    Attributes:
        jitter: Probability that brightness, contrast and gamma change.
        brightness: Largest change of the intensities, up or down, in units of normalized intensities.
        contrast: Largest change of the contrast; the factor about the mean lies between one minus and one plus this.
        gamma: Range of the exponent, applied to intensities rescaled to 0 to 1.
        blur: Probability of Gaussian blur.
        blur_sigma: Range of the standard deviation of the blur, in voxels.
        noise: Probability of Gaussian noise.
        noise_std: Largest standard deviation of the noise, in units of normalized intensities.

    Raises:
        ValueError: a value is outside its range.

    Examples:
        >>> only_noise = StrongView(jitter=0, blur=0, noise=1)
        >>> strong_view(torch.zeros(2, 1, 8, 8), only_noise, torch.Generator()).shape
        torch.Size([2, 1, 8, 8])
    """

    jitter: Share = 0.8
    brightness: Annotated[float, Between(0)] = 0.5
    contrast: Share = 0.5
    gamma: Annotated[Range, Between(0, exclude="low")] = (0.7, 1.5)
    blur: Share = 0.5
    blur_sigma: Annotated[Range, Between(0)] = (0.1, 2.0)
    noise: Share = 0.5
    noise_std: Annotated[float, Between(0)] = 0.1

    def __post_init__(self) -> None:
        check_fields(self)


class Strengths(NamedTuple):
    """Strengths of a view for each sample and channel, five tensors ``(B, channels)``.

    Attributes:
        brightness: Added to the intensities; 0 for no change.
        contrast: Factor about the mean; 1 for no change.
        gamma: Exponent; 1 for no change.
        blur_sigma: Standard deviation of the blur in voxels; 0 for no blur.
        noise_std: Standard deviation of the noise; 0 for no noise.

    Examples:
        >>> strengths = sample_strengths(2, 3, StrongView(), torch.Generator())
        >>> strengths.gamma.shape
        torch.Size([2, 3])
    """

    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    blur_sigma: Tensor
    noise_std: Tensor


def strong_view(
    images: Tensor, view: StrongView, generator: torch.Generator, masked_channels: Sequence[int] = ()
) -> Tensor:
    """Return a strong view of images; strengths are drawn for each sample and channel.

    Args:
        images: Images ``(B, channels, *spatial)``, not changed.
        view: Probabilities and ranges of the strengths.
        generator: Generator on the CPU, the only source of randomness.
        masked_channels: Channels whose zero voxels lie outside the image and stay zero (nnU-Net's
            ``use_mask_for_norm``).

    Returns:
        Changed images ``(B, channels, *spatial)``, float32.

    Examples:
        >>> images = torch.zeros(1, 1, 4, 4)
        >>> images[..., 2:] = 1
        >>> view = strong_view(images, StrongView(noise=1), torch.Generator(), masked_channels=[0])
        >>> bool((view[..., :2] == 0).all())
        True
    """
    drawn = sample_strengths(images.shape[0], images.shape[1], view, generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    on_device = Strengths(*to_device(torch.stack(drawn), images.device))
    return keep_outside(images, apply_strengths(images, on_device, seed), masked_channels)


def sample_strengths(batch_size: int, channels: int, view: StrongView, generator: torch.Generator) -> Strengths:
    """Draw strengths for each sample and channel.

    Args:
        batch_size: Number of samples B.
        channels: Number of channels.
        view: Probabilities and ranges of the strengths.
        generator: Generator on the CPU.

    Returns:
        Strengths ``(B, channels)``, on the CPU.

    Examples:
        >>> strengths = sample_strengths(1, 2, StrongView(jitter=0, blur=0), torch.Generator())
        >>> strengths.contrast, strengths.blur_sigma
        (tensor([[1., 1.]]), tensor([[0., 0.]]))
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch_size, channels, generator=generator)

    jitter, blur, noise = (uniform(0, 1) < probability for probability in (view.jitter, view.blur, view.noise))
    return Strengths(
        brightness=uniform(-view.brightness, view.brightness).where(jitter, torch.tensor(0.0)),
        contrast=uniform(1 - view.contrast, 1 + view.contrast).where(jitter, torch.tensor(1.0)),
        gamma=uniform(*view.gamma).where(jitter, torch.tensor(1.0)),
        blur_sigma=uniform(*view.blur_sigma).where(blur, torch.tensor(0.0)),
        noise_std=uniform(0, view.noise_std).where(noise, torch.tensor(0.0)),
    )


def apply_strengths(images: Tensor, strengths: Strengths, seed: int) -> Tensor:
    """Apply gamma, contrast, brightness, blur and noise, in this order.

    Args:
        images: Images ``(B, channels, *spatial)``, not changed.
        strengths: Strengths ``(B, channels)``, on the device of the images.
        seed: Seed of the noise. The noise is drawn on the device to avoid a copy.

    Returns:
        Changed images ``(B, channels, *spatial)``, float32.

    Examples:
        >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
        >>> strengths = Strengths(brightness=one, contrast=2 * one, gamma=one, blur_sigma=zero, noise_std=zero)
        >>> apply_strengths(torch.tensor([[[[-1.0, 1.0]]]]), strengths, seed=0)
        tensor([[[[-1.,  3.]]]])
    """
    images = images.float()
    axes = tuple(range(2, images.ndim))
    brightness, contrast, gamma, _, noise_std = (s.view(*s.shape, *[1] * len(axes)) for s in strengths)
    low = images.amin(axes, keepdim=True)
    # The smallest positive number keeps a constant image from dividing zero by zero.
    extent = (images.amax(axes, keepdim=True) - low).clamp_min(torch.finfo(torch.float32).tiny)
    images = ((images - low) / extent).pow(gamma) * extent + low
    mean = images.mean(axes, keepdim=True)
    images = (images - mean) * contrast + mean + brightness
    images = gaussian_blur(images, strengths.blur_sigma)
    generator = torch.Generator(images.device).manual_seed(seed)
    return images + noise_std * torch.randn(images.shape, generator=generator, device=images.device)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each channel of each sample with its own Gaussian. At the border the kernel is cut off and renormalized.

    Along each axis the blur is one matrix product, for any number of axes and of different Gaussians.

    Args:
        images: Images ``(B, channels, *spatial)``, float32.
        sigma: Standard deviations in voxels ``(B, channels)``. A channel with zero is not changed.

    Returns:
        Blurred images ``(B, channels, *spatial)``, float32.

    Examples:
        >>> gaussian_blur(torch.tensor([[[[0.0, 1.0, 0.0]]]]), torch.tensor([[1.0]]))
        tensor([[[[0.3482, 0.4519, 0.3482]]]])
    """
    with torch.autocast(images.device.type, enabled=False):  # half precision would lose the contrast of fine structures
        for axis in range(2, images.ndim):
            moved = images.movedim(axis, -1)
            position = torch.arange(images.shape[axis], device=images.device)
            # With a sigma of 1e-3 every weight but that of the voxel itself underflows to zero.
            distance = (position[:, None] - position) / sigma.clamp_min(1e-3)[..., None, None]
            weights = (-0.5 * distance.square()).exp()
            weights = weights / weights.sum(-2, keepdim=True)
            images = (moved.flatten(2, -2) @ weights).view(moved.shape).movedim(-1, axis)
    return images


def keep_outside(images: Tensor, changed: Tensor, masked_channels: Sequence[int]) -> Tensor:
    """Return changed images with zeros where the images have zeros in these channels, which lie outside of a mask.

    Args:
        images: Images before the change, ``(B, channels, *spatial)``.
        changed: Images after it, same shape.
        masked_channels: Channels that nnU-Net normalizes inside the nonzero mask only (its ``use_mask_for_norm``).

    Examples:
        >>> keep_outside(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[5.0, 6.0]]]), masked_channels=[0])
        tensor([[[0., 6.]]])
    """
    if not masked_channels:
        return changed
    is_masked = torch.zeros(images.shape[1], dtype=torch.bool)
    is_masked[list(masked_channels)] = True
    is_masked = to_device(is_masked, images.device).view(-1, *[1] * (images.ndim - 2))
    return changed.masked_fill(is_masked & (images == 0), 0)


def add_noise(
    images: Tensor, std: float, limit: float, generator: torch.Generator, masked_channels: Sequence[int] = ()
) -> Tensor:
    """Add Gaussian noise, cut off at plus and minus ``limit``, as Mean Teacher does for medical images.

    Args:
        images: Images ``(B, channels, *spatial)``, not changed.
        std: Standard deviation of the noise before the cut-off, in units of the intensities.
        limit: Largest absolute value of the noise.
        generator: Generator on the CPU.
        masked_channels: Channels whose zero voxels lie outside of a mask and stay zero, see :func:`keep_outside`.

    Returns:
        Noisy images ``(B, channels, *spatial)``.

    Examples:
        >>> noisy = add_noise(torch.zeros(1, 1, 8, 8), std=0.1, limit=0.2, generator=torch.Generator())
        >>> bool(noisy.abs().max() <= 0.2)
        True
    """
    # The generator on the CPU gives the seed; the noise itself is drawn on the device to avoid a copy.
    seed = int(torch.randint(2**31, (), generator=generator))
    on_device = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=on_device, device=images.device) * std
    return keep_outside(images, images + noise.clamp(-limit, limit), masked_channels)
