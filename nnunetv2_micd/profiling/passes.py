"""Counts the passes of a training step: which network runs over how many images, with or without gradient."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnunetv2_micd.training.slice_networks import SliceNetwork
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer


@dataclass(frozen=True)
class Pass:
    """A pass of one network over a batch.

    Attributes:
        network: Name of the network, such as ``"a"``.
        teacher: True for the teacher of that name, False for the student.
        gradient: True if a backward pass follows.
        all_outputs: True if the network also computes the outputs at lower resolutions, for deep supervision.
        images: Number of images in the batch, at most nnU-Net's batch size.
        times: Number of such passes in a step, on average. A part of a network counts as a part of a pass.
    """

    network: str
    teacher: bool
    gradient: bool
    all_outputs: bool
    images: int
    times: float = 1


@dataclass(frozen=True)
class _HalfPass:
    """A run of the encoder or decoder of a network.

    Attributes:
        network: Name of the network.
        teacher: True for a teacher.
        part: The part of the network.
        images: Images of the pass, also for the decoder.
        gradient: True if gradients were enabled.
        all_outputs: True within a call of the whole network.
    """

    network: str
    teacher: bool
    part: Literal["encoder", "decoder"]
    images: Tensor
    gradient: bool
    all_outputs: bool


def count_passes(trainer: Any, batch: dict[str, Any]) -> list[Pass]:
    """Take steps with a trainer and return the passes of a step, on average, that its method asks for.

    A pass that runs first without and then with gradient, to hold fewer graphs at once, counts once.

    Args:
        trainer: An initialized trainer, past any phase without losses on unlabeled images. The steps change its
            weights, but not its iteration.
        batch: Labeled batch of each step.
    """
    if not isinstance(trainer, SemiSupervisedTrainer):
        return [Pass("a", teacher=False, gradient=True, all_outputs=True, images=trainer.batch_size)]
    steps = trainer.config.consistency_every  # a step with unlabeled images is among so many
    half_passes: list[_HalfPass] = []
    with ExitStack() as stack:
        for is_teacher, networks in ((False, trainer.students), (True, trainer.teachers)):
            for name, network in networks.items():
                if not hasattr(network, "encoder") and not isinstance(network, SliceNetwork):
                    continue  # a small part, such as a projector, whose cost does not count
                for handle in _watch(network, name, is_teacher, half_passes):
                    stack.callback(handle.remove)
        # Compiled code would not call the hooks.
        stack.enter_context(torch.compiler.set_stance("force_eager") if trainer._do_i_compile() else nullcontext())
        iteration = trainer.iteration
        for _ in range(steps):
            trainer.train_step(batch)
        trainer.iteration = iteration
    counts: Counter[Pass] = Counter()
    for half in _without_repetitions(half_passes):
        # A method may run over several batches at once. That costs as much as one after the other.
        images = min(len(half.images), trainer.batch_size)
        key = Pass(half.network, half.teacher, half.gradient, half.all_outputs, images)
        counts[key] += len(half.images) / images / 2 / steps
    return [
        Pass(key.network, key.teacher, key.gradient, key.all_outputs, key.images, times)
        for key, times in counts.items()
    ]


def _watch(network: Any, name: str, is_teacher: bool, half_passes: list[_HalfPass]) -> Iterator[Any]:
    """Let each run of the encoder and of the decoder of a network be recorded; yield the handles of the hooks."""
    is_whole = False
    images: Tensor

    def begin(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal is_whole
        is_whole = True

    def end(module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        nonlocal is_whole
        is_whole = False

    def encode(module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        nonlocal images
        images = inputs[0]
        record("encoder")

    def decode(module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        record("decoder")

    def record(part: Literal["encoder", "decoder"]) -> None:
        half_passes.append(_HalfPass(name, is_teacher, part, images, torch.is_grad_enabled(), is_whole))

    def run_whole(module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        nonlocal images
        images = inputs[0]
        record("encoder")
        record("decoder")

    yield network.register_forward_pre_hook(begin)
    if not hasattr(network, "encoder"):  # no U-Net of the plans, so it always runs as a whole
        yield network.register_forward_hook(run_whole)
        return
    yield network.register_forward_hook(end)
    yield network.encoder.register_forward_hook(encode)
    # Methods run the stages of a decoder one by one. The last of its layers runs once, whichever way.
    yield network.decoder.seg_layers[-1].register_forward_hook(decode)


def _without_repetitions(half_passes: Sequence[_HalfPass]) -> Iterator[_HalfPass]:
    """Leave out passes without gradient over images over which the same network also runs with gradient.

    If the encoder runs only once, its two decoder runs are different passes, not a repetition.
    """

    def key(half: _HalfPass, gradient: bool) -> tuple[str, bool, int, bool]:
        return half.network, half.teacher, id(half.images), gradient

    encoded = {key(half, half.gradient) for half in half_passes if half.part == "encoder"}
    for half in half_passes:
        if half.gradient or not {key(half, True), key(half, False)} <= encoded:
            yield half
