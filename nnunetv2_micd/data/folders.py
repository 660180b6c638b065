"""Names and folders of datasets, found without reading their plans. Errors say what to do when something is missing.

This needs neither torch nor nnU-Net's plans, so commands that need nothing else start at once.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunetv2_micd.data.preprocessed import list_preprocessed

DEFAULT_PLANS = "nnUNetPlans"
"""Name of the plans of nnU-Net's default planner."""


def find_dataset(dataset: str | int) -> str:
    """Return the full name of a dataset, such as ``Dataset004_Hippocampus``.

    Args:
        dataset: Full name or number.

    Raises:
        ValueError: ``nnUNet_preprocessed`` is not set, or the number does not belong to exactly one dataset.
        FileNotFoundError: ``nnUNet_preprocessed`` does not exist.
    """
    _root(nnUNet_preprocessed)
    if re.fullmatch(r"Dataset[0-9]+_[^/\\]+", str(dataset)):
        return str(dataset)
    if not re.fullmatch(r"[0-9]{1,9}", str(dataset)):
        raise ValueError(f"{dataset} is neither the number of a dataset nor a name such as Dataset004_Hippocampus")
    number = int(dataset)
    # nnU-Net looks for names that begin with Dataset004, which Dataset0041_Other does, too.
    names = [str(name) for name in find_candidate_datasets(number) if name.startswith(f"Dataset{number:03d}_")]
    if not names:
        raise ValueError(
            f"There is no dataset with the number {dataset} in nnU-Net's folders; to make it, see: "
            "nnUNetv2_micd dataset -h"
        )
    if len(names) > 1:
        raise ValueError(
            f"Several datasets have the number {dataset}: {', '.join(names)}; name one, or remove or rename the others"
        )
    return names[0]


def dataset_id(dataset_name: str) -> str:
    """Return the number in a dataset's name, as commands take it after ``-d``."""
    match = re.match(r"Dataset0*(\d+)_", dataset_name)
    return match[1] if match else dataset_name


def raw_folder(dataset_name: str) -> Path:
    """Return the folder of the raw dataset, which need not exist.

    Raises:
        ValueError: ``nnUNet_raw`` is not set.
        FileNotFoundError: ``nnUNet_raw`` does not exist.
    """
    return _root(nnUNet_raw) / dataset_name


def preprocessed_folder(dataset_name: str) -> Path:
    """Return the folder of the preprocessed dataset.

    Raises:
        ValueError: ``nnUNet_preprocessed`` is not set.
        FileNotFoundError: The dataset is not preprocessed.
    """
    folder = _root(nnUNet_preprocessed) / dataset_name
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{dataset_name} is not planned and preprocessed yet (no dataset.json in {folder}); "
            f"{plan_first(dataset_name)}"
        )
    return folder


def labeled_folders(dataset_name: str) -> dict[str, list[str]]:
    """Return the names of nnU-Net's folders of preprocessed labeled cases, each with its sorted cases.

    Raises:
        FileNotFoundError: There are none.
    """
    folder = preprocessed_folder(dataset_name)
    names = sorted(name for name in os.listdir(folder) if not name.endswith("_unlabeled"))
    cases = {name: list_preprocessed(folder / name) for name in names}
    if not any(cases.values()):
        plans = likely_plans(dataset_name)
        remedy = f"run this first: nnUNetv2_preprocess -d {dataset_id(dataset_name)} -plans_name {plans}"
        if not (folder / f"{plans}.json").is_file():
            remedy = plan_first(dataset_name)
        raise FileNotFoundError(f"{dataset_name} has no preprocessed cases in {folder}; {remedy}")
    return {name: identifiers for name, identifiers in cases.items() if identifiers}


def likely_plans(dataset_name: str) -> str:
    """Return the plans for commands that are printed: nnU-Net's default, unless there are only others."""
    names = sorted(file.stem for file in (_root(nnUNet_preprocessed) / dataset_name).glob("*Plans*.json"))
    return DEFAULT_PLANS if DEFAULT_PLANS in names or not names else names[0]


def plan_first(dataset_name: str) -> str:
    """Return the advice to plan and preprocess a dataset, for the end of a message."""
    return f"run this first: nnUNetv2_plan_and_preprocess -d {dataset_id(dataset_name)}"


def _root(variable: Any) -> Path:
    """Return nnU-Net's folder that one of its environment variables names."""
    folder, name = variable.get(), variable.env_var_name
    if not folder:
        raise ValueError(f"The environment variable {name} is not set; it must name nnU-Net's folder of that name")
    if not os.path.isdir(folder):
        command = f"mkdir -p {shlex.quote(str(folder))}"
        raise FileNotFoundError(
            f"The environment variable {name} names the folder {folder}, which does not exist; make it: {command}"
        )
    return Path(folder)
