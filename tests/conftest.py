"""A tiny synthetic dataset that nnU-Net itself plans and preprocesses, once per session; every test gets a copy."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_micd import TRAINER_FOLDER

PATCH_SIZE = (16, 20, 24)  # uneven, to catch swapped axes

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@dataclass(frozen=True)
class TinyDataset:
    """Six labeled cases, case_0 to case_5, and four images without labels, image_0 to image_3; 2d and 3d_fullres."""

    root: Path
    id: int = 901
    name: str = "Dataset901_Tiny"
    labeled: tuple[str, ...] = tuple(f"case_{i}" for i in range(6))
    unlabeled: tuple[str, ...] = tuple(f"image_{i}" for i in range(4))

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def images(self) -> Path:
        return self.raw / "imagesUn"

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / "nnUNetPlans.json"

    @property
    def splits_file(self) -> Path:
        return self.preprocessed / "splits_final.json"

    def labeled_folder(self, configuration: str = "3d_fullres") -> Path:
        return self.preprocessed / f"nnUNetPlans_{configuration}"

    def unlabeled_folder(self, configuration: str = "3d_fullres") -> Path:
        return self.preprocessed / f"nnUNetPlans_{configuration}_unlabeled"

    def set_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in ("raw", "preprocessed", "results"):
            (self.root / folder).mkdir(exist_ok=True)
            monkeypatch.setenv(f"nnUNet_{folder}", str(self.root / folder))
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        monkeypatch.setenv("nnUNet_extTrainer", TRAINER_FOLDER)


def write_image(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> None:
    """Write an array (z, y, x) as an image; the spacing is (x, y, z)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def make_volume(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with two bright blobs in noise, and its labels."""
    generator = np.random.default_rng(seed)
    coordinates = np.stack(np.meshgrid(*(np.arange(size) / size for size in shape), indexing="ij"), axis=-1)
    labels = np.zeros(shape, np.uint8)
    for label, place in ((1, 0.3), (2, 0.7)):
        center = place + generator.uniform(-0.08, 0.08, size=3)
        labels[np.linalg.norm(coordinates - center, axis=-1) < 0.22] = label
    image = 100.0 + 80.0 * labels + generator.normal(0, 15, size=shape)
    return image.astype(np.float32), labels


def _write_raw(dataset: TinyDataset) -> None:
    for seed, case in enumerate(dataset.labeled):
        image, labels = make_volume(seed, (20 + seed % 3, 24 + seed, 28 + seed % 2))
        write_image(dataset.raw / "imagesTr" / f"{case}_0000.nii.gz", image)
        write_image(dataset.raw / "labelsTr" / f"{case}.nii.gz", labels)
    # the last but one is resampled, the last is smaller than a patch
    shapes = ((20, 26, 29), (22, 24, 28), (16, 25, 30), (10, 12, 14))
    spacings = ((1, 1, 1), (1, 1, 1), (1, 1, 1.5), (1, 1, 1))
    for seed, (case, shape, spacing) in enumerate(zip(dataset.unlabeled, shapes, spacings, strict=True)):
        write_image(dataset.images / f"{case}_0000.nii.gz", make_volume(100 + seed, shape)[0], spacing)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "first": 1, "second": 2},
        "numTraining": len(dataset.labeled),
        "file_ending": ".nii.gz",
    }
    (dataset.raw / "dataset.json").write_text(json.dumps(description))


def _shrink_plans(plans_file: Path) -> None:
    plans = json.loads(plans_file.read_text())
    for name, patch_size in (("3d_fullres", PATCH_SIZE), ("2d", PATCH_SIZE[1:])):
        dimensions = len(patch_size)
        configuration = plans["configurations"][name]
        configuration.update(patch_size=patch_size, batch_size=2)
        configuration["architecture"]["arch_kwargs"].update(
            n_stages=3,
            features_per_stage=[4, 8, 8],
            kernel_sizes=[[3] * dimensions] * 3,
            strides=[[1] * dimensions, [2] * dimensions, [2] * dimensions],
            n_conv_per_stage=[1, 1, 1],
            n_conv_per_stage_decoder=[1, 1],
        )
    plans_file.write_text(json.dumps(plans, indent=4))


def preprocess_labeled(dataset: TinyDataset) -> None:
    """Do what ``nnUNetv2_preprocess`` does, in this process, as it takes seconds to start others."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(dataset.plans_file))
    for name in manager.available_configurations:
        configuration = manager.get_configuration(name)
        preprocessor = configuration.preprocessor_class(verbose=False)
        shutil.rmtree(dataset.labeled_folder(name), ignore_errors=True)
        dataset.labeled_folder(name).mkdir()
        for case in dataset.labeled:
            preprocessor.run_case_save(
                str(dataset.labeled_folder(name) / case),
                [str(path) for path in sorted((dataset.raw / "imagesTr").glob(f"{case}_*.nii.gz"))],
                str(dataset.raw / "labelsTr" / f"{case}.nii.gz"),
                manager,
                configuration,
                str(dataset.raw / "dataset.json"),
            )
    shutil.copytree(dataset.raw / "labelsTr", dataset.preprocessed / "gt_segmentations", dirs_exist_ok=True)


@pytest.fixture(scope="session")
def dataset_template(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    from nnunetv2_micd.preprocessing import preprocess_unlabeled

    dataset = TinyDataset(tmp_path_factory.mktemp("nnunet"))
    _write_raw(dataset)
    with pytest.MonkeyPatch.context() as monkeypatch:
        dataset.set_environment(monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # with 0 nnU-Net cannot plan
        extractor = DatasetFingerprintExtractor(dataset.id, num_processes=1)
        extractor.num_foreground_voxels_for_intensitystats = 10_000  # the default of 10e7 takes a second per case
        extractor.run()
        plan_experiments([dataset.id])
        _shrink_plans(dataset.plans_file)
        preprocess_labeled(dataset)
        assert preprocess_unlabeled(dataset.id, num_processes=1) == []
    splits = [
        {"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]},
        {"train": ["case_0"], "val": ["case_3", "case_4"], "unlabeled": ["case_1", "case_2", "case_5"]},
    ]
    dataset.splits_file.write_text(json.dumps(splits, indent=4))
    return dataset


@pytest.fixture
def dataset(dataset_template: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyDataset]:
    """Return a copy of the dataset that the test may change; nnU-Net's environment variables point to it."""
    shutil.copytree(dataset_template.root, tmp_path / "nnunet")
    copy = TinyDataset(tmp_path / "nnunet")
    copy.set_environment(monkeypatch)
    return copy


@pytest.fixture
def plans(dataset: TinyDataset) -> SimpleNamespace:
    """Return what a trainer knows of ``dataset``: ``plans_manager``, ``configuration_manager``, ``dataset_json``."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(dataset.plans_file))
    return SimpleNamespace(
        plans_manager=manager,
        configuration_manager=manager.get_configuration("3d_fullres"),
        dataset_json=json.loads((dataset.preprocessed / "dataset.json").read_text()),
    )


def make_trainer(
    trainer_class: type,
    dataset: TinyDataset,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    shortened: bool = True,
    device: str = "cpu",
) -> Any:
    """Return a trainer as ``nnUNetv2_train`` makes it, but of two epochs of two steps."""
    plans = {**json.loads(dataset.plans_file.read_text()), "continue_training": False}
    dataset_json = json.loads((dataset.preprocessed / "dataset.json").read_text())
    trainer = trainer_class(plans, configuration, fold, dataset_json, torch.device(device))
    if shortened:
        trainer.num_epochs = trainer.num_iterations_per_epoch = 2
        trainer.num_val_iterations_per_epoch = 1
    return trainer
