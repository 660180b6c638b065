"""Writes ``nnUNetPlans_small``: plans with a small network, patch and batch that share nnU-Net's preprocessed data.

Usage: ``python small_plans.py DATASET``, for example ``Dataset004_Hippocampus``. The patch size fits the images of that
dataset.
"""

import json
import os
import sys
from pathlib import Path

PLANS = "nnUNetPlans_small"
PATCH_SIZE = [32, 40, 32]


def write_small_plans(preprocessed: Path) -> None:
    """Write a copy of nnU-Net's plans, with a network a quarter as wide and a patch half as large.

    Choose it with ``-p``. The copy keeps the data identifier, so images preprocessed for ``nnUNetPlans`` serve these
    plans too.

    Args:
        preprocessed: Folder of the dataset in ``nnUNet_preprocessed``.
    """
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["plans_name"] = PLANS
    plans["configurations"] = {"3d_fullres": plans["configurations"]["3d_fullres"]}
    configuration = plans["configurations"]["3d_fullres"]
    configuration["batch_size"] = 2
    configuration["patch_size"] = PATCH_SIZE
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [features // 4 for features in network["features_per_stage"]]
    path = preprocessed / f"{PLANS}.json"
    path.write_text(json.dumps(plans, indent=4))
    print(f"{path}: features per stage {network['features_per_stage']}, patch {PATCH_SIZE}, batch size 2")


if __name__ == "__main__":
    if len(sys.argv) != 2 or "nnUNet_preprocessed" not in os.environ:
        sys.exit("Set nnUNet_preprocessed and name a dataset: python small_plans.py Dataset004_Hippocampus")
    if not Path(os.environ["nnUNet_preprocessed"], sys.argv[1], "nnUNetPlans.json").is_file():
        sys.exit(f"There are no nnUNetPlans.json of {sys.argv[1]}; run nnUNetv2_plan_and_preprocess first")
    write_small_plans(Path(os.environ["nnUNet_preprocessed"], sys.argv[1]))
