"""What a method hands to the step of the trainer: named losses, and passes whose graph is built later."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnunetv2_micd.utils import random_states


@dataclass(frozen=True)
class Losses:
    """Losses that are backpropagated together, by name.

    Attributes:
        supervised: Losses of weight one, such as nnU-Net's own on labeled images.
        unsupervised: Losses that are multiplied by the ramped-up weight b(t).
        shares: Share of the step's samples on which a loss is computed, by which it is multiplied as well; 1 if a loss
            is not named.

    Examples:
        >>> losses = Losses(supervised={"supervised": torch.tensor(2.0)}, unsupervised={"cmd": torch.tensor(4.0)})
        >>> losses.total(unsupervised_weight=0.5)
        tensor(4.)
    """

    supervised: dict[str, Tensor] = field(default_factory=dict)
    unsupervised: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, Tensor]:
        """All losses by name."""
        return self.supervised | self.unsupervised

    def total(self, unsupervised_weight: float) -> Tensor:
        """Return the weighted sum, a scalar with a graph."""
        weighted = self.supervised | {name: unsupervised_weight * loss for name, loss in self.unsupervised.items()}
        return torch.as_tensor(sum(self.shares.get(name, 1) * loss for name, loss in weighted.items()))

    def detached(self) -> "Losses":
        """Return the values without their graphs."""
        return Losses(
            {name: loss.detach() for name, loss in self.supervised.items()},
            {name: loss.detach() for name, loss in self.unsupervised.items()},
            self.shares,
        )

    def __or__(self, other: "Losses") -> "Losses":
        return Losses(
            self.supervised | other.supervised, self.unsupervised | other.unsupervised, self.shares | other.shares
        )


def as_error(loss: Any) -> Any:
    """Return nnU-Net's loss as an error that is never negative: its Dice loss is minus the Dice."""
    return 1 + loss


class Deferred:
    """Passes that run twice, so that their graphs are not held together with those of other passes.

    A first run without a graph gives the outputs that losses are computed from. When these losses have been
    backpropagated, and what else they held has been released, :meth:`backward` runs each pass again, now with a graph,
    and sends the gradients of its outputs back through it. The gradients are those of a single run, for one forward
    pass more and less memory. Dropout is the same in both runs; batch normalization counts a batch twice in its running
    statistics.

    Args:
        runs: Functions without arguments that return the outputs of a pass: a tensor, or tuples and lists of tensors.

    Attributes:
        outputs: Output of each run; its tensors are leaves that collect a gradient.

    Examples:
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> passes = Deferred(lambda: 2 * weight)
        >>> (passes.outputs[0] ** 2).backward()
        >>> passes.backward()
        >>> weight.grad  # d (2 w)^2 / d w = 8 w
        tensor(24.)
    """

    def __init__(self, *runs: Callable[[], Any]):
        self._runs = runs
        self._random_states, self.outputs = [], []
        with torch.no_grad():
            for run in runs:
                self._random_states.append(random_states.get_dropout_states())
                self.outputs.append(run())
        for tensor in _tensors(self.outputs):
            tensor.requires_grad_()

    def backward(self) -> None:
        """Run the passes again, one at a time, and send the gradients of their outputs back."""
        gradients = [[tensor.grad for tensor in _tensors(output)] for output in self.outputs]
        self.outputs = []  # frees them before the first graph is built, unless the caller has kept one
        for run, states, gradients_of_run in zip(self._runs, self._random_states, gradients, strict=True):
            with random_states.dropout_repeated(states):
                pairs = zip(_tensors(run()), gradients_of_run, strict=True)
                tensors, seen = zip(
                    *((tensor, gradient) for tensor, gradient in pairs if gradient is not None), strict=True
                )
            with torch.autocast(tensors[0].device.type, enabled=False):  # backward passes are never under autocast
                torch.autograd.backward(tensors, seen)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for part in output:
            yield from _tensors(part)
