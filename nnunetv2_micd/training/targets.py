"""Targets as nnU-Net's loader makes them."""

from collections.abc import Sequence

from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch import Tensor


def at_all_resolutions(target: Tensor, scales: Sequence[Sequence[float]] | None) -> Tensor | list[Tensor]:
    """Bring a target ``(B, channels, *spatial)`` to the resolutions of deep supervision, as nnU-Net's loader does.

    So mixing images before or after is the same but at the border of a box.

    Args:
        target: The target.
        scales: Factors of each resolution; None without deep supervision, where the target stays as it is.

    Examples:
        >>> at_all_resolutions(torch.zeros(2, 1, 8, 8), [[1, 1], [0.5, 0.5]])[1].shape
        torch.Size([2, 1, 4, 4])
    """
    if scales is None:
        return target
    downsampled = DownsampleSegForDSTransform(scales)(segmentation=target.flatten(0, 1))["segmentation"]
    return [each.view(*target.shape[:2], *each.shape[1:]) for each in downsampled]
