"""The cost of a training step: its parts, and the time of its passes alone, for several trainers side by side.

All trainers live in one process and take their steps in turns. If the machine is busy for a while, that slows all of
them down. Times are medians.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from nnunetv2_micd.profiling.batches import make_batch, make_unlabeled_batch
from nnunetv2_micd.profiling.passes import Pass, count_passes
from nnunetv2_micd.profiling.stopwatch import Stopwatch
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer

LABELED_DATA, UNLABELED_DATA = "labeled data", "unlabeled data"
STUDENTS, TEACHERS, BACKWARD, SUPERVISED_LOSS, OPTIMIZER, EMA, REST = (
    "students forward",
    "teachers forward",
    "backward",
    "nnU-Net's loss",
    "optimizer",
    "moving average",
    "other losses and all else",
)
PARTS = (STUDENTS, TEACHERS, BACKWARD, SUPERVISED_LOSS, OPTIMIZER, EMA, REST)
LATE = 0.85
"""Share of the training before the measured steps: late, when no method waits with its consistency losses, but before
self-training ends with labels only."""

WARM_UP = 3
"""Rounds before the measured ones: compilation, cuDNN's choice of algorithms, the first allocation of memory."""


@dataclass(frozen=True)
class StepProfile:
    """The cost of a step of a trainer.

    Attributes:
        trainer: Name of the trainer.
        data: Seconds in which one process makes the labeled and the unlabeled batch of a step; 0 without data.
        step: Seconds of a step whose batches are already there.
        parts: Seconds of each of :data:`PARTS` in a step.
        floor: Seconds of the passes that the method asks for, each by itself.
        passes: These passes.
    """

    trainer: str
    data: tuple[float, float]
    step: float
    parts: Mapping[str, float]
    floor: float
    passes: Sequence[Pass]


def profile_steps(trainers: Sequence[Any], rounds: int) -> list[StepProfile]:
    """Measure the steps of trainers, and the passes of which they consist.

    Args:
        trainers: Initialized trainers with the same plans on the same device. Those without loaders get random patches.
        rounds: Number of steps of each trainer, and of runs of each of its passes.
    """
    measured = [_MeasuredTrainer(trainer) for trainer in trainers]
    for round_ in range(WARM_UP + rounds):
        for trainer in measured:
            trainer.run(is_warm=round_ >= WARM_UP)
    return [trainer.profile() for trainer in measured]


def take_steps(trainer: Any, rounds: int) -> None:
    """Take steps with an initialized trainer, on random patches if it has no loaders."""
    prepare(trainer)
    for _ in range(rounds * _period(trainer)):
        trainer.train_step(next(trainer.dataloader_train))


def prepare(trainer: Any) -> dict[str, Any]:
    """Prepare an initialized trainer for steps late in its training; return a batch of random patches.

    A trainer without loaders gets that batch in each step.
    """
    batch = make_batch(trainer)
    if trainer.dataloader_train is None:
        trainer.dataloader_train = repeat(batch)
    if isinstance(trainer, SemiSupervisedTrainer):
        if trainer.dataloader_unlabeled is None and trainer.config.ramp_peak > 0:
            trainer.dataloader_unlabeled = repeat(make_unlabeled_batch(batch, trainer.unlabeled_batch_size))
        trainer.iteration = int(LATE * trainer.num_epochs * trainer.num_iterations_per_epoch)
        for group in trainer.optimizer.param_groups:  # which may tell how many images are unlabeled
            group["lr"] = trainer.initial_lr * (1 - LATE)
    for name, network in _networks(trainer).items():
        network.train(name.startswith("student"))
    return batch


def _period(trainer: Any) -> int:
    """Return the number of steps of which one has unlabeled images."""
    return trainer.config.consistency_every if isinstance(trainer, SemiSupervisedTrainer) else 1


class _MeasuredTrainer:
    """A trainer with the times of its steps."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.watch = Stopwatch(trainer.device)
        self.steps: list[dict[str, float]] = []
        self.floors: list[float] = []
        self.passes = count_passes(trainer, prepare(trainer))

    def run(self, is_warm: bool) -> None:
        """Take the steps of one round and run the passes by themselves; keep the times of a warm trainer."""
        steps = _period(self.trainer)
        with _instrumented(self.trainer, self.watch):
            for _ in range(steps):
                with self.watch.part(LABELED_DATA):
                    batch = next(self.trainer.dataloader_train)
                with self.watch.part(REST):
                    self.trainer.train_step(batch)
        parts = {name: seconds / steps for name, seconds in self.watch.take().items()}
        floor = sum(kind.times * self._run_alone(kind, batch["data"][: kind.images]) for kind in self.passes)
        self.trainer.optimizer.zero_grad(set_to_none=True)  # frees the memory for the other trainers
        if is_warm:
            self.steps.append(parts)
            self.floors.append(floor)

    def _run_alone(self, kind: Pass, images: Tensor) -> float:
        """Return the seconds of one pass, and of its backward pass."""
        trainer = self.trainer
        images = images.to(trainer.device)
        with self.watch.part("alone"):
            with nullcontext() if kind.gradient else torch.no_grad(), _autocast(trainer):
                outputs = self._forward(kind, images)
            if kind.gradient:
                torch.autograd.backward(outputs, [torch.zeros_like(output) for output in outputs])
        return self.watch.take()["alone"]

    def _forward(self, kind: Pass, images: Tensor) -> list[Tensor]:
        if kind.all_outputs:
            output = _networks(self.trainer)[f"{'teacher' if kind.teacher else 'student'} {kind.network}"](images)
            return output if isinstance(output, list) else [output]
        network = (self.trainer.teachers if kind.teacher else self.trainer.students)[kind.network]
        return [self.trainer.logits(network, images)]

    def profile(self) -> StepProfile:
        """Return the medians over the measured rounds."""
        labeled, unlabeled, *parts = (
            median(step.get(part, 0) for step in self.steps) for part in (LABELED_DATA, UNLABELED_DATA, *PARTS)
        )
        return StepProfile(
            trainer=type(self.trainer).__name__,
            data=(labeled, unlabeled),
            step=median(sum(step.get(part, 0) for part in PARTS) for step in self.steps),
            parts=dict(zip(PARTS, parts, strict=True)),
            floor=median(self.floors),
            passes=self.passes,
        )


def _networks(trainer: Any) -> dict[str, nn.Module]:
    """Return the networks of a step, students and teachers, as the step calls them: compiled if nnU-Net compiles."""
    if not isinstance(trainer, SemiSupervisedTrainer):
        return {"student a": trainer.network}
    students = {f"student {name}": network for name, network in {**trainer.students, "a": trainer.network}.items()}
    return students | {f"teacher {name}": network for name, network in trainer.teachers.items()}


def _autocast(trainer: Any) -> Any:
    if isinstance(trainer, SemiSupervisedTrainer):
        return trainer.autocast()
    return torch.autocast("cuda") if trainer.device.type == "cuda" else nullcontext()


@contextmanager
def _instrumented(trainer: Any, watch: Stopwatch) -> Iterator[None]:
    """Let a stopwatch time the parts of a trainer's steps in a block."""
    with ExitStack() as stack:

        def time(owner: Any, name: str, part: str) -> None:
            stack.enter_context(mock.patch.object(owner, name, watch.timed(getattr(owner, name), part)))

        for name, network in _networks(trainer).items():
            is_compiled = getattr(network, "_compiled_call_impl", None) is not None
            part = STUDENTS if name.startswith("student") else TEACHERS
            time(network, "_compiled_call_impl" if is_compiled else "forward", part)
        if isinstance(trainer, SemiSupervisedTrainer):
            time(trainer, "next_unlabeled", UNLABELED_DATA)
            time(trainer.networks, "update_teachers", EMA)
        # Passes that do not call a network as a whole, but its encoder and decoder.
        for name in [attribute for attribute in vars(trainer) if attribute.startswith("forward_")]:
            stack.enter_context(mock.patch.object(trainer, name, _timed_pass(getattr(trainer, name), trainer, watch)))
        time(torch.autograd, "backward", BACKWARD)  # Tensor.backward calls it as well
        for name in ("loss", "masked_loss"):  # BCP has a second one
            if hasattr(trainer, name):
                time(trainer, name, SUPERVISED_LOSS)
        time(trainer.optimizer, "step", OPTIMIZER)
        time(trainer.optimizer, "zero_grad", OPTIMIZER)
        time(torch.nn.utils, "clip_grad_norm_", OPTIMIZER)
        yield


def _timed_pass(function: Callable[..., Any], trainer: Any, watch: Stopwatch) -> Callable[..., Any]:
    teachers = list(trainer.teachers.values())

    def run(network: nn.Module, *args: Any) -> Any:
        with watch.part(TEACHERS if any(network is teacher for teacher in teachers) else STUDENTS):
            return function(network, *args)

    return run
