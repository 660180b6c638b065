"""A 2D network that segments 3D patches slice by slice."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

SMALLEST_EDGE = 4
"""Least edge of the deepest feature map, in pixels: ``UNet_featuremap_min_edge_length`` of nnU-Net's planner."""

PER_STAGE = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage")


class SliceNetwork(nn.Module):
    """A 2D network that runs on all slices of 3D patches; 2D patches are single slices.

    The slices are those along the first axis, which in nnU-Net is the one with the lowest resolution. Where their edges
    do not suit the network they are extended with copies of their last pixels, and the logits are cropped again.

    Args:
        network: Maps slices ``(N, channels, height, width)`` to logits ``(N, K, height, width)``.
        multiple: Numbers of pixels, of which height and width have to be multiples.

    Examples:
        >>> import torch
        >>> network = SliceNetwork(nn.Conv2d(1, 3, kernel_size=1), multiple=(4, 4))
        >>> network(torch.zeros(2, 1, 5, 6, 8)).shape
        torch.Size([2, 3, 5, 6, 8])
    """

    def __init__(self, network: nn.Module, multiple: Sequence[int]):
        super().__init__()
        self.network = network
        self.multiple = tuple(multiple)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of patches ``(B, channels, *spatial)``, ``(B, K, *spatial)``."""
        if images.ndim == 4:
            return self._segment(images)
        batch_size, _, depth, _, _ = images.shape
        logits = self._segment(images.transpose(1, 2).flatten(0, 1))
        return logits.unflatten(0, (batch_size, depth)).transpose(1, 2)

    def _segment(self, slices: Tensor) -> Tensor:
        height, width = slices.shape[2:]
        below, right = -height % self.multiple[0], -width % self.multiple[1]
        if below or right:
            slices = F.pad(slices, (0, right, 0, below), mode="replicate")
        return self.network(slices)[..., :height, :width]


def fit_to_slices(kwargs: Mapping[str, Any], slice_size: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
    """Leave out the deepest stages of a 2D network that are too coarse for slices of a given size.

    The slices of a 3D patch are usually smaller than the patches that the 2D network is planned for.

    Args:
        kwargs: ``network_arch_init_kwargs`` of the 2D configuration.
        slice_size: Height and width of the slices in pixels.

    Returns:
        The same arguments for the stages, two at least, whose feature maps have :data:`SMALLEST_EDGE` pixels along each
        edge, and the factors by which the deepest of them is coarser than the slices.
    """
    strides = np.stack([np.broadcast_to(stride, 2) for stride in kwargs["strides"]])
    factors = np.cumprod(strides, axis=0)
    stages = max(2, int((np.ceil(np.asarray(slice_size) / factors) >= SMALLEST_EDGE).all(1).sum()))
    fitted = dict(kwargs, n_stages=min(stages, kwargs["n_stages"]))
    for names, number in ((PER_STAGE, stages), (("n_conv_per_stage_decoder",), stages - 1)):
        fitted |= {name: kwargs[name][:number] for name in names if isinstance(kwargs.get(name), list | tuple)}
    return fitted, factors[:stages][-1].tolist()


def build_slice_network(
    plans: PlansManager, slice_size: Sequence[int], input_channels: int, output_channels: int
) -> SliceNetwork:
    """Build the network of the plans' 2D configuration for slices of a given size.

    Raises:
        ValueError: the plans have no 2D configuration.
    """
    if "2d" not in plans.available_configurations:
        raise ValueError(
            "The second network is that of the 2d configuration, which these plans do not have; run "
            "nnUNetv2_plan_experiment again, or copy 2d from other plans of this dataset into the plans file."
        )
    configuration = plans.get_configuration("2d")
    kwargs, multiple = fit_to_slices(configuration.network_arch_init_kwargs, slice_size)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        kwargs,
        configuration.network_arch_init_kwargs_req_import,
        input_channels,
        output_channels,
        allow_init=True,
        deep_supervision=False,
    )
    return SliceNetwork(network, multiple)
