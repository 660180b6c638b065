"""What a training step costs: its parts, and the least that its passes take, of several trainers side by side.

All trainers live in one process and take their steps in turns, so a machine that is busy at times is so for all of
them. Times are medians.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import nnunetv2_micd.training.trainer as base
from nnunetv2_micd.training.networks import forward_with_features
from nnunetv2_micd.training.passes import Pass
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
LATE = 0.9
"""The share of the training that lies behind the measured steps."""

WARM_UP = 3
"""Rounds before the measured ones: compilation, cuDNN's choice of algorithms, the first allocation of memory."""


@dataclass(frozen=True)
class StepProfile:
    """What a step of a trainer costs.

    Attributes:
        trainer: its name.
        data: seconds in which one process makes the labeled and the unlabeled batch of a step; 0 without data.
        step: seconds of a step, its batches being there already.
        parts: seconds of each of :data:`PARTS` in it.
        floor: seconds of the passes that the method's definition asks for, each by itself.
        passes: these.
    """

    trainer: str
    data: tuple[float, float]
    step: float
    parts: Mapping[str, float]
    floor: float
    passes: Sequence[Pass]


class Stopwatch:
    """Divides time into parts; what lies in an inner part does not count for the outer one.

    On CUDA it is the GPU's time, between events in its queue, for which nothing waits before the end.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[tuple[str | None, Any]] = []
        self._active: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside for a part."""
        self._active.append(name)
        self._mark()
        try:
            yield
        finally:
            self._active.pop()
            self._mark()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a function that counts the time inside for a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def _mark(self) -> None:
        if self._device.type == "cuda":
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            if self._device.type == "mps":
                torch.mps.synchronize()
            now = time.perf_counter()
        self._marks.append((self._active[-1] if self._active else None, now))

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds: dict[str, float] = {}
        for (name, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                duration = begin.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - begin
                seconds[name] = seconds.get(name, 0) + duration
        self._marks.clear()
        return seconds


def profile_steps(trainers: Sequence[Any], rounds: int) -> list[StepProfile]:
    """Measure the steps of trainers, and the passes that these have to consist of.

    Args:
        trainers: initialized, of the same plans and on the same device. Those without loaders get random patches.
        rounds: how often each takes a step, and each of its passes is run by itself.
    """
    subjects = [_Subject(trainer) for trainer in trainers]
    for round_ in range(WARM_UP + rounds):
        for subject in subjects:
            subject.run(is_measured=round_ >= WARM_UP)
    return [subject.profile() for subject in subjects]


class _Subject:
    """A trainer that is measured."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.watch = Stopwatch(trainer.device)
        self.passes = [Pass("a", "labeled")]
        self.steps: list[dict[str, float]] = []
        self.floors: list[float] = []
        batch = make_batch(trainer)
        if trainer.dataloader_train is None:
            trainer.dataloader_train = repeat(batch)
        if isinstance(trainer, SemiSupervisedTrainer):
            self.passes = trainer.passes()
            if trainer.dataloader_unlabeled is None and trainer.config.ramp_peak > 0:
                trainer.dataloader_unlabeled = repeat(_resize(batch, trainer.unlabeled_batch_size))
            # late, where no method is in a phase before its consistency losses
            trainer.iteration = int(LATE * trainer.num_epochs * trainer.num_iterations_per_epoch)
        for name, network in _networks(trainer).items():
            network.train(name.startswith("student"))

    def run(self, is_measured: bool) -> None:
        steps = self.trainer.config.consistency_every if isinstance(self.trainer, SemiSupervisedTrainer) else 1
        with _instrumented(self.trainer, self.watch):
            for _ in range(steps):
                with self.watch.part(LABELED_DATA):
                    batch = next(self.trainer.dataloader_train)
                with self.watch.part(REST):
                    self.trainer.train_step(batch)
        parts = {name: seconds / steps for name, seconds in self.watch.take().items()}
        floor = sum(each.times * self._run_alone(each, batch["data"]) for each in self.passes)
        self.trainer.optimizer.zero_grad(set_to_none=True)  # their memory is for the other trainers
        if is_measured:
            self.steps.append(parts)
            self.floors.append(floor)

    def _run_alone(self, which: Pass, images: Tensor) -> float:
        trainer = self.trainer
        is_supervised = which.images == "labeled" and which.gradient
        if is_supervised or not isinstance(trainer, SemiSupervisedTrainer):
            network = _networks(trainer)[f"student {which.network}"]
        else:
            network = (trainer.teachers if which.teacher else trainer.students)[which.network]
        if which.images == "unlabeled":
            images = _resize({"data": images}, trainer.unlabeled_batch_size)["data"]
        images = images.to(trainer.device)
        with self.watch.part("alone"):
            with nullcontext() if which.gradient else torch.no_grad(), _autocast(trainer):
                if is_supervised:
                    output = network(images)
                    outputs = output if isinstance(output, list) else [output]
                else:
                    outputs = [getattr(trainer, "forward_with_features", forward_with_features)(network, images)[0]]
            if which.gradient:
                torch.autograd.backward(outputs, [torch.zeros_like(each) for each in outputs])
        return self.watch.take()["alone"]

    def profile(self) -> StepProfile:
        labeled, unlabeled, *parts = (
            median(step.get(part, 0) for step in self.steps) for part in (LABELED_DATA, UNLABELED_DATA, *PARTS)
        )
        return StepProfile(
            type(self.trainer).__name__,
            (labeled, unlabeled),
            median(sum(step.get(part, 0) for part in PARTS) for step in self.steps),
            dict(zip(PARTS, parts, strict=True)),
            median(self.floors),
            self.passes,
        )


def make_batch(trainer: Any) -> dict[str, Any]:
    """Return a batch of random patches as nnU-Net's loader makes them, without any data.

    Args:
        trainer: initialized.

    Returns:
        ``data`` ``(B, channels, *patch)`` and ``target``, a list with deep supervision.
    """
    generator = torch.Generator().manual_seed(0)
    size, patch = trainer.batch_size, trainer.configuration_manager.patch_size
    manager = trainer.label_manager
    data = torch.randn(size, trainer.num_input_channels, *patch, generator=generator)
    if manager.has_regions:
        channels, largest = len(manager.foreground_regions) + manager.has_ignore_label, 2
    else:
        channels, largest = 1, len(manager.all_labels)
    scales = trainer._get_deep_supervision_scales() or [[1] * len(patch)]
    shapes = [[round(length * factor) for length, factor in zip(patch, scale, strict=True)] for scale in scales]
    targets = [
        torch.randint(0, largest, (size, channels, *shape), generator=generator, dtype=torch.int16) for shape in shapes
    ]
    return {"data": data, "target": targets if trainer.enable_deep_supervision else targets[0]}


def _resize(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """Return a batch of another size, of the same patches, once or several times."""
    chosen = torch.arange(size) % len(batch["data"])
    return {
        name: [each[chosen] for each in value] if isinstance(value, list) else value[chosen]
        for name, value in batch.items()
    }


def _networks(trainer: Any) -> dict[str, nn.Module]:
    """Return what a step runs: students and teachers by name."""
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
    """Let a stopwatch see the parts of a trainer's steps."""
    with ExitStack() as stack:

        def patch(owner: Any, name: str, part: str) -> None:
            stack.enter_context(mock.patch.object(owner, name, watch.timed(getattr(owner, name), part)))

        for name, network in _networks(trainer).items():
            compiled = getattr(network, "_compiled_call_impl", None) is not None
            part = STUDENTS if name.startswith("student") else TEACHERS
            patch(network, "_compiled_call_impl" if compiled else "forward", part)
        if isinstance(trainer, SemiSupervisedTrainer):
            patch(trainer, "next_unlabeled", UNLABELED_DATA)
        for name in [each for each in vars(trainer) if each.startswith("forward_with")]:
            stack.enter_context(mock.patch.object(trainer, name, _timed_pass(getattr(trainer, name), trainer, watch)))
        patch(torch.autograd, "backward", BACKWARD)  # Tensor.backward calls it as well
        for name in ("loss", "masked_loss"):  # the latter is BCP's
            if hasattr(trainer, name):
                patch(trainer, name, SUPERVISED_LOSS)
        patch(trainer.optimizer, "step", OPTIMIZER)
        patch(trainer.optimizer, "zero_grad", OPTIMIZER)
        patch(torch.nn.utils, "clip_grad_norm_", OPTIMIZER)
        patch(base, "update_ema", EMA)
        yield


def _timed_pass(function: Callable[..., Any], trainer: Any, watch: Stopwatch) -> Callable[..., Any]:
    teachers = list(trainer.teachers.values())

    def run(network: nn.Module, *args: Any) -> Any:
        with watch.part(TEACHERS if any(network is teacher for teacher in teachers) else STUDENTS):
            return function(network, *args)

    return run
