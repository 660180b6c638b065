import copy

import pytest
import torch
from helpers import TinyDataset, make_trainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.training.networks import (
    PLAIN,
    RESIDUAL,
    check_architecture,
    forward_with_features,
    forward_with_outputs,
    forward_with_scaled_features,
    full_resolution,
    output_layer,
    peer_architecture,
)

IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def architecture(dimensions: int, **blocks: object) -> dict:
    return {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 6,
        "strides": [[1] * dimensions] + [[2] * dimensions] * 5,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **blocks,
    }


# As nnU-Net's default planner and its residual encoder presets ask for.
PLANS = {
    PLAIN: {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5},
    RESIDUAL: {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": [1] * 5},
}


def build(class_name: str, kwargs: dict, **options: object) -> nn.Module:
    return get_network_from_plans(class_name, kwargs, IMPORTED, 1, 3, **{"deep_supervision": True, **options})


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("class_name", [PLAIN, RESIDUAL])
def test_peer_has_the_same_features_at_a_similar_cost(class_name: str, dimensions: int) -> None:
    kwargs = architecture(dimensions, **PLANS[class_name])
    networks = [(class_name, kwargs), peer_architecture(class_name, copy.deepcopy(kwargs))]
    assert {name for name, _ in networks} == {PLAIN, RESIDUAL}
    shapes, costs = [], []
    with torch.device("meta"):
        for name, arguments in networks:
            network = build(name, arguments, allow_init=False)
            with FlopCounterMode(display=False) as counter:
                _, features = forward_with_features(network, torch.empty(1, 1, *[64] * dimensions))
            shapes.append([feature.shape for feature in features])
            costs.append(counter.get_total_flops())
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 5
    # Without shortcuts a network as deep as nnU-Net's residual ones trains worse, so that of their plans is cheaper.
    least = 0.8 if class_name == PLAIN else 0.45
    assert least < costs[1] / costs[0] < 1.25


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("class_name", [PLAIN, RESIDUAL])
def test_forward_with_features_is_the_forward_pass(class_name: str, deep_supervision: bool) -> None:
    kwargs = architecture(2, **PLANS[class_name]) | {"features_per_stage": [4] * 6}
    network = build(class_name, kwargs, deep_supervision=deep_supervision)
    images = torch.randn(2, 1, 32, 64)
    logits, features = forward_with_features(network, images)
    assert torch.equal(logits, full_resolution(network(images)))
    assert [tuple(f.shape[2:]) for f in features] == [(2, 4), (4, 8), (8, 16), (16, 32), (32, 64)]


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("class_name", [PLAIN, RESIDUAL])
def test_forward_with_outputs_is_the_forward_pass(class_name: str, deep_supervision: bool) -> None:
    network = build(class_name, architecture(2, **PLANS[class_name]), deep_supervision=deep_supervision)
    images = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        outputs, (bottleneck, *features) = forward_with_outputs(network, images)
        expected = network(images)
        assert torch.equal(bottleneck, network.encoder(images)[-1])
        assert all(map(torch.equal, features, forward_with_features(network, images)[1]))
        assert torch.equal(output_layer(network)(features[-1]), full_resolution(outputs))
    assert isinstance(outputs, list) == deep_supervision
    assert all(map(torch.equal, outputs, expected)) if deep_supervision else torch.equal(outputs, expected)


def test_unknown_architecture_names_what_is_supported() -> None:
    with pytest.raises(ValueError, match=r"'a\.Transformer'.*PlainConvUNet.*ResidualEncoderUNet"):
        peer_architecture("a.Transformer", {})


def test_two_stages_leave_deep_supervision_without_weights() -> None:
    with pytest.raises(ValueError, match="has 2 stages, too few for nnU-Net's deep supervision"):
        check_architecture(PLAIN, {"n_stages": 2})
    check_architecture(PLAIN, {"n_stages": 2}, deep_supervision=False)
    check_architecture(PLAIN, {"n_stages": 3})


@pytest.mark.slow
def test_passes_compile_without_a_graph_break(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.initialize()
    images = torch.randn(2, 1, *trainer.configuration_manager.patch_size)
    scales = [torch.ones(2, channels) for channels in trainer.network.encoder.output_channels]
    for network in trainer.students.values():
        passes = ((network, images), (forward_with_features, network, images))
        for function, *arguments in (*passes, (forward_with_scaled_features, network, images, scales)):
            torch._dynamo.reset()
            explained = torch._dynamo.explain(function)(*arguments)
            assert (explained.graph_count, explained.graph_break_count) == (1, 0)
