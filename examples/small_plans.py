"""Writes ``nnUNetPlans_small``: plans with a small network, patch and batch that share nnU-Net's preprocessed data.

Usage: ``python small_plans.py DATASET [CONFIGURATION]``, for example ``Dataset004_Hippocampus``, whose images the patch
of ``3d_fullres`` fits; ``2d`` keeps nnU-Net's patch.
"""

import argparse
import json
import os
import sys
from pathlib import Path

PLANS = "nnUNetPlans_small"
BATCH_SIZE = {"3d_fullres": 2, "2d": 8}
PATCH_SIZE = {"3d_fullres": [32, 40, 32]}


def write_small_plans(preprocessed: Path, name: str = "3d_fullres") -> None:
    """Write a copy of nnU-Net's plans, with a network a quarter as wide, a smaller batch and in 3D a smaller patch.

    Choose it with ``-p``. The copy keeps the data identifier, so images preprocessed for ``nnUNetPlans`` serve these
    plans too.

    Args:
        preprocessed: Folder of the dataset in ``nnUNet_preprocessed``.
        name: The configuration, ``3d_fullres`` or ``2d``.
    """
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["plans_name"] = PLANS
    plans["configurations"] = {name: plans["configurations"][name]}
    configuration = plans["configurations"][name]
    batch_size = configuration["batch_size"] = BATCH_SIZE[name]
    patch_size = configuration["patch_size"] = PATCH_SIZE.get(name, configuration["patch_size"])
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [features // 4 for features in network["features_per_stage"]]
    path = preprocessed / f"{PLANS}.json"
    path.write_text(json.dumps(plans, indent=4))
    print(f"{path}: features per stage {network['features_per_stage']}, patch {patch_size}, batch size {batch_size}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=write_small_plans.__doc__.partition("\n")[0])
    parser.add_argument("dataset", help="such as Dataset004_Hippocampus")
    parser.add_argument("configuration", nargs="?", default="3d_fullres", choices=BATCH_SIZE)
    arguments = parser.parse_args()
    if "nnUNet_preprocessed" not in os.environ:
        sys.exit("Set nnUNet_preprocessed, nnU-Net's folder of that name")
    folder = Path(os.environ["nnUNet_preprocessed"], arguments.dataset)
    if not (folder / "nnUNetPlans.json").is_file():
        sys.exit(f"There are no nnUNetPlans.json of {arguments.dataset}; run nnUNetv2_plan_and_preprocess first")
    write_small_plans(folder, arguments.configuration)
