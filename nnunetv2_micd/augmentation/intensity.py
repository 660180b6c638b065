"""Strong views of images by intensity alone: ``sample_strengths`` draws, ``apply_strengths`` applies.

Geometry is left as it is, since a label has to hold for both views: nnU-Net's loaders have done it already.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Range = tuple[float, float]


@dataclass(frozen=True)
class StrongView:
    """How strong a view is.

    The numbers of UniMatch's medical variant (``ColorJitter(0.5, 0.5, 0.5, 0.25)`` with probability 0.8, blur with 0.5;
    LiheYoung/UniMatch, commit 0324f3dd, ``more-scenarios/medical/dataset``), with three changes. Its brightness is a
    factor on intensities from 0 to 1; normalized intensities have no zero to multiply from, so here it is added.
    Saturation and hue do nothing to gray images; gamma, with the range of nnU-Net's own augmentation, stands in for
    them. Noise is added, which survives the normalization inside the network where brightness and contrast do not.

    Attributes:
        jitter: probability that brightness, contrast and gamma change.
        brightness: what is added to the intensities, drawn from plus to minus this, in units of normalized intensities.
        contrast: the factor about the mean, drawn from one minus to one plus this.
        gamma: range of the exponent on intensities that are stretched to 0 to 1 for it.
        blur: probability of Gaussian blur.
        blur_sigma: range of its standard deviation in voxels.
        noise: probability of Gaussian noise.
        noise_std: its largest standard deviation, in units of normalized intensities.
    """

    jitter: float = 0.8
    brightness: float = 0.5
    contrast: float = 0.5
    gamma: Range = (0.7, 1.5)
    blur: float = 0.5
    blur_sigma: Range = (0.1, 2.0)
    noise: float = 0.5
    noise_std: float = 0.1


class Strengths(NamedTuple):
    """What is done to each channel of each sample; ``(B, channels)`` each. Ones, zeros for nothing."""

    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    blur_sigma: Tensor
    noise_std: Tensor


def strong_view(
    images: Tensor, view: StrongView, generator: torch.Generator, masked_channels: Sequence[int] = ()
) -> Tensor:
    """Return a strong view of images, by draws for each sample and channel.

    Args:
        images: ``(B, channels, *spatial)``; not changed.
        view: how strong it is.
        generator: CPU generator, the only source of randomness.
        masked_channels: channels in which zero voxels lie outside of the image and stay zero (nnU-Net's
            ``use_mask_for_norm``).

    Returns:
        ``(B, channels, *spatial)``, float32.
    """
    drawn = sample_strengths(images.shape[0], images.shape[1], view, generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    on_device = Strengths(*torch.stack(drawn).to(images.device))
    strong = apply_strengths(images, on_device, seed)
    for channel in masked_channels:
        strong[:, channel] = strong[:, channel].masked_fill(images[:, channel] == 0, 0)
    return strong


def sample_strengths(batch_size: int, channels: int, view: StrongView, generator: torch.Generator) -> Strengths:
    """Draw the strengths for each sample and channel, on the CPU."""

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
        images: ``(B, channels, *spatial)``; not changed.
        strengths: ``(B, channels)`` each, on the device of the images.
        seed: of the noise, which is drawn on the device, so that it has not to be copied.

    Returns:
        ``(B, channels, *spatial)``, float32.
    """
    images = images.float()
    axes = tuple(range(2, images.ndim))
    brightness, contrast, gamma, _, noise_std = (s.view(*s.shape, *[1] * len(axes)) for s in strengths)
    low = images.amin(axes, keepdim=True)
    extent = (images.amax(axes, keepdim=True) - low).clamp_min(torch.finfo(torch.float32).tiny)
    images = ((images - low) / extent).pow(gamma) * extent + low
    mean = images.mean(axes, keepdim=True)
    images = (images - mean) * contrast + mean + brightness
    images = gaussian_blur(images, strengths.blur_sigma)
    generator = torch.Generator(images.device).manual_seed(seed)
    return images + noise_std * torch.randn(images.shape, generator=generator, device=images.device)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each channel of each sample with a Gaussian of its own; at the border it is renormalized to what is inside.

    Along each axis it is a product with a matrix: one call, whatever the number of axes and of different Gaussians.

    Args:
        images: ``(B, channels, *spatial)``, float32.
        sigma: ``(B, channels)``, standard deviations in voxels; zero leaves a channel as it is.
    """
    precise = torch.autocast("cuda", enabled=False) if images.is_cuda else nullcontext()
    with precise:  # in half precision the product would lose the contrast of fine structures
        for axis in range(2, images.ndim):
            moved = images.movedim(axis, -1)
            position = torch.arange(images.shape[axis], device=images.device)
            distance = (position[:, None] - position) / sigma.clamp_min(1e-3)[..., None, None]
            weights = (-0.5 * distance.square()).exp()
            weights = weights / weights.sum(-2, keepdim=True)
            images = (moved.flatten(2, -2) @ weights).view(moved.shape).movedim(-1, axis)
    return images


def add_noise(images: Tensor, std: float, limit: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of the given deviation, cut off at plus and minus ``limit``.

    Args:
        images: ``(B, channels, *spatial)``.
        std: standard deviation of the noise.
        limit: its largest size.
        generator: on the CPU; a seed is drawn from it.
    """
    # Drawn on the device, with a seed that is drawn on the CPU, so that no noise has to be copied.
    seed = int(torch.randint(2**31, (), generator=generator))
    on_device = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=on_device, device=images.device) * std
    return images + noise.clamp(-limit, limit)
