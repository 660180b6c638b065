"""A planned dataset: its name, plans, ``dataset.json``, folders and splits, found once and handed on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_micd.data.folders import dataset_id, find_dataset, preprocessed_folder, raw_folder
from nnunetv2_micd.data.preprocessed import channel_names, preprocessing_fingerprint, unlabeled_folder
from nnunetv2_micd.data.splits import Entry, load_splits

SPLITS_FILE = "splits_final.json"


@dataclass(frozen=True)
class Dataset:
    """A dataset that nnU-Net has planned.

    Attributes:
        name: full name, such as ``Dataset004_Hippocampus``.
        plans: the plans.
        dataset_json: content of ``dataset.json``.

    Examples:
        >>> dataset = Dataset.find(4)  # doctest: +SKIP
        >>> dataset.labeled_folder("3d_fullres")  # doctest: +SKIP
        PosixPath('.../nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans_3d_fullres')
    """

    name: str
    plans: PlansManager
    dataset_json: dict[str, Any]

    @classmethod
    def find(cls, dataset: str | int, plans_name: str = "nnUNetPlans") -> "Dataset":
        """Find a dataset by its name or number and read what a training would read.

        Args:
            dataset: name or number.
            plans_name: name of the plans, as after ``-p``.

        Raises:
            ValueError: there is not exactly one such dataset, a folder of nnU-Net is not set, or a file is damaged.
            FileNotFoundError: the dataset is not planned, or there are no such plans.
        """
        name = find_dataset(dataset)
        folder = Path(preprocessed_folder(name))
        first = f"run this first: nnUNetv2_plan_and_preprocess -d {dataset_id(name)}"
        if not (folder / f"{plans_name}.json").is_file():
            raise FileNotFoundError(f"There are no plans {plans_name}.json in {folder}; {first}")
        plans = PlansManager(_load_object(folder / f"{plans_name}.json"))
        dataset_json = _load_object(folder / "dataset.json")
        try:
            _check_plans(plans, dataset_json)
        except Exception as error:  # nnU-Net does not check its files, so a damaged one shows in any way
            raise ValueError(
                f"{plans_name}.json or dataset.json in {folder} is not as nnU-Net writes it ({error!r}); correct it, "
                f"or plan the dataset again: nnUNetv2_plan_and_preprocess -d {dataset_id(name)}"
            ) from None
        return cls(name, plans, dataset_json)

    @property
    def number(self) -> str:
        """The number of the dataset, as commands take it after ``-d``."""
        return dataset_id(self.name)

    @property
    def preprocessed(self) -> Path:
        """The folder of the preprocessed dataset."""
        return Path(preprocessed_folder(self.name))

    @property
    def raw(self) -> Path:
        """The folder of the raw dataset, which need not exist.

        Raises:
            ValueError: ``nnUNet_raw`` is not set.
        """
        return Path(raw_folder(self.name))

    @property
    def splits_file(self) -> Path:
        """The file of the folds, which nnU-Net writes in the first training."""
        return self.preprocessed / SPLITS_FILE

    def splits(self) -> list[Entry] | None:
        """Return the entries of ``splits_final.json``, or None where there is no such file.

        Raises:
            ValueError: the file is damaged.
        """
        return load_splits(self.splits_file) if self.splits_file.is_file() else None

    def configuration(self, name: str) -> ConfigurationManager:
        """Return a configuration of the plans.

        Raises:
            ValueError: there is none of this name.
        """
        available = self.plans.available_configurations
        if name not in available:
            raise ValueError(
                f"{self.plans.plans_name} of {self.name} has no configuration {name}, only {', '.join(available)}"
            )
        return self.plans.get_configuration(name)

    def labeled_folder(self, configuration: str) -> Path:
        """Return nnU-Net's folder of the preprocessed labeled cases."""
        return self.preprocessed / self.configuration(configuration).data_identifier

    def unlabeled_folder(self, configuration: str) -> Path:
        """Return the folder of the preprocessed unlabeled images."""
        return Path(unlabeled_folder(str(self.labeled_folder(configuration))))


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
