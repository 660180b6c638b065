"""Training with several processes, one per GPU. With a single process every function here leaves its input as it is.

nnU-Net wraps its network in DistributedDataParallel, which averages the gradients during the backward pass. A step of a
semi-supervised method has several backward passes through several networks, so the gradients are averaged once, after
the last backward pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


def several_processes() -> bool:
    """Return whether this process is one of several that train together."""
    return distributed.is_available() and distributed.is_initialized()


def number_of_processes() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if several_processes() else 1


def share_weights(networks: Iterable[nn.Module]) -> None:
    """Copy the weights and buffers of the first process to all others.

    Args:
        networks: Networks, changed in place.
    """
    for network in networks if several_processes() else ():
        for tensor in network.state_dict().values():
            distributed.broadcast(tensor, src=0)


def average_gradients(networks: Iterable[nn.Module]) -> None:
    """Replace the gradients of each network by their mean over the processes.

    The same parameters must have a gradient in all processes.

    Args:
        networks: Networks after the backward passes of a step; their gradients are changed in place.
    """
    for network in networks if several_processes() else ():
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if not gradients:  # this step does not train the network
            continue
        # One exchange for the whole network: many small ones would wait for the slowest process each time.
        together = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(together)
        together /= distributed.get_world_size()
        parts = together.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def sum_over_processes(counts: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes.

    Args:
        counts: Tensor of the same shape in all processes; changed in place.

    Returns:
        The sum, in every process.
    """
    if several_processes():
        distributed.all_reduce(counts)
    return counts


def share_of_process(items: Sequence[T]) -> Sequence[T]:
    """Return the items that this process has to do, so that all processes together do each once."""
    return items[distributed.get_rank() :: distributed.get_world_size()] if several_processes() else items


def wait_for_all() -> None:
    """Wait for the other processes after work that may take much longer in one than in another."""
    with _patient_group() as group:
        if group is not None:
            distributed.barrier(group)


def gather_over_processes(results: dict[str, float]) -> dict[str, float]:
    """Return the results of all processes together, after work that may take much longer in one than in another.

    Args:
        results: Results by name, with other names in each process.
    """
    gathered = [results] * number_of_processes()
    with _patient_group() as group:
        if group is not None:
            distributed.all_gather_object(gathered, results, group)
    return {name: value for process in gathered for name, value in process.items()}


@contextmanager
def _patient_group() -> Iterator[Any]:
    """Make a group of all processes that waits for days; NCCL, which nnU-Net has, ends a training after ten minutes."""
    if not several_processes():
        yield None
        return
    group = distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    yield group
    distributed.destroy_process_group(group)


def mean_over_processes(figures: dict[str, float]) -> dict[str, float]:
    """Return the mean of each figure over the processes.

    Args:
        figures: Figures by name, with the same names in all processes.

    Returns:
        Means by name, in every process.
    """
    if not several_processes():
        return figures
    gathered: list[dict[str, float]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(gathered, figures)
    return {name: sum(process[name] for process in gathered) / len(gathered) for name in figures}
