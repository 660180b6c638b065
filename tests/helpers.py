"""What the tests share: a tiny data set, trainers of two steps, commands as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.methods.bcp import nnUNetTrainerBCP, nnUNetTrainerBCP_half
from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.cad import nnUNetTrainerCAD
from nnunetv2_micd.methods.controls import nnUNetTrainerBCP_LabeledOnly, nnUNetTrainerEMA
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.dhc import nnUNetTrainerDHC
from nnunetv2_micd.methods.filter_match import nnUNetTrainerFilterMatch
from nnunetv2_micd.methods.m3hl import nnUNetTrainerM3HL
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN
from nnunetv2_micd.methods.mcf import nnUNetTrainerMCF
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.micd_paper import nnUNetTrainerMICD_paper
from nnunetv2_micd.methods.micd_variants import (
    nnUNetTrainerMICD_noCFC,
    nnUNetTrainerMICD_noCMD,
    nnUNetTrainerMICD_noMCPC,
    nnUNetTrainerMICD_SupervisedOnly,
)
from nnunetv2_micd.methods.pseudo_labels.trainer import nnUNetTrainerPseudoLabels
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.methods.spcl import nnUNetTrainerSPCL, nnUNetTrainerSPCL_pretrained
from nnunetv2_micd.methods.transmedseg import nnUNetTrainerTransMedSeg
from nnunetv2_micd.methods.uamt import nnUNetTrainerUAMT
from nnunetv2_micd.methods.unimatch import nnUNetTrainerUniMatch

MICD = "nnUNetTrainerMICD_short"
METHODS = [
    nnUNetTrainerBCP,
    nnUNetTrainerBCP_half,
    nnUNetTrainerCAD,
    nnUNetTrainerC3S3,
    nnUNetTrainerCPS,
    nnUNetTrainerDHC,
    nnUNetTrainerFilterMatch,
    nnUNetTrainerM3HL,
    nnUNetTrainerMandN,
    nnUNetTrainerMCF,
    nnUNetTrainerMEDL,
    nnUNetTrainerPseudoLabels,
    nnUNetTrainerSelfTraining,
    nnUNetTrainerTransMedSeg,
    nnUNetTrainerSPCL,
    nnUNetTrainerSPCL_pretrained,
    nnUNetTrainerUAMT,
    nnUNetTrainerUniMatch,
    nnUNetTrainerMICD,
    nnUNetTrainerMICD_paper,
    nnUNetTrainerMICD_noMCPC,
    nnUNetTrainerMICD_noCFC,
    nnUNetTrainerMICD_noCMD,
    nnUNetTrainerMICD_SupervisedOnly,
    nnUNetTrainerMeanTeacher,
    nnUNetTrainerEMA,
    nnUNetTrainerBCP_LabeledOnly,
]
ABLATIONS = [nnUNetTrainerMICD_noMCPC, nnUNetTrainerMICD_noCFC, nnUNetTrainerMICD_noCMD]
"""Variants of MICD that differ from it in a weight only."""

BRANCHES = {"agreement", "foreground_a", "foreground_b"}
CONTRASTS = {f"{label}_{figure}" for label in ("position", "case") for figure in ("contrast", "weight", "usable")}
FIGURES: dict[type, set[str]] = {
    nnUNetTrainerBCP: {"copy_paste", "agreement", "foreground_teacher"},
    nnUNetTrainerBCP_half: {"copy_paste", "agreement", "foreground_teacher"},
    nnUNetTrainerCAD: {
        "supervised_b",
        *("cps_a", "displaced_weak_a", "displaced_strong_a", "cps_b", "displaced_weak_b", "displaced_strong_b"),
        *("low_confidence", "displaced"),
        *BRANCHES,
    },
    nnUNetTrainerC3S3: {"supervised_b", "cosine", "competition", "contrast", "a_is_better", *BRANCHES},
    nnUNetTrainerCPS: {"supervised_b", "cps_labeled", "cps_unlabeled", *BRANCHES},
    nnUNetTrainerDHC: {"supervised_b", "cps", *BRANCHES},
    nnUNetTrainerFilterMatch: {"pseudo_label", "agreement", "foreground"},
    nnUNetTrainerM3HL: {"copy_paste", "high_level", "low_level", "agreement", "foreground_teacher"},
    nnUNetTrainerMandN: {"supervised_b", "pseudo_label", "pseudo_label_b", "pseudo_labeled", *BRANCHES},
    nnUNetTrainerMCF: {"supervised_b", "review", "consistency", "a_is_better", *BRANCHES},
    nnUNetTrainerMEDL: {"supervised_b", "weighted", "pseudo_label", "evidential", "reliability", *BRANCHES},
    nnUNetTrainerPseudoLabels: {"pseudo_label", "agreement"},
    nnUNetTrainerSelfTraining: {"foreground_teacher"},
    nnUNetTrainerTransMedSeg: {"copy_paste", "augmented", "agreement", "foreground_teacher"},
    nnUNetTrainerSPCL: CONTRASTS,
    nnUNetTrainerSPCL_pretrained: CONTRASTS,
    nnUNetTrainerUAMT: {"consistency", "agreement", "foreground_teacher", "certain"},
    nnUNetTrainerUniMatch: {"feature_dropout", "strong_1", "strong_2", "confident", "agreement", "foreground"},
    nnUNetTrainerMICD: {"supervised_b", "mcpc", "cfc", "cmd", *BRANCHES},
    nnUNetTrainerMICD_paper: {"supervised_b", "mcpc", "cfc", "cmd", *BRANCHES},
    nnUNetTrainerMICD_noMCPC: {"supervised_b", "cfc", "cmd", *BRANCHES},
    nnUNetTrainerMICD_noCFC: {"supervised_b", "mcpc", "cmd", *BRANCHES},
    nnUNetTrainerMICD_noCMD: {"supervised_b", "mcpc", "cfc", *BRANCHES},
    nnUNetTrainerMICD_SupervisedOnly: {"supervised_b"},
    nnUNetTrainerMeanTeacher: {"consistency", "agreement", "foreground_teacher"},
    nnUNetTrainerEMA: set(),
    nnUNetTrainerBCP_LabeledOnly: set(),
}
"""What a method logs for each epoch, beside what all methods log."""


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "second": 2}, "regions_class_order": [1, 2]}
IGNORE = {"labels": {"background": 0, "first": 1, "second": 2, "ignore": 3}}
BOTH = {**REGIONS, "labels": {**REGIONS["labels"], "ignore": 3}}
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


def write_raw(dataset: TinyDataset) -> None:
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


def shrink_plans(plans_file: Path) -> None:
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


def make_dataset(root: Path) -> TinyDataset:
    """Make the tiny dataset, planned and preprocessed by nnU-Net, with two folds."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    from nnunetv2_micd.data.dataset import Dataset
    from nnunetv2_micd.data.preprocessing import preprocess_unlabeled

    dataset = TinyDataset(root)
    write_raw(dataset)
    with pytest.MonkeyPatch.context() as monkeypatch:
        dataset.set_environment(monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # with 0 nnU-Net cannot plan
        extractor = DatasetFingerprintExtractor(dataset.id, num_processes=1)
        extractor.num_foreground_voxels_for_intensitystats = 10_000  # the default of 10e7 takes a second per case
        extractor.run()
        plan_experiments([dataset.id])
        shrink_plans(dataset.plans_file)
        preprocess_labeled(dataset)
        assert preprocess_unlabeled(Dataset.find(dataset.id), num_processes=1) == []
    splits = [
        {"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]},
        {"train": ["case_0"], "val": ["case_3", "case_4"], "unlabeled": ["case_1", "case_2", "case_5"]},
    ]
    dataset.splits_file.write_text(json.dumps(splits, indent=4))
    return dataset


def relabel(dataset: TinyDataset, description: dict[str, Any], annotated_slices: int | None = None) -> None:
    """Change the labels of the dataset, leave only some slices annotated, and preprocess it again."""
    for folder in (dataset.raw, dataset.preprocessed):
        path = folder / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | description))
    if annotated_slices is not None:
        for path in (dataset.raw / "labelsTr").iterdir():
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            labels[: len(labels) // 2 - annotated_slices // 2] = 3
            labels[len(labels) // 2 + annotated_slices // 2 :] = 3
            write_image(path, labels)
    preprocess_labeled(dataset)


def make_trainer(
    trainer_class: type,
    dataset: TinyDataset,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    shortened: bool = True,
    device: str = "cpu",
    draws: bool = False,
) -> Any:
    """Return a trainer as ``nnUNetv2_train`` makes it, but of two epochs of two steps.

    Unless it ``draws``, it writes no tables and figures of its epochs: drawing takes longer than the steps.
    """
    plans = {**json.loads(dataset.plans_file.read_text()), "continue_training": False}
    dataset_json = json.loads((dataset.preprocessed / "dataset.json").read_text())
    trainer = trainer_class(plans, configuration, fold, dataset_json, torch.device(device))
    if shortened:
        trainer.num_epochs = trainer.num_iterations_per_epoch = 2
        trainer.num_val_iterations_per_epoch = 1
        trainer.logger.plot_progress_png = lambda folder: None
        if not draws and hasattr(trainer, "monitor"):
            trainer.monitor.write = lambda *_: None
    return trainer


class Shell:
    """Runs commands with nnU-Net's variables set to the data of a test."""

    def __init__(self, dataset: TinyDataset):
        self.dataset = dataset
        self.environment = {
            **os.environ,
            "nnUNet_extTrainer": os.pathsep.join((TRAINER_FOLDER, str(Path(__file__).parent / "trainers"))),
            "nnUNet_def_n_proc": "1",
        }

    def __call__(self, command: str, code: int = 0, **environment: str) -> str:
        """Run a command of the environment of these tests and return what it printed."""
        name, *words = command.split()
        path = Path(sys.executable).parent / name
        result = subprocess.run(
            [path, *words],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert result.returncode == code, f"{command}\n{result.stdout[-4000:]}"
        return result.stdout

    def train(self, options: str, trainer: str = MICD, **more: Any) -> str:
        return self(f"nnUNetv2_train {self.dataset.id} {options} -tr {trainer} -device cpu", **more)

    def train_folds(self, configuration: str, folds: int, trainer: str = MICD) -> None:
        """Train two folds side by side, as users with two GPUs do; each is one thread here."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda fold: self.train(f"{configuration} {fold} --npz", trainer), range(folds)))

    def predict(self, options: str, trainer: str = MICD, output: str = "predicted", images: Path | None = None) -> Path:
        folder = self.dataset.root / output
        source = f"-d {self.dataset.id} -i {images or self.dataset.images} -o {folder}"
        self(f"nnUNetv2_predict {source} {options} -tr {trainer} -device cpu --disable_tta -npp 1 -nps 1")
        return folder
