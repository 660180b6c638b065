"""The second network, built from the plans of the first, and forward passes that return features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
CONVOLUTIONS_PER_BLOCK = 2  # of BasicBlockD, the block of ResidualEncoderUNet
PLAIN_CONVOLUTIONS = 2  # per stage, of nnU-Net's default planner


def check_architecture(class_name: str, kwargs: Mapping[str, Any], deep_supervision: bool = True) -> None:
    """Refuse networks whose decoder features are not known, or whose loss nnU-Net cannot weigh.

    Args:
        class_name: ``network_arch_class_name`` of the plans.
        kwargs: ``network_arch_init_kwargs`` of the plans.
        deep_supervision: Whether the training uses it.

    Raises:
        ValueError: if the plans' architecture is neither a PlainConvUNet nor a ResidualEncoderUNet, or has two stages.
    """
    if class_name not in (PLAIN, RESIDUAL):
        raise ValueError(
            f"The plans ask for the network '{class_name}', which is not supported; plan with "
            f"nnU-Net's default planner (PlainConvUNet) or a residual encoder preset (ResidualEncoderUNet)."
        )
    # nnU-Net gives the coarsest output no weight, and with two stages there is no other: its weights are 0 / 0.
    if deep_supervision and kwargs["n_stages"] < 3:
        raise ValueError(
            f"The network of the plans has {kwargs['n_stages']} stages, too few for nnU-Net's deep supervision; plan "
            "with larger images, or use a trainer without deep supervision."
        )


def peer_architecture(class_name: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Describe the other architecture with the stages, strides, kernels and features of the given one.

    A residual block holds two convolutions, so a plain stage of n convolutions becomes n / 2 blocks: the encoders
    compute almost the same. A residual encoder has a stem, one more convolution at full resolution; its decoder
    therefore gets one convolution less per stage, as in nnU-Net's own residual presets. This brings the cost of the
    whole network close to the plain one's. The reverse does not hold: without the shortcuts, as many convolutions
    as the residual presets have train worse than nnU-Net's plain default (by 1.0 points of Dice with 40 in the encoder
    against 10, four runs each on the hippocampus data), so the plain network gets that. All decoder features keep
    their shapes.

    Args:
        class_name: ``network_arch_class_name`` of the plans.
        kwargs: ``network_arch_init_kwargs`` of the plans.

    Returns:
        The same two entries for the second network.

    Raises:
        ValueError: see :func:`check_architecture`.
    """
    check_architecture(class_name, kwargs, deep_supervision=False)
    peer = dict(kwargs)
    if class_name == PLAIN:
        convolutions = peer.pop("n_conv_per_stage")
        peer["n_blocks_per_stage"] = _map(lambda n: max(1, n // CONVOLUTIONS_PER_BLOCK), convolutions)
        peer["n_conv_per_stage_decoder"] = _map(lambda n: max(1, n - 1), peer["n_conv_per_stage_decoder"])
        return RESIDUAL, peer
    peer.pop("n_blocks_per_stage")
    peer["n_conv_per_stage"] = [PLAIN_CONVOLUTIONS] * peer["n_stages"]
    peer["n_conv_per_stage_decoder"] = [PLAIN_CONVOLUTIONS] * (peer["n_stages"] - 1)
    return PLAIN, peer


def _map(function: Callable[[int], int], values: int | list[int] | tuple[int, ...]) -> int | list[int]:
    return function(values) if isinstance(values, int) else [function(value) for value in values]


def build_peer(
    configuration: ConfigurationManager, input_channels: int, output_channels: int, deep_supervision: bool
) -> nn.Module:
    """Build network B for a configuration of the plans; the caller's random state is left as it was.

    Raises:
        ValueError: for an unknown architecture, see :func:`peer_architecture`.
    """
    class_name, kwargs = peer_architecture(
        configuration.network_arch_class_name, configuration.network_arch_init_kwargs
    )
    with torch.random.fork_rng(devices=[]):
        return get_network_from_plans(
            class_name,
            kwargs,
            configuration.network_arch_init_kwargs_req_import,
            input_channels,
            output_channels,
            allow_init=True,
            deep_supervision=deep_supervision,
        )


def forward_with_features(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run a U-Net of the plans and keep what its decoder stages compute.

    Args:
        network: a PlainConvUNet or ResidualEncoderUNet.
        images: ``(B, channels, *spatial)``.

    Returns:
        Logits at full resolution ``(B, K, *spatial)``, whether deep supervision is on or not, and the features of
        the decoder stages, deepest first, ``(B, C_k, *spatial_k)``.
    """
    encoder: Any = network.encoder
    return _decode(network, encoder(images))


def forward_to_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Run a U-Net of the plans without its outputs at lower resolutions.

    Compiled, it takes less memory than :func:`forward_with_features`: outputs of a compiled function that the loss does
    not use get gradients of zeros in the backward pass.

    Args:
        network: a PlainConvUNet or ResidualEncoderUNet.
        images: ``(B, channels, *spatial)``.

    Returns:
        Logits at full resolution ``(B, K, *spatial)``, whether deep supervision is on or not.
    """
    return forward_with_features(network, images)[0]


def forward_with_outputs(network: nn.Module, images: Tensor) -> tuple[Tensor | list[Tensor], list[Tensor]]:
    """Run a U-Net of the plans as its own ``forward`` does, and keep the features of all its levels.

    Args:
        network: a PlainConvUNet or ResidualEncoderUNet.
        images: ``(B, channels, *spatial)``.

    Returns:
        What ``network(images)`` returns, and the features ``(B, C_k, *spatial_k)``: of the bottleneck, which is the
        last stage of the encoder, then of the decoder stages, deepest first. The last ones are those that
        :func:`output_layer` turns into logits.
    """
    encoder: Any = network.encoder
    decoder: Any = network.decoder
    encoded = encoder(images)
    logits, features = _decode(network, encoded)
    if not decoder.deep_supervision:
        return logits, [encoded[-1], *features]
    coarser = [layer(stage) for layer, stage in zip(decoder.seg_layers[:-1], features[:-1], strict=True)]
    return [logits, *reversed(coarser)], [encoded[-1], *features]


def output_layer(network: nn.Module) -> nn.Conv2d | nn.Conv3d:
    """Return the convolution with a kernel of one that makes the logits at full resolution.

    Its weight is ``(K, C, 1, 1[, 1])``, with C channels of the last decoder stage.
    """
    decoder: Any = network.decoder
    return decoder.seg_layers[-1]


def forward_with_scaled_features(network: nn.Module, images: Tensor, scales: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Run a U-Net of the plans once as it is and once with scaled encoder features; the encoder runs only once.

    Args:
        network: a PlainConvUNet or ResidualEncoderUNet.
        images: ``(B, channels, *spatial)``.
        scales: a factor ``(B, C_k)`` for each channel of each encoder stage, highest resolution first.

    Returns:
        Logits at full resolution ``(B, K, *spatial)`` of both: the first without gradient, the second with it.
    """
    encoder: Any = network.encoder
    skips = encoder(images)
    scaled = [
        skip * scale.to(skip.dtype).view(*scale.shape, *[1] * (skip.ndim - 2))
        for skip, scale in zip(skips, scales, strict=True)
    ]
    # First with gradient: autocast of older PyTorch keeps the half-precision weights of a pass, without their graph.
    scaled_logits, _ = _decode(network, scaled)
    with torch.no_grad():
        logits, _ = _decode(network, skips)
    return logits, scaled_logits


def _decode(network: nn.Module, encoded: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    decoder: Any = network.decoder
    *skips, x = encoded
    features = []
    for upsample, stage, skip in zip(decoder.transpconvs, decoder.stages, reversed(skips), strict=True):
        x = stage(torch.cat((upsample(x), skip), 1))
        features.append(x)
    return decoder.seg_layers[-1](x), features


def full_resolution(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the finest of a network's deep-supervision outputs or targets, or the only one without it."""
    return output if isinstance(output, Tensor) else output[0]
