"""Estimates the GPU memory of a training of MICD from the plans."""

from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_micd.training.networks import build_peer

BYTES_PER_WEIGHT = 18
"""Weight, gradient and momentum of the student and weight of the teacher in float32, and a copy in half precision."""

BYTES = {False: (4.4, 13, 9.3), True: (8.4, 31, 13)}
"""Bytes per voxel of a feature map, of a channel of the first stage and of a class, fitted as `estimate_memory` says;
without and with consistency on labeled images."""

CUDA_BYTES = 3 * 2**30
"""CUDA itself, cuDNN's workspaces and the reserve of PyTorch's allocator. Not measured, but the difference between
nnU-Net's published figures (``resenc_presets.md``: 7.7 GB for its default, 9.1 GB for its residual encoder M, by
nvidia-smi) and the tensors of one step of such networks (4.7 and 6.8 GiB with two patches of 128 cubed)."""


def estimate_memory(
    configuration: ConfigurationManager, input_channels: int, classes: int, labeled_consistency: bool = False
) -> float:
    """Return the estimated GPU memory of a training in bytes. Nothing is computed, and no GPU is needed.

    The formula was fitted to the peak of all tensors that are alive at once in a step with mixed precision. The peak
    was measured with tensors without content, as in ``tests/training/test_memory.py``, for 7 plans: both
    architectures, 2D and 3D, batches of 2 to 13, 3 to 118 classes. It was 1.0 to 1.4 times the peak of nnUNetTrainer,
    and 1.7 to 2.5 times with consistency on labeled images. The formula agrees with all measurements to within 6 %.
    It assumes ``unlabeled_ratio`` 1 and ``recompute_peer`` on; without ``recompute_peer`` the factor was 1.2 to 2.1.

    Tensors without content do not show cuDNN's workspaces and the fragmentation of the memory, see ``CUDA_BYTES``.
    ``torch.compile``, which nnU-Net uses by default, was not measured: it may keep less.

    Args:
        configuration: Configuration of the plans.
        input_channels: Input channels of the network, including those of a cascade.
        classes: Output channels of the network.
        labeled_consistency: Whether the consistency losses also see labeled images, as `MICDConfig` can ask for and an
            ignore label requires.
    """
    with torch.device("meta"):
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            input_channels,
            classes,
            allow_init=False,
            deep_supervision=False,
        )
        peer: Any = build_peer(configuration, input_channels, classes, deep_supervision=False)
    patch_size, batch_size = configuration.patch_size, configuration.batch_size
    features, features_of_peer = (int(net.compute_conv_feature_map_size(patch_size)) for net in (network, peer))
    of_feature, of_channel, of_class = BYTES[labeled_consistency]
    of_voxel = of_channel * network.encoder.output_channels[0] + of_class * classes
    of_sample = of_feature * max(features, features_of_peer) + of_voxel * torch.Size(patch_size).numel()
    weights = sum(parameter.numel() for net in (network, peer) for parameter in net.parameters())
    return CUDA_BYTES + BYTES_PER_WEIGHT * weights + batch_size * of_sample
