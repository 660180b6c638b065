"""Predicts the test cases of a run, with the deployed network or with the mean of both networks."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.ensembling.ensemble import ensemble_folders
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_micd.benchmark.folds import read_entry
from nnunetv2_micd.benchmark.records import Result, Run
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.raw_images import group_images
from nnunetv2_micd.data.results import FINAL, ModelFolder
from nnunetv2_micd.export import export_model, has_second_network
from nnunetv2_micd.utils.files import shorten

MEAN_PREDICTIONS = "benchmark_predictions_of_both"
"""Folder in that of a run for the test cases as the mean of both networks predicts them."""

PREDICTION_PROCESSES = 3
"""Number of processes for reading and for writing in ``nnUNetv2_predict``."""


def find_test_images(run: Run) -> dict[str, list[str]]:
    """Return the image files of each test case: those that the user gave, or the validation cases of the fold.

    Raises:
        ValueError: ``nnUNet_raw`` is not set, or lacks images of validation cases, or the fold was changed.
        FileNotFoundError: There is no raw dataset.
    """
    dataset = Dataset.find(run.dataset, run.plans)
    if run.test_images is not None:
        return group_images(run.test_images, dataset.file_ending)
    # nnU-Net changes the description that it is given.
    cases = get_filenames_of_train_images_and_targets(str(dataset.raw), json.loads(json.dumps(dataset.dataset_json)))
    validation = read_entry(run)["val"]
    missing = [case for case in validation if case not in cases]
    if missing:
        raise ValueError(
            f"The raw images of validation cases are missing in {dataset.raw} ({shorten(missing)}); restore them, or "
            "leave out --mean-of-both"
        )
    return {case: cases[case]["images"] for case in validation}


def predict(
    model_folder: Path,
    fold: int,
    images: Mapping[str, list[str]],
    output: Path,
    device: torch.device,
    save_probabilities: bool = False,
) -> None:
    """Predict images from the final checkpoint of a fold, as ``nnUNetv2_predict`` does.

    Args:
        model_folder: Folder of the trained model.
        fold: Number of the fold.
        images: Image files of each case.
        output: Folder for the segmentations.
        device: The device.
        save_probabilities: Whether to write the probabilities as well.
    """
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model_folder), (fold,), FINAL)
    num_processes = min(PREDICTION_PROCESSES, default_num_processes)
    predictor.predict_from_files(
        list(images.values()),
        [str(output / case) for case in images],
        save_probabilities=save_probabilities,
        num_processes_preprocessing=num_processes,
        num_processes_segmentation_export=num_processes,
    )


def lacks_mean(run: Run, result: Result) -> bool:
    """Return True if a trained run has two networks, the mean of which has not predicted yet.

    Raises:
        FileNotFoundError: The checkpoint is missing.
    """
    if result.mean_predictions is not None:
        return False
    checkpoint = run.folder / result.checkpoint
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{checkpoint}, which --mean-of-both reads, is missing; restore it, or leave out --mean-of-both"
        )
    return has_second_network(checkpoint)


def predict_mean(run: Run, device: torch.device) -> float:
    """Predict the test cases of a run with the mean of the probabilities of its two networks.

    Returns:
        Duration in seconds: both predictions, and nnU-Net's ensembling of them.
    """
    images = find_test_images(run)
    output, temporary = run.folder / MEAN_PREDICTIONS, run.folder / f"{MEAN_PREDICTIONS}_incomplete"
    for folder in (output, temporary):  # a killed process may have left them
        shutil.rmtree(folder, ignore_errors=True)
    try:
        model = ModelFolder(run.dataset, run.configuration, run.trainer_class, run.plans)
        models = {"a": model.path(), "b": export_model(model, [run.fold], temporary / "model", network="b")}
        begin = time.time()
        for name, folder in models.items():
            predict(folder, run.fold, images, temporary / name, device, save_probabilities=True)
        ensemble_folders(
            [str(temporary / name) for name in models],
            str(output),
            num_processes=min(PREDICTION_PROCESSES, default_num_processes),
        )
        return time.time() - begin
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
