"""A planned dataset: its name, plans, ``dataset.json``, folders and splits, found once and handed on."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_micd.data.folders import (
    DEFAULT_PLANS,
    dataset_id,
    find_dataset,
    plan_first,
    preprocessed_folder,
    raw_folder,
)
from nnunetv2_micd.data.preprocessed import channel_names, preprocessing_fingerprint, unlabeled_folder
from nnunetv2_micd.data.splits import SPLITS_FILE, Entry, load_splits
from nnunetv2_micd.utils.files import is_file_name, read_json_object

PLANS_OF_PLANNERS = {f"nnUNetPlannerResEnc{size}": f"nnUNetResEncUNet{size}Plans" for size in ("M", "L", "XL")}
"""Plans of nnU-Net's planners for networks with residual encoders."""


@dataclass(frozen=True)
class Dataset:
    """A dataset that nnU-Net has planned.

    Attributes:
        name: Full name, such as ``Dataset004_Hippocampus``.
        plans: The plans.
        dataset_json: Content of ``dataset.json``.
    """

    name: str
    plans: PlansManager
    dataset_json: dict[str, Any]

    @classmethod
    def find(cls, dataset: str | int, plans_name: str = DEFAULT_PLANS) -> "Dataset":
        """Find a dataset by its name or number and read its plans.

        Args:
            dataset: Full name or number.
            plans_name: Name of the plans, as after ``-p``.

        Raises:
            ValueError: There is not exactly one such dataset, a folder of nnU-Net is not set, or a file is damaged.
            FileNotFoundError: The dataset is not planned, or there are no such plans.
        """
        name = find_dataset(dataset)
        folder = preprocessed_folder(name)
        plans_file = folder / f"{plans_name}.json"
        if not plans_file.is_file():
            others = sorted(file.stem for file in folder.glob("*Plans*.json"))
            remedy = f"name one of {', '.join(others)} with -p" if others else plan_first(name)
            raise FileNotFoundError(f"There are no plans {plans_file.name} in {folder}; {remedy}")
        plans = PlansManager(read_json_object(plans_file))
        dataset_json = read_json_object(folder / "dataset.json")
        try:
            _check_plans(plans, dataset_json, name)
        except Exception as error:  # nnU-Net does not check its files, so damage shows as any type of error
            raise ValueError(
                f"{plans_file.name} or dataset.json in {folder} is not as nnU-Net writes it ({error!r}); correct it, "
                f"or plan the dataset again: nnUNetv2_plan_and_preprocess -d {dataset_id(name)}"
            ) from None
        return cls(name, plans, dataset_json)

    @property
    def number(self) -> str:
        """Number of the dataset, as commands take it after ``-d``."""
        return dataset_id(self.name)

    @property
    def preprocess_command(self) -> str:
        """Command that preprocesses the unlabeled images, without further options."""
        name = self.plans.plans_name
        return f"nnUNetv2_micd preprocess -d {self.number}" + ("" if name == DEFAULT_PLANS else f" -p {name}")

    @property
    def plan_command(self) -> str:
        """Command that plans and preprocesses the labeled cases again, or what to say in its place."""
        planner, name = self.plans.plans.get("experiment_planner_used"), self.plans.plans_name
        command = f"nnUNetv2_plan_and_preprocess --clean -d {self.number}"
        if name == DEFAULT_PLANS:
            return command
        # Of other options, such as of the GPU's memory, plans know nothing.
        is_default = PLANS_OF_PLANNERS.get(planner) == name
        return command + (f" -pl {planner}" if is_default else f" (and the options that made {name})")

    @property
    def preprocessed(self) -> Path:
        """Folder of the preprocessed dataset."""
        return preprocessed_folder(self.name)

    @property
    def raw(self) -> Path:
        """Folder of the raw dataset, which need not exist.

        Raises:
            ValueError: ``nnUNet_raw`` is not set.
            FileNotFoundError: ``nnUNet_raw`` does not exist.
        """
        return raw_folder(self.name)

    @property
    def file_ending(self) -> str:
        """File ending of the raw images, such as ``.nii.gz``."""
        return str(self.dataset_json["file_ending"])

    @property
    def num_channels(self) -> int:
        """Number of channels of an image."""
        return len(channel_names(self.dataset_json))

    @property
    def has_colors(self) -> bool:
        """Whether the channels are red, green and blue of a photograph, see :func:`has_colors`."""
        return has_colors(self.plans, self.dataset_json)

    @property
    def splits_file(self) -> Path:
        """File of the folds, which nnU-Net writes in the first training."""
        return self.preprocessed / SPLITS_FILE

    def splits(self) -> list[Entry] | None:
        """Return the entries of ``splits_final.json``, or None if there is no such file.

        Raises:
            ValueError: The file is damaged.
        """
        return load_splits(self.splits_file) if self.splits_file.is_file() else None

    def configuration(self, name: str) -> ConfigurationManager:
        """Return a configuration of the plans.

        Args:
            name: Name of the configuration, such as ``3d_fullres``.

        Raises:
            ValueError: The plans have no configuration of this name.
        """
        available = self.plans.available_configurations
        if name not in available:
            raise ValueError(
                f"{self.plans.plans_name} of {self.name} has no configuration {name}, only {', '.join(available)}"
            )
        return self.plans.get_configuration(name)

    def fingerprint(self, configuration: str) -> str:
        """Return a hash of all settings that change the voxels of a preprocessed image."""
        return preprocessing_fingerprint(self.plans, self.configuration(configuration), self.dataset_json)

    def labeled_folder(self, configuration: str) -> Path:
        """Return nnU-Net's folder of the preprocessed labeled cases."""
        return self.preprocessed / self.configuration(configuration).data_identifier

    def unlabeled_folder(self, configuration: str) -> Path:
        """Return the folder of the preprocessed unlabeled images."""
        return Path(unlabeled_folder(self.labeled_folder(configuration)))


def has_colors(plans: PlansManager, dataset_json: dict[str, Any]) -> bool:
    """Return True if the three channels of an image are its colors, as they are in PNG and the like."""
    is_photograph = issubclass(plans.image_reader_writer_class, NaturalImage2DIO)
    return is_photograph and len(channel_names(dataset_json)) == 3


def _check_plans(plans: PlansManager, dataset_json: dict[str, Any], name: str) -> None:
    """Read everything that preprocessing, the doctor and a training read, so that errors show here."""
    channels = channel_names(dataset_json)
    _check(isinstance(dataset_json["labels"], dict), "labels", dataset_json["labels"])
    ending = dataset_json["file_ending"]
    _check(isinstance(ending, str) and ending.startswith(".") and is_file_name(ending), "file_ending", ending)
    _check(len(channels) > 0, "channel_names", channels)
    labels = plans.get_label_manager(dataset_json).all_labels
    _check(len(labels) > 1 and labels == list(range(len(labels))), "labels, which must be 0, 1, 2 and so on,", labels)
    _check(plans.dataset_name == name, "dataset_name", plans.dataset_name)
    _check(isinstance(plans.plans_name, str) and is_file_name(plans.plans_name), "plans_name", plans.plans_name)
    _check(sorted(plans.transpose_forward) == [0, 1, 2], "transpose_forward", plans.transpose_forward)
    intensities = plans.foreground_intensity_properties_per_channel
    _check(len(intensities) >= len(channels), "foreground_intensity_properties_per_channel", intensities)
    _ = plans.image_reader_writer_class
    for configuration in plans.available_configurations:
        _check_configuration(plans, configuration, dataset_json)


def _check_configuration(plans: PlansManager, name: str, dataset_json: dict[str, Any]) -> None:
    configuration = plans.get_configuration(name)
    preprocessing_fingerprint(plans, configuration, dataset_json)
    _ = configuration.network_arch_init_kwargs, configuration.resampling_fn_data
    folder, patch_size = configuration.data_identifier, configuration.patch_size
    _check(isinstance(folder, str) and is_file_name(folder), f"data_identifier of {name}", folder)
    for key, value in (("patch_size", patch_size), ("batch_size", [configuration.batch_size])):
        is_sound = all(isinstance(number, int) and number > 0 for number in value)
        _check(is_sound, f"{key} of {name}", getattr(configuration, key))
    for key in ("spacing", "median_image_size_in_voxels"):
        value = getattr(configuration, key)
        is_sound = len(value) == len(patch_size) and all(0 < number < math.inf for number in value)
        _check(is_sound, f"{key} of {name}", value)
    num_channels = len(channel_names(dataset_json))
    for key in ("normalization_schemes", "use_mask_for_norm"):
        value = getattr(configuration, key)
        _check(isinstance(value, list) and len(value) == num_channels, f"{key} of {name}", value)
    _check(
        configuration.preprocessor_class is not None, f"preprocessor_name of {name}", configuration.preprocessor_name
    )


def _check(is_sound: bool, what: str, value: object) -> None:
    if not is_sound:
        raise ValueError(f"{what} is {value!r}")
