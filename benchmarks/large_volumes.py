"""Measures how long one process takes to make a labeled and an unlabeled batch of patches from large volumes.

Usage: ``python large_volumes.py DATASET [--size 300 512 512] [--patch 128 128 128]``. The dataset has to have one
channel and plans for 3d_fullres. Its plans, with another patch size and batches of 2, are used for two labeled and two
unlabeled random volumes in a temporary folder, about 0.3 GB each at the default size.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nnunetv2_micd.cli.main import errors_in_one_sentence

BATCHES = 20
CASES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="name or number of the dataset")
    parser.add_argument("--size", type=int, nargs=3, default=[300, 512, 512], help="size of a volume in voxels")
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128], help="size of a patch in voxels")
    args = parser.parse_args()
    from nnunetv2_micd.data.folders import find_dataset, preprocessed_folder
    from nnunetv2_micd.data.preprocessed import channel_names

    name = find_dataset(args.dataset)
    source = Path(preprocessed_folder(name))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "preprocessed", name)
        os.environ |= {"nnUNet_preprocessed": str(target.parent), "nnUNet_results": str(Path(folder, "results"))}
        os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_raw": str(Path(folder, "raw"))}
        plans = json.loads((source / "nnUNetPlans.json").read_text())
        plans["configurations"]["3d_fullres"] |= {"patch_size": args.patch, "batch_size": 2}
        dataset_json = json.loads((source / "dataset.json").read_text())
        if len(channel_names(dataset_json)) != 1:
            raise ValueError(f"{name} has several channels; take a dataset with one")
        write_dataset(target, plans, dataset_json, args.size)
        labeled, unlabeled = measure(plans, dataset_json)
    print(f"labeled batch {labeled:.2f} s, unlabeled batch {unlabeled:.2f} s, medians of {BATCHES}")


def write_dataset(target: Path, plans: dict[str, Any], dataset_json: dict[str, Any], size: list[int]) -> None:
    """Write random volumes in the format of nnU-Net's and this package's preprocessing."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_micd.data.preprocessed import FINGERPRINT_FILE, preprocessing_fingerprint, unlabeled_folder

    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    labeled = target / configuration.data_identifier
    unlabeled = Path(unlabeled_folder(str(labeled)))
    identifiers = [f"case_{number}" for number in range(CASES)]
    generator = np.random.default_rng(0)
    chunks = comp_blosc2_params((1, *size), tuple(configuration.patch_size))
    for folder in (labeled, unlabeled):
        folder.mkdir(parents=True)
        for case in identifiers:
            save(generator, size, chunks, folder / (case if folder == labeled else f"unlabeled_{case}"))
    fingerprint = preprocessing_fingerprint(manager, configuration, dataset_json)
    (unlabeled / FINGERPRINT_FILE).write_text(json.dumps({"fingerprint": fingerprint}))
    (target / "splits_final.json").write_text(json.dumps([{"train": identifiers, "val": identifiers}]))
    (target / "dataset.json").write_text(json.dumps(dataset_json))


def save(generator: np.random.Generator, size: list[int], chunks: tuple[Any, Any], path: Path) -> None:
    """Save a volume of noise with a foreground box in the middle."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data = generator.standard_normal((1, *size), dtype=np.float32)
    seg = np.zeros((1, *size), dtype=np.int16)
    seg[(0, *(slice(length // 3, length // 2) for length in size))] = 1
    coordinates = np.argwhere(seg == 1)
    locations = coordinates[generator.choice(len(coordinates), 10_000)]
    properties = {"class_locations": {1: locations}, "shape_after_cropping_and_before_resampling": size}
    data_chunks = dict(zip(("blocks", "chunks"), chunks, strict=True))
    seg_chunks = dict(zip(("blocks_seg", "chunks_seg"), chunks, strict=True))
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(path), **data_chunks, **seg_chunks)


def measure(plans: dict[str, Any], dataset_json: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of a labeled and of an unlabeled batch, made in turns."""
    import torch

    from nnunetv2_micd.methods.micd import nnUNetTrainerMICD

    with redirect_stdout(StringIO()):
        trainer = nnUNetTrainerMICD(
            {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu")
        )
        trainer.initialize()
        loaders = trainer.get_dataloaders()[0], trainer.dataloader_unlabeled
        seconds: tuple[list[float], list[float]] = [], []
        for _ in range(BATCHES):
            for loader, times in zip(loaders, seconds, strict=True):
                begin = time.perf_counter()
                next(loader)
                times.append(time.perf_counter() - begin)
    return median(seconds[0]), median(seconds[1])


if __name__ == "__main__":
    with errors_in_one_sentence():
        main()
