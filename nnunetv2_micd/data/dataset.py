"""Where nnU-Net keeps a dataset, with an error that says what to do where something is missing."""

import json
import os
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.data.unlabeled import channel_names, dataset_id, list_preprocessed, preprocessing_fingerprint


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


def load_plans(dataset_name: str, plans_name: str) -> tuple[PlansManager, dict[str, Any]]:
    """Return the plans and the content of ``dataset.json`` that a training would use.

    Raises:
        FileNotFoundError: there are no such plans.
        ValueError: one of the two files is not such as nnU-Net writes it.
    """
    folder = Path(preprocessed_folder(dataset_name))
    if not (folder / f"{plans_name}.json").is_file():
        raise FileNotFoundError(f"There are no plans {plans_name}.json in {folder}; {_first(dataset_name)}")
    plans = PlansManager(_load_object(folder / f"{plans_name}.json"))
    dataset_json = _load_object(folder / "dataset.json")
    try:
        _check_plans(plans, dataset_json)
    except Exception as error:  # nnU-Net does not check its files, so what is wrong with one shows in any way
        raise ValueError(
            f"{plans_name}.json or dataset.json in {folder} is not such as nnU-Net writes it ({error!r}); correct it, "
            f"or plan the dataset again: nnUNetv2_plan_and_preprocess -d {dataset_id(dataset_name)}"
        ) from None
    return plans, dataset_json


def _load_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); correct it or restore it") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds no JSON object, but begins with {str(content)[:20]!r}; correct it or restore it"
        )
    return content


def _check_plans(plans: PlansManager, dataset_json: dict[str, Any]) -> None:
    """Read what preprocessing, the doctor and a training will read."""
    for key, kind in (("labels", dict), ("file_ending", str)):
        if not isinstance(dataset_json[key], kind):
            raise TypeError(f"{key} is {dataset_json[key]!r}")
    if not channel_names(dataset_json):
        raise ValueError("no channel_names")
    plans.get_label_manager(dataset_json)
    _ = plans.plans_name, plans.dataset_name, plans.image_reader_writer_class
    for name in plans.available_configurations:
        each = plans.get_configuration(name)
        preprocessing_fingerprint(plans, each, dataset_json)
        _ = each.data_identifier, each.spacing, each.median_image_size_in_voxels
        _ = each.patch_size, each.batch_size, each.network_arch_init_kwargs


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
