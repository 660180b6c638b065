"""Does one run of a benchmark in this process: train, predict and measure."""

import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training

from nnunetv2_micd.benchmark.records import Result, Run, evaluated_folders, read_record, write_record
from nnunetv2_micd.data.folders import preprocessed_folder
from nnunetv2_micd.data.raw_images import group_images
from nnunetv2_micd.data.results import FINAL
from nnunetv2_micd.data.splits import SPLITS_FILE, load_splits
from nnunetv2_micd.training.registry import EXT_TRAINER, join_folders
from nnunetv2_micd.utils import random_states
from nnunetv2_micd.utils.files import environment
from nnunetv2_micd.utils.memory import peak_memory

LOG = "benchmark.log"

LOCK_SECONDS = 30
"""Time to wait for another process at the same run, which may just be ending after it was killed."""

PREDICTION_PROCESSES = 3
"""Number of processes for reading and for writing in ``nnUNetv2_predict``."""


def execute(run: Run, device: str, trainer_folders: Sequence[str]) -> None:
    """Do a run in this process, from its last checkpoint if there is one. Does nothing if the run is done.

    Args:
        run: The run.
        device: ``cpu``, ``cuda`` or ``mps``.
        trainer_folders: Folders in which nnU-Net searches for trainers during the run, and in no others.

    Raises:
        RuntimeError: Another process works on the run.
        Exception: Any error of the training or prediction; ``benchmark.json`` holds it as well.
    """
    # A broken file in the folder of another trainer, or of another benchmark, must not end this run.
    with lock_folder(run.folder), environment(**{EXT_TRAINER: join_folders(trainer_folders)}):
        record = read_record(run.folder)
        if record is not None and record.result.status == "done":  # a scheduler may start a job twice
            return
        result = Result.start(run, device)
        write_record(run, result)
        try:
            measured = _train_and_predict(run, device)
        except Exception as error:
            write_record(run, result.failed(" ".join(f"{type(error).__name__}: {error}".split())))
            raise
        write_record(run, result.done(**measured))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from the run in a folder. The lock ends with the process, however that ends.

    Raises:
        RuntimeError: Another process still works on the run after some time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "benchmark.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RuntimeError(
            f"Another process is already working on {folder}; wait for it to finish or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _train_and_predict(run: Run, device: str) -> dict[str, Any]:
    """Train, predict the test cases, and return the measured fields of the result."""
    entry = load_splits(preprocessed_folder(run.dataset) / SPLITS_FILE)[run.fold]
    if entry["train"] != list(run.labeled):
        raise ValueError(f"Fold {run.fold} of {SPLITS_FILE} no longer labels the cases of this run; restore the file")
    if device == "cuda":
        torch.set_num_threads(1)  # as nnUNetv2_train does
    random_states.seed_all(run.seed)
    torch.cuda.manual_seed_all(run.seed)
    begin = time.time()
    _train(run, torch.device(device))
    epochs = _epoch_times(run.folder / FINAL)
    if run.test_images is None:
        # nnU-Net has predicted the validation cases right after the last epoch, unless that was in an earlier process.
        prediction_seconds = time.time() - max(begin, epochs[-1][1])
    else:
        begin = time.time()
        _predict(run, run.test_images, torch.device(device))
        prediction_seconds = time.time() - begin
    return {
        "training_seconds": sum(end - start for start, end in epochs),
        "prediction_seconds": prediction_seconds,
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _train(run: Run, device: torch.device) -> None:
    """Do what ``nnUNetv2_train`` does, including the validation."""
    final, *others = (run.folder / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    for path in (final, *others):
        if path.exists() and not zipfile.is_zipfile(path):  # a killed training may leave half a checkpoint
            path.unlink()
    is_trained = final.exists()
    run_training(
        run.dataset,
        run.configuration,
        run.fold,
        run.trainer_class,
        run.plans,
        continue_training=not is_trained and any(path.exists() for path in others),
        only_run_validation=is_trained,
        device=device,
    )


def _epoch_times(checkpoint: Path) -> list[tuple[float, float]]:
    """Return begin and end of each epoch in seconds, also of those before an interruption."""
    log = torch.load(checkpoint, map_location="cpu", weights_only=False)["logging"]
    return list(zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True))


def _predict(run: Run, images_folder: str, device: torch.device) -> None:
    """Predict the test images from the final checkpoint, as ``nnUNetv2_predict`` does."""
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(run.folder.parent), (run.fold,), FINAL)
    images = group_images(images_folder, predictor.dataset_json["file_ending"])
    output = run.folder / evaluated_folders(run)[0]
    num_processes = min(PREDICTION_PROCESSES, default_num_processes)
    predictor.predict_from_files(
        list(images.values()),
        [str(output / case) for case in images],
        num_processes_preprocessing=num_processes,
        num_processes_segmentation_export=num_processes,
    )
