"""Write plans of a small network and batch, ``nnUNetPlans_small``, beside those of nnU-Net, whose data they share.

Usage: ``python small_plans.py DATASET``, such as ``Dataset004_Hippocampus``.
"""

import json
import os
import sys
from pathlib import Path

folder = Path(os.environ["nnUNet_preprocessed"], sys.argv[1])
plans = json.loads((folder / "nnUNetPlans.json").read_text())
plans["plans_name"] = "nnUNetPlans_small"
configuration = plans["configurations"]["3d_fullres"]
configuration["batch_size"] = 2
configuration["patch_size"] = [32, 40, 32]
configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 16, 32, 64]
(folder / "nnUNetPlans_small.json").write_text(json.dumps(plans, indent=4))
