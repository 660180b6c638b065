"""Measures trainers on a dataset, or on plans alone.

Times are measured with all trainers in one process, memory with each in a process of its own.
"""

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
import torch._dynamo  # now, as the memory that it takes does not belong to a step
from tqdm import tqdm

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.groups import load_groups
from nnunetv2_micd.data.preprocessed import list_preprocessed
from nnunetv2_micd.data.splits import write_folds_unlike_nnunet
from nnunetv2_micd.profiling.steps import StepProfile, profile_steps, take_steps
from nnunetv2_micd.training.registry import STOCK, find_trainer, training_length
from nnunetv2_micd.utils.devices import check_device
from nnunetv2_micd.utils.files import environment
from nnunetv2_micd.utils.memory import peak_memory

MEMORY_STEPS = 6


@dataclass(frozen=True)
class ProfileSetup:
    """The conditions under which trainers are measured.

    Attributes:
        dataset: Dataset with the plans. For random patches only its plans and its ``dataset.json`` are needed.
        configuration: Name of the configuration, such as ``3d_fullres``.
        device: ``cpu``, ``cuda`` or ``mps``.
        fold: Fold whose patches are loaded; None for random patches.
    """

    dataset: Dataset
    configuration: str
    device: str
    fold: int | str | None = None


@dataclass(frozen=True)
class PeakMemory:
    """The largest memory of a process during some steps.

    Attributes:
        allocated: Bytes of PyTorch's tensors on the GPU; None without a CUDA GPU.
        reserved: Bytes that PyTorch holds on the GPU; None without a CUDA GPU.
        resident: Bytes of main memory that the steps added.
    """

    allocated: int | None
    reserved: int | None
    resident: int


@dataclass(frozen=True)
class Cost:
    """The cost of a trainer.

    Attributes:
        profile: Times of its steps.
        memory: Memory of its steps.
    """

    profile: StepProfile
    memory: PeakMemory


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

    Args:
        dataset: Name or number of the dataset.
        configuration: Name of the configuration, such as ``3d_fullres``.
        plans: Name of the plans.
        trainers: Names of the trainers, as after ``-tr``.
        device: ``cpu``, ``cuda`` or ``mps``.
        fold: Fold whose patches are loaded, a number or ``"all"``.
        rounds: Number of steps of each trainer.

    Raises:
        ValueError: The arguments or the data are wrong.
        OSError: Data is missing.
    """
    if not isinstance(fold, int) and fold != "all":
        raise ValueError(f"A fold is a number or all, not {fold}")
    setup = ProfileSetup(Dataset.find(dataset, plans), configuration, device, fold)
    if setup.dataset.configuration(configuration).previous_stage_name is not None:
        raise ValueError(
            f"{configuration} is the second stage of a cascade, which cannot be profiled; profile 3d_fullres instead, "
            "whose patches and network are about the same"
        )
    return profile(setup, trainers, rounds)


def profile(setup: ProfileSetup, trainers: Sequence[str], rounds: int = 10) -> list[Cost]:
    """Measure trainers, nnU-Net's own first.

    Args:
        setup: Plans, device and patches.
        trainers: Names of the trainers, as after ``-tr``.
        rounds: Number of steps of each trainer.

    Raises:
        ValueError: There is no such trainer or GPU, not enough memory, or ``rounds`` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"The number of rounds must be at least 1, not {rounds}")
    check_device(setup.device)
    names = list(dict.fromkeys([STOCK, *trainers]))
    for name in names:  # before any time is spent, as a trainer may not even be made
        dataset = setup.dataset
        training_length(
            find_trainer(name).trainer_class, dataset.plans.plans, setup.configuration, dataset.dataset_json
        )
    # Our trainers do it themselves, but nnU-Net's own comes first, and might divide groups. No cases are found in
    # nnU-Net's older format, of which it makes the folds.
    cases = list_preprocessed(setup.dataset.labeled_folder(setup.configuration))
    if cases and isinstance(setup.fold, int):
        write_folds_unlike_nnunet(cases, setup.dataset.splits_file, load_groups(setup.dataset.name))
    try:
        with _training_environment(setup.device):
            built = [_build_trainer(setup, name) for name in names]  # first, as one may refuse the data
            memories = [measure_in_process(setup, name) for name in tqdm(names, desc="memory", disable=None)]
            profiles = profile_steps(built, rounds)
    except torch.cuda.OutOfMemoryError:
        raise ValueError(
            "The GPU does not have enough memory for these trainers together; profile fewer at once"
        ) from None
    return [Cost(*both) for both in zip(profiles, memories, strict=True)]


@contextmanager
def _training_environment(device: str) -> Iterator[None]:
    """Compute as in a training, but load in this process, print nothing, and write to a folder that is deleted."""
    torch.backends.cudnn.benchmark = device == "cuda"  # as nnUNetv2_train does
    with (
        tempfile.TemporaryDirectory() as folder,
        environment(nnUNet_results=folder, nnUNet_n_proc_DA="0", nnUNet_wandb_enabled="0"),
        redirect_stdout(StringIO()),
        # Each training compiles for itself; here, many trainers with other batches would reach PyTorch's limits, after
        # which it compiles less well or not at all.
        torch._dynamo.config.patch(automatic_dynamic_shapes=False, cache_size_limit=64),
    ):
        yield


def _build_trainer(setup: ProfileSetup, name: str) -> Any:
    plans = {**setup.dataset.plans.plans, "continue_training": False}
    fold = 0 if setup.fold is None else setup.fold
    device = torch.device(setup.device)
    trainer: Any = find_trainer(name).trainer_class(
        plans, setup.configuration, fold, setup.dataset.dataset_json, device
    )
    trainer.initialize()
    if setup.fold is not None:
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


def measure_in_process(setup: ProfileSetup, name: str) -> PeakMemory:
    """Measure the memory of a trainer in a process of its own, where no other trainer adds to it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_memory, setup, name).result()
        except (torch.cuda.OutOfMemoryError, BrokenProcessPool):
            raise ValueError(f"There is not enough memory for {name}; try plans with a smaller batch size") from None


def measure_memory(setup: ProfileSetup, name: str) -> PeakMemory:
    """Measure the memory that some steps of a trainer add to this process."""
    find_trainer(name)  # imports all trainers, whose memory does not belong to a step
    before = peak_memory()
    with _training_environment(setup.device):
        take_steps(_build_trainer(setup, name), MEMORY_STEPS)
    is_cuda = setup.device == "cuda"
    return PeakMemory(
        allocated=torch.cuda.max_memory_allocated() if is_cuda else None,
        reserved=torch.cuda.max_memory_reserved() if is_cuda else None,
        resident=peak_memory() - before,
    )
