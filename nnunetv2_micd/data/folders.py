"""nnU-Net's folders of a dataset, with an error that says what to do where something is missing."""

import os
import re
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunetv2_micd.data.preprocessed import list_preprocessed


def dataset_id(dataset_name: str) -> str:
    """Return the number in a dataset's name, as commands take it after ``-d``."""
    match = re.match(r"Dataset0*(\d+)_", dataset_name)
    return match[1] if match else dataset_name


def find_dataset(dataset: str | int) -> str:
    """Return the full name of a dataset, such as ``Dataset004_Hippocampus``, of that name or its number.

    Raises:
        ValueError: ``nnUNet_preprocessed`` is not set, or there is no such dataset, or several.
    """
    _root(nnUNet_preprocessed)
    if str(dataset).startswith("Dataset"):
        return str(dataset)
    if not str(dataset).isdecimal():
        raise ValueError(f"{dataset} is neither the number of a dataset nor a name such as Dataset004_Hippocampus")
    names = [
        str(name) for name in find_candidate_datasets(int(dataset)) if name.startswith(f"Dataset{int(dataset):03d}_")
    ]
    if len(names) != 1:
        found = "several: " + ", ".join(names) if names else "none"
        raise ValueError(f"There must be one dataset with the number {dataset} in nnU-Net's folders, found {found}")
    return names[0]


def raw_folder(dataset_name: str) -> str:
    """Return the folder of the raw dataset, in which nothing is looked for yet.

    Raises:
        ValueError: ``nnUNet_raw`` is not set.
    """
    return os.path.join(_root(nnUNet_raw), dataset_name)


def preprocessed_folder(dataset_name: str) -> str:
    """Return the folder of the preprocessed dataset.

    Raises:
        ValueError: ``nnUNet_preprocessed`` is not set.
        FileNotFoundError: the dataset is not preprocessed.
    """
    folder = os.path.join(_root(nnUNet_preprocessed), dataset_name)
    if not os.path.isfile(os.path.join(folder, "dataset.json")):
        raise FileNotFoundError(
            f"{dataset_name} is not planned and preprocessed yet (no dataset.json in {folder}); {_first(dataset_name)}"
        )
    return folder


def labeled_folders(dataset_name: str) -> dict[str, list[str]]:
    """Return nnU-Net's folders of preprocessed labeled cases, each with its sorted cases.

    Raises:
        FileNotFoundError: there are none.
    """
    folder = preprocessed_folder(dataset_name)
    names = sorted(name for name in os.listdir(folder) if not name.endswith("_unlabeled"))
    cases = {name: list_preprocessed(os.path.join(folder, name)) for name in names}
    if not any(cases.values()):
        raise FileNotFoundError(f"{dataset_name} has no preprocessed cases in {folder}; {_first(dataset_name)}")
    return {name: found for name, found in cases.items() if found}


def _root(variable: Any) -> str:
    folder, name = variable.get(), variable.env_var_name
    if not folder:
        raise ValueError(f"The environment variable {name} is not set; it must name nnU-Net's folder of that name")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The environment variable {name} names the folder {folder}, which does not exist")
    return str(folder)


def _first(dataset_name: str) -> str:
    return f"run this first: nnUNetv2_plan_and_preprocess -d {dataset_id(dataset_name)}"
