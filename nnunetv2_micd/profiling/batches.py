"""Batches of random patches, to take training steps without data."""

from typing import Any

import torch


def make_batch(trainer: Any) -> dict[str, Any]:
    """Return a batch of random patches with the shapes and types of nnU-Net's loader.

    Args:
        trainer: An initialized trainer.

    Returns:
        ``data`` ``(B, channels, *patch)`` and ``target``, a list of resolutions with deep supervision.
    """
    generator = torch.Generator().manual_seed(0)
    size, patch = trainer.batch_size, trainer.configuration_manager.patch_size
    manager = trainer.label_manager
    data = torch.randn(size, trainer.num_input_channels, *patch, generator=generator)
    if manager.has_regions:  # a channel of zeros and ones for each region
        channels, num_values = len(manager.foreground_regions) + manager.has_ignore_label, 2
    else:
        channels, num_values = 1, len(manager.all_labels)
    scales = trainer._get_deep_supervision_scales() or [[1] * len(patch)]
    shapes = [[round(length * factor) for length, factor in zip(patch, scale, strict=True)] for scale in scales]
    targets = [
        torch.randint(0, num_values, (size, channels, *shape), generator=generator, dtype=torch.int16)
        for shape in shapes
    ]
    return {"data": data, "target": targets if trainer.enable_deep_supervision else targets[0]}


def make_unlabeled_batch(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """Return a batch of another size as the loader of unlabeled patches gives it, with all patches of one image."""
    axes = batch["data"].ndim - 2
    origin = {"keys": ["image"] * size, "positions": torch.full((size, axes), 0.5)}
    return {**resize_batch(batch, size), **origin}


def resize_batch(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """Return a batch of another size that repeats or leaves out patches."""
    indices = torch.arange(size) % len(batch["data"])
    return {
        name: [tensor[indices] for tensor in value] if isinstance(value, list) else value[indices]
        for name, value in batch.items()
    }
