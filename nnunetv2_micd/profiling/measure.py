"""Trainers of a dataset, or of plans alone, measured side by side: time in one process, memory in one for each."""

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from tqdm import tqdm

from nnunetv2_micd.benchmark.records import STOCK
from nnunetv2_micd.benchmark.run import peak_memory
from nnunetv2_micd.benchmark.trainers import OWN_LENGTH, find_trainer
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.profiling.steps import StepProfile, profile_steps
from nnunetv2_micd.utils.files import environment

MEMORY_STEPS = 3


@dataclass(frozen=True)
class Setting:
    """What is trained, and where.

    Attributes:
        plans: content of the plans file.
        configuration: such as ``3d_fullres``.
        dataset_json: content of ``dataset.json``.
        device: ``cpu``, ``cuda`` or ``mps``.
        fold: whose patches are loaded; None for random ones, for which no data is needed.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    device: str
    fold: int | str | None = None


@dataclass(frozen=True)
class Memory:
    """The largest amounts in bytes: of PyTorch's tensors on the GPU, of what it holds there, and of main memory."""

    allocated: int | None
    reserved: int | None
    resident: int


@dataclass(frozen=True)
class Cost:
    """A trainer's profile and memory."""

    profile: StepProfile
    memory: Memory


def profile_dataset(
    dataset: str,
    configuration: str,
    plans: str = "nnUNetPlans",
    trainers: Sequence[str] = ("nnUNetTrainerMICD",),
    device: str = "cuda",
    fold: int | str = 0,
    rounds: int = 10,
) -> list[Cost]:
    """Measure trainers, nnU-Net's own first, on the patches of a preprocessed dataset.

    Raises:
        ValueError: something is wrong with the arguments or the data.
        OSError: something is missing.
    """
    if not isinstance(fold, int) and fold != "all":
        raise ValueError(f"A fold is a number or all, not {fold}")
    found = Dataset.find(dataset, plans)
    found.configuration(configuration)
    return profile(Setting(found.plans.plans, configuration, found.dataset_json, device, fold), trainers, rounds)


def profile(setting: Setting, trainers: Sequence[str], rounds: int = 10) -> list[Cost]:
    """Measure trainers, nnU-Net's own first.

    Args:
        setting: the plans and the device.
        trainers: names as after ``-tr``.
        rounds: how often each takes a step.

    Raises:
        ValueError: there is no such trainer or GPU, or ``rounds`` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"The number of rounds must be at least 1, not {rounds}")
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no CUDA GPU; add -device cpu, or -device mps on a Mac")
    names = list(dict.fromkeys([STOCK, *trainers]))
    for name in names:
        find_trainer(name, OWN_LENGTH, setting.plans, setting.configuration, setting.dataset_json)
    memories = [_measure_in_process(setting, name) for name in tqdm(names, desc="memory", disable=None)]
    try:
        with _building(setting.device):
            profiles = profile_steps([_build(setting, name) for name in names], rounds)
    except torch.cuda.OutOfMemoryError:
        raise ValueError("The GPU has not enough memory for these trainers together; profile fewer at once") from None
    return [Cost(*both) for both in zip(profiles, memories, strict=True)]


@contextmanager
def _building(device: str) -> Iterator[None]:
    """Keep nnU-Net's trainers from leaving folders and printing; let them load here, and compute as in training."""
    torch.backends.cudnn.benchmark = device == "cuda"  # as nnUNetv2_train does
    with (
        tempfile.TemporaryDirectory() as folder,
        environment(nnUNet_results=folder, nnUNet_n_proc_DA="0", nnUNet_wandb_enabled="0"),
        redirect_stdout(StringIO()),
    ):
        yield


def _build(setting: Setting, name: str) -> Any:
    trainer_class = recursive_find_trainer_class_by_name(name)
    plans = {**setting.plans, "continue_training": False}
    fold = 0 if setting.fold is None else setting.fold
    trainer = trainer_class(plans, setting.configuration, fold, setting.dataset_json, torch.device(setting.device))
    trainer.initialize()
    if setting.fold is not None:
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


def _measure_in_process(setting: Setting, name: str) -> Memory:
    # a process for each: the memory of one could not be told from that of the others
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure_memory, setting, name).result()
        except (torch.cuda.OutOfMemoryError, BrokenProcessPool):
            raise ValueError(f"There is not enough memory for {name}; try plans with a smaller batch size") from None


def _measure_memory(setting: Setting, name: str) -> Memory:
    with redirect_stdout(StringIO()):
        recursive_find_trainer_class_by_name(name)  # imports all trainers, which is no memory of a step
    before = peak_memory()
    with _building(setting.device):
        trainer = _build(setting, name)
        profile_steps([trainer], MEMORY_STEPS)
    is_cuda = setting.device == "cuda"
    return Memory(
        torch.cuda.max_memory_allocated() if is_cuda else None,
        torch.cuda.max_memory_reserved() if is_cuda else None,
        peak_memory() - before,
    )
