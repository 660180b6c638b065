"""A long training takes no more memory than a short one, and many unlabeled images no more than a few.

``MICD_TEST_STEPS=2000`` trains longer than the default; what was measured is printed, see it with ``pytest -s``.
"""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import TinyDataset, make_trainer, relabel, write_image

from nnunetv2_micd.methods.bcp import nnUNetTrainerBCP
from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.ersr import nnUNetTrainerERSR
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.pseudo_labels.trainer import nnUNetTrainerPseudoLabels
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.methods.spcl import nnUNetTrainerSPCL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="only Linux says what a process occupies"),
]

STEPS = int(os.environ.get("MICD_TEST_STEPS", 1000))
EPOCHS = 10
SAMPLED = STEPS // 50
EARLY, LATE = slice(28, 33), slice(40, 45)
"""Samples of the same stage of a training: none of the methods changes its losses or loaders between them."""
NOISE = 2
"""MiB; up to 1 was seen, also in 2000 steps. A training that keeps its unlabeled patches grows by 3.5."""

MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
PROGRAM = re.compile(r"\.so(\.|$)|/python[0-9.]*$")

METHODS: dict[str, Any] = {
    method.__name__: method
    for method in (
        nnUNetTrainerSelfTraining,
        nnUNetTrainerMICD,
        nnUNetTrainerBCP,
        nnUNetTrainerMeanTeacher,
        nnUNetTrainerPseudoLabels,
        nnUNetTrainerC3S3,
        nnUNetTrainerSPCL,
        nnUNetTrainerERSR,
        nnUNetTrainerMandN,
    )
}
"""One of each family."""


def occupied_memory() -> float:
    """Return what this process and its loaders' workers occupy, in MiB, but for programs and libraries.

    Pages of these are dropped and read again whenever other programs need memory. Not the proportional share (Pss),
    which changes with what other programs do with the same files.
    """
    processes = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    kilobytes, counts = 0, False
    for line in (line for process in processes for line in Path(f"/proc/{process}/smaps").read_text().splitlines()):
        if MAPPING.match(line):
            counts = not PROGRAM.search(line)
        elif counts and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes / 1024


def train(dataset: TinyDataset, method: str) -> list[float]:
    """Train as nnU-Net does and return the memory at fifty steps."""
    torch.set_num_threads(1)
    trainer = make_trainer(METHODS[method], dataset, "2d" if method == "nnUNetTrainerERSR" else "3d_fullres")
    trainer.num_epochs, trainer.num_iterations_per_epoch = EPOCHS, STEPS // EPOCHS
    step, memory = trainer.train_step, []

    def measured_step(batch: dict) -> dict:
        result = step(batch)
        if trainer.iteration % SAMPLED == 0:
            memory.append(occupied_memory())
        return result

    trainer.train_step = measured_step
    trainer.run_training()
    return memory


def memory_of_training(dataset: TinyDataset, method: str) -> list[float]:
    """Train in another program, so that nothing else has happened to its memory, and workers start as usual."""
    run = subprocess.run(
        [sys.executable, __file__, str(dataset.root), method],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # where it finds the helpers
    )
    memory = json.loads(run.stdout.splitlines()[-1])
    print(f"{method}, MiB at every {SAMPLED}th of {STEPS} steps: {[round(value) for value in memory]}")
    return memory


def make_steps_cheaper(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    for name, patch_size in (("3d_fullres", [8, 16, 16]), ("2d", [16, 16])):
        configuration = plans["configurations"][name]
        configuration["patch_size"] = patch_size
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 4]
    dataset.plans_file.write_text(json.dumps(plans))


def keep_one_object(dataset: TinyDataset) -> None:
    for path in (dataset.raw / "labelsTr").iterdir():
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        write_image(path, (labels == 1).astype(np.uint8))
    relabel(dataset, {"labels": {"background": 0, "first": 1}})


def multiply_unlabeled(dataset: TinyDataset, number: int) -> None:
    """Copy the preprocessed images, not link them: pages of one file would be shared."""
    files = sorted(dataset.unlabeled_folder().glob("image_*"))
    for copy in range(1, number // len(dataset.unlabeled)):
        for file in files:
            shutil.copy(file, file.with_name(f"copy_{copy}_{file.name}"))


@pytest.fixture
def cheap(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    make_steps_cheaper(dataset)
    return dataset


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_over_the_steps(method: str, cheap: TinyDataset) -> None:
    if method == "nnUNetTrainerERSR":
        keep_one_object(cheap)
    memory = memory_of_training(cheap, method)
    assert np.mean(memory[LATE]) - np.mean(memory[EARLY]) < NOISE, memory


def test_memory_does_not_grow_with_the_images(cheap: TinyDataset) -> None:
    few = memory_of_training(cheap, "nnUNetTrainerMICD")
    multiply_unlabeled(cheap, 400)
    many = memory_of_training(cheap, "nnUNetTrainerMICD")
    assert np.mean(many[LATE]) - np.mean(few[LATE]) < NOISE, (few, many)


if __name__ == "__main__":
    print(json.dumps(train(TinyDataset(Path(sys.argv[1])), sys.argv[2])))
