"""Whether the labeled cases of a fold are there, before time is spent on a training."""

import os
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_micd.data.preprocessed import find_damaged
from nnunetv2_micd.utils.files import shorten


def check_labeled_cases(trainer: Any, cases: Any, key: str, meaning: str) -> None:
    """Check the training or validation cases of a trainer's fold; of each, the header is read.

    Args:
        trainer: whose fold it is.
        cases: nnU-Net's dataset of them.
        key: of the fold's entry in ``splits_final.json``.
        meaning: of a case, for the message.

    Raises:
        ValueError: there are none, or some are missing or damaged. The message says what to do.
    """
    if not cases.identifiers:
        splits_file = os.path.join(trainer.preprocessed_dataset_folder_base, "splits_final.json")
        raise ValueError(f"Fold {trainer.fold} has no {meaning}: add some to its '{key}' entry in {splits_file}.")
    folder, plans = trainer.preprocessed_dataset_folder, trainer.plans_manager
    # nnU-Net's older formats have no header to look at
    blosc2 = isinstance(cases, nnUNetDatasetBlosc2)
    damaged = find_damaged(folder, cases.identifiers, trainer.dataset_json) if blosc2 else []
    ends = ("_seg.b2nd", ".pkl") if blosc2 else ()
    complete = [all(os.path.isfile(os.path.join(folder, case + end)) for end in ends) for case in cases.identifiers]
    damaged += [case for case, is_there in zip(cases.identifiers, complete, strict=True) if not is_there]
    if damaged:
        raise ValueError(
            f"Preprocessed labeled cases in {folder} are missing or damaged ({shorten(damaged)}); correct the split or "
            f"run: nnUNetv2_preprocess -d {plans.dataset_name} -plans_name {plans.plans_name} "
            f"-c {trainer.configuration_name}"
        )
