"""The 2D network on the slices of 3D patches: order of the slices, padding, and the stages that fit."""

import json

import pytest
import torch
from helpers import PATCH_SIZE, TinyDataset
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_micd.training.slice_networks import SliceNetwork, build_slice_network, fit_to_slices

KWARGS = {
    "n_stages": 4,
    "features_per_stage": [4, 8, 16, 32],
    "kernel_sizes": [[3, 3]] * 4,
    "strides": [[1, 1], [2, 2], [2, 2], [1, 2]],
    "n_conv_per_stage": [2, 2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2, 2],
    "conv_bias": True,
}


class Recorder(nn.Module):
    """Keeps the slices that it saw, and returns them as logits of one class."""

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        self.seen = slices
        return slices


def test_every_slice_along_the_first_axis_is_an_image() -> None:
    images = torch.randn(2, 1, 3, 4, 8)
    network = SliceNetwork(Recorder(), (4, 4))
    assert torch.equal(network(images), images)
    for sample in range(2):
        for position in range(3):
            assert torch.equal(network.network.seen[3 * sample + position, 0], images[sample, 0, position])
    assert torch.equal(network(images[:, :, 0]), images[:, :, 0])  # patches in 2D are slices themselves


def test_slices_are_extended_and_logits_cropped() -> None:
    images = torch.randn(2, 2, 3, 5, 7)
    network = SliceNetwork(Recorder(), (4, 6))
    assert torch.equal(network(images), images)
    assert network.network.seen.shape == (6, 2, 8, 12)
    assert torch.equal(network.network.seen[:, :, 5:, 0], network.network.seen[:, :, 4:5, 0].expand(-1, -1, 3))


@pytest.mark.parametrize(
    ("slice_size", "stages", "factors"),
    # coarser by 1, 2, 4 and (4, 8): feature maps of 4 pixels along each edge
    [((16, 32), 4, [4, 8]), ((16, 24), 3, [4, 4]), ((20, 24), 3, [4, 4]), ((12, 24), 2, [2, 2]), ((2, 2), 2, [2, 2])],
)
def test_stages_that_are_too_coarse_are_left_out(slice_size: tuple[int, int], stages: int, factors: list[int]) -> None:
    fitted, multiple = fit_to_slices(KWARGS, slice_size)
    lists = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")
    assert {len(fitted[name]) for name in lists} == {fitted["n_stages"]}
    assert len(fitted["n_conv_per_stage_decoder"]) == fitted["n_stages"] - 1
    assert (fitted["n_stages"], multiple) == (stages, factors)
    assert fitted["conv_bias"] is True
    assert len(KWARGS["strides"]) == 4


def test_network_is_that_of_the_2d_configuration(dataset: TinyDataset) -> None:
    network = build_slice_network(PlansManager(str(dataset.plans_file)), PATCH_SIZE[1:], 2, 3)
    assert network.multiple == (4, 4)
    assert network(torch.randn(1, 2, *PATCH_SIZE)).shape == (1, 3, *PATCH_SIZE)
    assert {parameter.ndim for parameter in network.parameters()} == {1, 4}


def test_plans_without_2d(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"].pop("2d")
    with pytest.raises(ValueError, match="2d configuration, which these plans do not have"):
        build_slice_network(PlansManager(plans), PATCH_SIZE[1:], 1, 3)
