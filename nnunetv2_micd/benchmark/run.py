"""Does one run of a benchmark in this process: train, predict and measure."""

import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from torch.backends import cudnn

from nnunetv2_micd.benchmark.folds import read_entry
from nnunetv2_micd.benchmark.prediction import MEAN_PREDICTIONS, find_test_images, lacks_mean, predict, predict_mean
from nnunetv2_micd.benchmark.progress import progress_removed, report_prediction, report_steps
from nnunetv2_micd.benchmark.records import Result, Run, evaluated_folders, read_record, training_seconds, write_record
from nnunetv2_micd.benchmark.run_folder import check_same
from nnunetv2_micd.data.results import FINAL
from nnunetv2_micd.training.registry import EXT_TRAINER, join_folders
from nnunetv2_micd.utils import random_states
from nnunetv2_micd.utils.checkpoint_files import epoch_times
from nnunetv2_micd.utils.files import environment
from nnunetv2_micd.utils.locks import hold_lock
from nnunetv2_micd.utils.memory import peak_memory

LOG = "benchmark.log"
LOCK = "benchmark.lock"

BUSY_CODE = 75
"""Exit code of a process that gave way to another one at the same run, ``EX_TEMPFAIL`` of sysexits.h."""

LOCK_SECONDS = 30
"""Time to wait for another process at the same run, which may just be ending after it was killed."""


def execute(run: Run, device: str, trainer_folders: Sequence[str], mean_of_both: bool = False) -> None:
    """Do a run in this process, from its last checkpoint if there is one. Does nothing if the run is done.

    Args:
        run: The run.
        device: ``cpu``, ``cuda`` or ``mps``.
        trainer_folders: Folders in which nnU-Net searches for trainers during the run, and in no others.
        mean_of_both: Whether a trainer with two networks predicts with their mean as well, if it has not yet.

    Raises:
        BlockingIOError: Another process works on the run.
        ValueError: The folder holds another run.
        Exception: Any error of the training or prediction; ``benchmark.json`` holds it as well.
    """
    # A broken file in the folder of another trainer, or of another benchmark, must not end this run.
    with lock_folder(run.folder), environment(**{EXT_TRAINER: join_folders(trainer_folders)}), progress_removed(run):
        record = read_record(run.folder)
        if record is not None:  # another benchmark may have been faster
            check_same(run, record)
        if record is not None and record.result.is_complete:  # a scheduler may start a job twice
            run, result = record.run, record.result.done()
        else:
            result = Result.start(run, device)
            write_record(run, result)
            with _errors_recorded(run, result):
                result = result.done(**_train_and_predict(run, device))
        write_record(run, result)  # before the mean, which may fail
        if mean_of_both:
            with _errors_recorded(run, result):
                if lacks_mean(run, result):
                    report_prediction(run)
                    seconds = predict_mean(run, torch.device(device))
                    result = result.done(mean_predictions=MEAN_PREDICTIONS, mean_prediction_seconds=seconds)
            write_record(run, result)


@contextmanager
def _errors_recorded(run: Run, result: Result) -> Iterator[None]:
    """Record an error in the block; what was measured before stays in the record."""
    try:
        yield
    except Exception as error:
        write_record(run, result.failed(" ".join(f"{type(error).__name__}: {error}".split())))
        raise


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from the run in a folder. The lock ends with the process, however that ends.

    Raises:
        BlockingIOError: Another process still works on the run after some time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / LOCK, f"working on {folder}", LOCK_SECONDS):
        yield


def is_locked(run: Run) -> bool:
    """Return whether another process works on a run. Where nobody can tell, the run itself says what is wrong."""
    if not (run.folder / LOCK).exists():
        return False
    try:
        with hold_lock(run.folder / LOCK, f"working on {run.folder}", wait=0):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _train_and_predict(run: Run, device: str) -> dict[str, Any]:
    """Train, predict the test cases, and return the measured fields of the result."""
    read_entry(run)  # stops here if the fold was changed
    if device == "cuda":
        torch.set_num_threads(1)  # as nnUNetv2_train does
    random_states.seed_all(run.seed)
    torch.cuda.manual_seed_all(run.seed)
    begin = time.time()
    memory = _train(run, torch.device(device))
    epochs = epoch_times(run.folder / FINAL)
    if run.test_images is None:
        # nnU-Net has predicted the validation cases right after the last epoch, unless that was in an earlier process.
        prediction_seconds = time.time() - max(begin, epochs[-1][1])
    else:
        begin = time.time()
        output = run.folder / evaluated_folders(run)[0]
        predict(run.folder.parent, run.fold, find_test_images(run), output, torch.device(device))
        prediction_seconds = time.time() - begin
    return {
        "training_seconds": training_seconds(epochs),
        "prediction_seconds": prediction_seconds,
        **memory,
    }


def _train(run: Run, device: torch.device) -> dict[str, int | None]:
    """Do what ``nnUNetv2_train`` does, including the validation, and return the memory that the training took.

    That is nothing if an earlier process took the last step.
    """
    final, *others = (run.folder / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    for path in (final, *others):
        if path.exists() and not zipfile.is_zipfile(path):  # a killed training may leave half a checkpoint
            path.unlink()
    is_trained = final.exists()
    if is_trained:
        others[0].unlink(missing_ok=True)  # nnU-Net's last deed, before which a training may be killed
    continues = not is_trained and any(path.exists() for path in others)
    trainer = get_trainer_from_args(
        run.dataset, run.configuration, run.fold, run.trainer_class, run.plans, continues, device
    )
    # A cascade's next stage is trained on what the last validated model of the same name has predicted for it.
    trainer.configuration_manager.configuration.pop("next_stage", None)
    maybe_load_checkpoint(trainer, continue_training=continues, validation_only=is_trained)
    if torch.cuda.is_available():
        cudnn.deterministic, cudnn.benchmark = False, True
    memory: dict[str, int | None] = {}
    if not is_trained:
        report_steps(trainer, run)
        trainer.run_training()
        # Before the validation, which holds the logits of whole images.
        gpu = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        memory = {"peak_memory_bytes": peak_memory(), "peak_gpu_bytes": gpu}
    report_prediction(run)
    trainer.perform_actual_validation()
    return memory
