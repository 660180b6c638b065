"""Passes that run twice have the gradients of a single run."""

import pytest
import torch
from helpers import needs_cuda
from torch import nn

from nnunetv2_micd.training.step import Deferred


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_deferred_passes_draw_the_same_dropout_twice(device: str) -> None:
    """Two passes through one network, between which and after which others draw numbers as well."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 4)).to(device)
    images = torch.randn(3, 8, device=device)

    def gradients(deferred: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        network.zero_grad()
        runs = [lambda: network(images), lambda: network(-images)]
        passes = Deferred(*runs) if deferred else None
        first, second = passes.outputs if passes else [run() for run in runs]
        noise = torch.randn(3, 4, device=device)
        ((first * second + noise) ** 2).sum().backward()
        if passes:
            passes.backward()
        return [*(parameter.grad for parameter in network.parameters()), torch.rand(4, device=device)]

    for deferred, direct in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(deferred, direct)
