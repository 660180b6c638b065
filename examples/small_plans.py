"""Writes ``nnUNetPlans_small``: plans with a small network, patch and batch that share nnU-Net's preprocessed data.

Usage: ``python small_plans.py DATASET``, for example ``Dataset004_Hippocampus``.
"""

import json
import os
import sys
from pathlib import Path

PLANS = "nnUNetPlans_small"
BATCH_SIZE = {"2d": 8, "3d_fullres": 2}
PATCH_SIZE = {"3d_fullres": [32, 40, 32]}  # fits the images of the hippocampus task; 2D keeps nnU-Net's


def write_small_plans(preprocessed: Path) -> None:
    """Write a copy of nnU-Net's plans, with networks a quarter as wide, smaller batches and in 3D a smaller patch.

    Choose it with ``-p``. The copy keeps the data identifiers, so images preprocessed for ``nnUNetPlans`` serve these
    plans too.

    Args:
        preprocessed: Folder of the dataset in ``nnUNet_preprocessed``.
    """
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["plans_name"] = PLANS
    path = preprocessed / f"{PLANS}.json"
    print(path)
    configurations = {name: content for name, content in plans["configurations"].items() if name in BATCH_SIZE}
    for name, configuration in configurations.items():
        batch_size = configuration["batch_size"] = BATCH_SIZE[name]
        patch_size = configuration["patch_size"] = PATCH_SIZE.get(name, configuration["patch_size"])
        network = configuration["architecture"]["arch_kwargs"]
        network["features_per_stage"] = [features // 4 for features in network["features_per_stage"]]
        features = network["features_per_stage"]
        print(f"{name}: features per stage {features}, patch {patch_size}, batch size {batch_size}")
    plans["configurations"] = configurations
    path.write_text(json.dumps(plans, indent=4))


if __name__ == "__main__":
    if len(sys.argv) != 2 or "nnUNet_preprocessed" not in os.environ:
        sys.exit("Set nnUNet_preprocessed and name a dataset: python small_plans.py Dataset004_Hippocampus")
    if not Path(os.environ["nnUNet_preprocessed"], sys.argv[1], "nnUNetPlans.json").is_file():
        sys.exit(f"There are no nnUNetPlans.json of {sys.argv[1]}; run nnUNetv2_plan_and_preprocess first")
    write_small_plans(Path(os.environ["nnUNet_preprocessed"], sys.argv[1]))
