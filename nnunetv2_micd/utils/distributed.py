"""Training with several processes, one for each GPU; with one process nothing here does anything.

nnU-Net wraps its network in DistributedDataParallel, which averages gradients during a backward pass. A step here has
several backward passes through several networks, so the gradients are averaged once, after the last of them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def several_processes() -> bool:
    """Return whether this process is one of several that train together."""
    return distributed.is_available() and distributed.is_initialized()


def share_weights(networks: Iterable[nn.Module]) -> None:
    """Give all processes the weights of the first."""
    for network in networks if several_processes() else ():
        for tensor in network.state_dict().values():
            distributed.broadcast(tensor, src=0)


def average_gradients(networks: Iterable[nn.Module]) -> None:
    """Replace the gradients of each network by their mean over the processes, in one exchange per network.

    The same parameters must have a gradient in all processes.
    """
    for network in networks if several_processes() else ():
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if not gradients:  # a network that this step does not train
            continue
        together = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(together)
        together /= distributed.get_world_size()
        parts = together.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def sum_over_processes(counts: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, which all have the same shape."""
    if several_processes():
        distributed.all_reduce(counts)
    return counts


def mean_over_processes(figures: dict[str, float]) -> dict[str, float]:
    """Return the mean of each figure over the processes."""
    if not several_processes():
        return figures
    everywhere: list[dict[str, float]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, figures)
    return {name: sum(of_one[name] for of_one in everywhere) / len(everywhere) for name in figures}
