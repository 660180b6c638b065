"""A long training takes no more memory than a short one, and many unlabeled images no more than a few."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.methods.micd import nnUNetTrainerMICD

STEPS = 500
SAMPLED = 20
NOISE = 4
"""MiB; up to 1 was seen. A training that keeps its unlabeled patches grows by 7, a loader that keeps its images by 7
to 36, and 400 of them then cost 18 more than four."""


def resident_memory() -> float:
    """Return what this process and its loaders' workers occupy, in MiB.

    Not the proportional share (Pss), which changes with what other programs do with the same libraries.
    """
    processes = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    lines = [line for pid in processes for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def train(dataset: TinyDataset) -> list[float]:
    """Return the memory at each twentieth step."""
    torch.set_num_threads(1)
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert len(multiprocessing.active_children()) == 3  # labeled, validation, unlabeled
    memory = []
    for step in range(STEPS):
        trainer.train_step(next(trainer.dataloader_train))
        if step % SAMPLED == 0:
            memory.append(resident_memory())
    for loader in (trainer.dataloader_train, trainer.dataloader_val, trainer.dataloader_unlabeled):
        loader._finish()
    return memory


def memory_of_training(dataset: TinyDataset) -> list[float]:
    """Train in another program, so that nothing else has happened to its memory, and workers start as usual."""
    run = subprocess.run([sys.executable, __file__, str(dataset.root)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def make_steps_cheaper(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [8, 16, 16]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 4]
    dataset.plans_file.write_text(json.dumps(plans))


def multiply_unlabeled(dataset: TinyDataset, number: int) -> None:
    """Copy the preprocessed images, not link them: pages of one file would be shared."""
    files = sorted(dataset.unlabeled_folder().glob("image_*"))
    for copy in range(1, number // len(dataset.unlabeled)):
        for file in files:
            shutil.copy(file, file.with_name(f"copy_{copy}_{file.name}"))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="only Linux says what a process occupies")
def test_memory_does_not_grow(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    make_steps_cheaper(dataset)
    few = memory_of_training(dataset)
    multiply_unlabeled(dataset, 400)
    many = memory_of_training(dataset)
    early, late = slice(100 // SAMPLED, 200 // SAMPLED), slice(-100 // SAMPLED, None)
    for memory in (few, many):
        assert np.mean(memory[late]) - np.mean(memory[early]) < NOISE, memory
    assert np.mean(many[late]) - np.mean(few[late]) < NOISE, (few, many)


if __name__ == "__main__":
    print(json.dumps(train(TinyDataset(Path(sys.argv[1])))))
