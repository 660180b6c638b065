"""Writes plans with a small network, patch and batch that share nnU-Net's preprocessed data: ``nnUNetPlans_small``."""

import argparse
import json
import math
import os
import sys
from pathlib import Path

from nnunetv2_micd.data.folders import find_dataset

PLANS = "nnUNetPlans_small"
BATCH_SIZE = {"2d": 8, "3d_fullres": 2}
PATCH_SIZE = {"3d_fullres": [32, 40, 32]}  # fits the images of the hippocampus task; 2D keeps nnU-Net's


def write_small_plans(preprocessed: Path, source: str = "nnUNetPlans", batch_size: int | None = None) -> None:
    """Write a copy of plans, with networks a quarter as wide, smaller batches and in 3D a smaller patch.

    Choose it with ``-p``. The copy keeps the data identifiers, so images preprocessed for the plans serve it too.

    Args:
        preprocessed: Folder of the dataset in ``nnUNet_preprocessed``.
        source: Name of the plans; the copy is called the same with ``_small``.
        batch_size: Batch size, by default 8 in 2D and 2 in 3D.

    Raises:
        ValueError: No network can divide its patch as often as it has to, or an argument is wrong.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}")
    plans = json.loads((preprocessed / f"{source}.json").read_text())
    plans["plans_name"] = f"{source}_small"
    path = preprocessed / f"{source}_small.json"
    configurations = {name: content for name, content in plans["configurations"].items() if name in BATCH_SIZE}
    left_out = {}
    for name, configuration in configurations.items():
        if "architecture" not in configuration:
            raise ValueError(f"{source}.json is of an older nnU-Net; plan again: nnUNetv2_plan_experiment")
        configuration["batch_size"] = batch_size or BATCH_SIZE[name]
        patch_size = configuration["patch_size"] = PATCH_SIZE.get(name, configuration["patch_size"])
        network = configuration["architecture"]["arch_kwargs"]
        strides = [math.prod(strides) for strides in zip(*network["strides"], strict=True)]
        if any(size % stride for size, stride in zip(patch_size, strides, strict=True)):
            left_out[name] = (
                f"The network of {name} divides a patch by {strides}, which {patch_size} cannot be divided by; "
                f"change PATCH_SIZE in {__file__}"
            )
            continue
        network["features_per_stage"] = [features // 4 for features in network["features_per_stage"]]
        features = network["features_per_stage"]
        print(f"{name}: features per stage {features}, patch {patch_size}, batch size {configuration['batch_size']}")
    plans["configurations"] = {name: content for name, content in configurations.items() if name not in left_out}
    if not plans["configurations"]:
        raise ValueError("; ".join(left_out.values()))
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}, if you need it")
    path.write_text(json.dumps(plans, indent=4))
    print(path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="number or name, for example 4 or Dataset004_Hippocampus")
    parser.add_argument("--plans", default="nnUNetPlans", help="plans to copy (default: nnUNetPlans)")
    parser.add_argument("--batch-size", type=int, help="default: 8 in 2D, 2 in 3D")
    arguments = parser.parse_args()
    if "nnUNet_preprocessed" not in os.environ:
        sys.exit("Set nnUNet_preprocessed, the folder that nnUNetv2_plan_and_preprocess has written to")
    try:
        folder = Path(os.environ["nnUNet_preprocessed"], find_dataset(arguments.dataset))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if not (folder / f"{arguments.plans}.json").is_file():
        sys.exit(f"There are no {arguments.plans}.json of {arguments.dataset}; run nnUNetv2_plan_and_preprocess first")
    try:
        write_small_plans(folder, arguments.plans, arguments.batch_size)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
