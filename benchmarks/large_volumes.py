"""Make a preprocessed dataset of large random volumes, for the time that the loaders take with them.

Usage: ``python large_volumes.py DATASET [--size 300 512 512] [--patch 128 128 128]``. The plans are those of a dataset
that is planned already; ``Dataset998_LargeVolumes`` is made beside it, of two labeled and two unlabeled volumes, about
0.3 GB each at the default size.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.dataset_folders import find_dataset
from nnunetv2_micd.unlabeled_cases import FINGERPRINT_FILE, channel_names, preprocessing_fingerprint, unlabeled_folder

NAME = "Dataset998_LargeVolumes"
LABELED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="name or number, for its plans of 3d_fullres")
    parser.add_argument("--size", type=int, nargs=3, default=[300, 512, 512], help="of a volume")
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128], help="of a patch")
    args = parser.parse_args()
    base = Path(os.environ["nnUNet_preprocessed"])
    source, target = base / find_dataset(args.dataset), base / NAME
    if target.exists():
        raise SystemExit(f"{target} exists; delete it to make it anew")
    plans = json.loads((source / "nnUNetPlans.json").read_text())
    plans["dataset_name"] = NAME
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": args.patch, "batch_size": 2}
    labeled = target / configuration["data_identifier"]
    unlabeled = Path(unlabeled_folder(str(labeled)))
    for folder in (labeled, unlabeled):
        folder.mkdir(parents=True)
    (target / "nnUNetPlans.json").write_text(json.dumps(plans))
    dataset_json = json.loads((source / "dataset.json").read_text())
    if len(channel_names(dataset_json)) != 1:
        raise SystemExit(f"{args.dataset} has several channels; take a dataset with one")
    (target / "dataset.json").write_text(json.dumps(dataset_json | {"numTraining": LABELED}))
    identifiers = [f"case_{number}" for number in range(LABELED)]
    (target / "splits_final.json").write_text(json.dumps([{"train": identifiers, "val": identifiers}]))
    generator = np.random.default_rng(0)
    chunks = comp_blosc2_params((1, *args.size), tuple(args.patch))
    for case in identifiers:
        save(generator, args.size, chunks, labeled / case)
    for number in range(LABELED):
        save(generator, args.size, chunks, unlabeled / f"unlabeled_{number}")
    manager = PlansManager(plans)
    fingerprint = preprocessing_fingerprint(manager, manager.get_configuration("3d_fullres"), dataset_json)
    (unlabeled / FINGERPRINT_FILE).write_text(json.dumps({"fingerprint": fingerprint}))
    print("Measure with: nnUNetv2_micd profile -d 998 -c 3d_fullres")


def save(generator: np.random.Generator, size: list[int], chunks: tuple, path: Path) -> None:
    """Save noise with a foreground box in the middle, as nnU-Net saves a preprocessed case."""
    data = generator.standard_normal((1, *size), dtype=np.float32)
    seg = np.zeros((1, *size), dtype=np.int16)
    seg[(0, *(slice(length // 3, length // 2) for length in size))] = 1
    coordinates = np.argwhere(seg == 1)
    locations = coordinates[generator.choice(len(coordinates), 10_000)]
    properties = {"class_locations": {1: locations}, "shape_after_cropping_and_before_resampling": size}
    data_chunks = dict(zip(("blocks", "chunks"), chunks, strict=True))
    seg_chunks = dict(zip(("blocks_seg", "chunks_seg"), chunks, strict=True))
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(path), **data_chunks, **seg_chunks)


if __name__ == "__main__":
    main()
