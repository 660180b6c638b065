"""Estimates from the plans how much GPU memory a training of MICD takes."""

from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_micd.doctor.installation import Finding
from nnunetv2_micd.training.networks import PLAIN, RESIDUAL, build_peer

BYTES_PER_WEIGHT = 18
"""In float32 weight, gradient and momentum of the student and weight of the teacher, and a copy in half precision."""

BYTES = {False: (4.4, 13, 9.3), True: (8.4, 31, 13)}
"""Fitted, see `estimate_memory`: per voxel of a feature map, of the first stage's features and of the logits; without
and with consistency on the labeled images."""

CUDA_BYTES = 3 * 2**30
"""CUDA itself, cuDNN's workspaces and what PyTorch's allocator holds in reserve: not measured, but what is left of
nnU-Net's published figures (``resenc_presets.md``: 7.7 GB for its default, 9.1 GB for its residual encoder M, by
nvidia-smi) without the tensors of one step of such networks (4.7 and 6.8 GiB with two patches of 128 cubed)."""

PLANNER_REFERENCE = {
    (PLAIN, 2): (85_000_000, 12),
    (PLAIN, 3): (560_000_000, 2),
    (RESIDUAL, 2): (135_000_000, 12),
    (RESIDUAL, 3): (680_000_000, 2),
}
"""The size of a network's feature maps and the batch size with which nnU-Net's planners reckon to fill 8 GB."""

PLANNER_BYTES = 8 * 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of GPU memory.

    Attributes:
        micd: of nnUNetTrainerMICD.
        nnunet: of nnU-Net's own trainer, by the measure with which its planner chooses patch and batch size.
    """

    micd: float
    nnunet: float


def estimate_memory(
    configuration: ConfigurationManager, input_channels: int, classes: int, labeled_consistency: bool = False
) -> MemoryEstimate:
    """Estimate what a training with this configuration takes; nothing is computed, and no GPU is needed.

    Measured was the peak of all tensors that are alive at once in a step with mixed precision, by taking the step on
    tensors without content, as ``tests/test_memory.py`` does: for 7 plans, both architectures, 2D and 3D, batches of 2
    to 13, 3 to 118 classes. It was 1.0 to 1.4 times that of nnUNetTrainer, with consistency on labeled images 1.7 to
    2.5 times. The formula here meets all to within 6 %. It takes ``unlabeled_ratio`` for 1 and ``recompute_peer`` for
    on; off, it was 1.2 to 2.1 times.

    What such a step cannot know is the rest, see ``CUDA_BYTES``: cuDNN's workspaces, the fragmentation of the memory.
    ``torch.compile``, which nnU-Net uses by default, was not measured: it may keep less.

    Args:
        configuration: of the plans.
        input_channels: of the network, with those of a cascade.
        classes: channels of the network's output.
        labeled_consistency: that of the configuration of MICD, or whether there is an ignore label.
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
    features, features_of_peer = (int(each.compute_conv_feature_map_size(patch_size)) for each in (network, peer))
    of_feature, of_channel, of_class = BYTES[labeled_consistency]
    of_voxel = of_channel * network.encoder.output_channels[0] + of_class * classes
    of_sample = of_feature * max(features, features_of_peer) + of_voxel * torch.Size(patch_size).numel()
    weights = sum(parameter.numel() for each in (network, peer) for parameter in each.parameters())
    reference, reference_batch = PLANNER_REFERENCE[configuration.network_arch_class_name, len(patch_size)]
    return MemoryEstimate(
        micd=CUDA_BYTES + BYTES_PER_WEIGHT * weights + batch_size * of_sample,
        nnunet=PLANNER_BYTES * features / reference * batch_size / reference_batch,
    )


def check_memory(plans: PlansManager, name: str, dataset_json: dict[str, Any]) -> Finding:
    """Say what a training with the configuration ``name`` takes, and warn where no GPU has that much."""
    configuration = plans.get_configuration(name)
    channels = determine_num_input_channels(plans, configuration, dataset_json)
    labels = plans.get_label_manager(dataset_json)
    estimate = estimate_memory(configuration, channels, labels.num_segmentation_heads, labels.has_ignore_label)
    text = (
        f"about {_gib(estimate.micd)} of GPU memory for a training of MICD "
        f"(nnU-Net's own: about {_gib(estimate.nnunet)}, by its planner's measure)"
    )
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    memory = max((torch.cuda.get_device_properties(index).total_memory for index in gpus), default=None)
    if memory is None or memory >= estimate.micd:
        return Finding("ok", name, text)
    remedy = "if it does not fit, copy the plans under another name with a smaller batch_size, and train with these: -p"
    return Finding("warning", name, f"{text}, more than the {_gib(memory)} of the GPU", remedy)


def _gib(size: float) -> str:
    size /= 2**30
    return f"{size:.1f} GiB" if size < 10 else f"{size:.0f} GiB"
