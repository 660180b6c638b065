"""Do a run of a benchmark in one process: train, predict, and measure.

A process of its own is started with ``python -m nnunetv2_micd.benchmark.run``, the run as JSON on its standard input.
"""

import json
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results

from nnunetv2_micd.benchmark.records import Run, evaluated_folders, read_record, write_record
from nnunetv2_micd.data.raw_images import group_images
from nnunetv2_micd.data.splits import load_splits
from nnunetv2_micd.export import FINAL

LOG = "benchmark.log"
TRAINERS_FOLDER = "benchmark_trainers"
"""The folder in ``nnUNet_results`` of generated trainers, of another length than those that they derive from."""

LOCK_SECONDS = 30
"""How long a run waits for a process before it that is just being killed."""


def execute(run: Run, device: str) -> None:
    """Do a run in this process, from its last checkpoint where there is one; nothing where it is done.

    Raises:
        Exception: whatever went wrong, which stands in ``benchmark.json`` as well.
    """
    with _locked(run.folder):
        record = read_record(run.folder)
        if record is not None and record["status"] == "done":  # by a job that was queued twice
            return
        write_record(run, "running", device)
        try:
            figures = _train_and_predict(run, device)
        except Exception as error:
            write_record(run, "failed", device, error=" ".join(f"{type(error).__name__}: {error}".split()))
            raise
        write_record(run, "done", device, **figures)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from the same run; the lock ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "benchmark.lock").open("w") as file:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise RuntimeError(f"Another process is at the run in {folder}; wait for it or end it") from None
                time.sleep(0.2)
        yield


def _train_and_predict(run: Run, device: str) -> dict[str, Any]:
    import torch

    from nnunetv2_micd.utils import random_states

    entry = load_splits(os.path.join(str(nnUNet_preprocessed), run.dataset, "splits_final.json"))[run.fold]
    if entry["train"] != list(run.labeled):
        raise ValueError(f"Fold {run.fold} of splits_final.json is no longer that of this run; restore the file")
    if device == "cuda":
        torch.set_num_threads(1)  # as nnUNetv2_train does
    random_states.seed_all(run.seed)
    torch.cuda.manual_seed_all(run.seed)
    add_trainer_folder(str(trainers_folder()))
    begin = time.time()
    _train(run, torch.device(device))
    trained = _epoch_times(run.folder / FINAL)
    if run.test_images is None:
        seconds = time.time() - max(begin, trained[-1][1])
    else:
        begin = time.time()
        _predict(run, torch.device(device))
        seconds = time.time() - begin
    return {
        "training_seconds": sum(end - start for start, end in trained),
        "prediction_seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def trainers_folder() -> Path:
    """Return the folder of the generated trainers, whether it is there or not."""
    return Path(str(nnUNet_results), TRAINERS_FOLDER)


def add_trainer_folder(folder: str) -> None:
    """Let nnU-Net search for trainers in one folder more, in this process and its children."""
    folders = os.environ["nnUNet_extTrainer"].split(os.pathsep)
    if os.path.isdir(folder) and folder not in folders:
        # the last one: the files in it search for the trainers that they derive from in the others
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*folders, folder])


def _train(run: Run, device: Any) -> None:
    """Train with nnU-Net's own command, of which this is the inside, and let it validate."""
    from nnunetv2.run.run_training import run_training

    checkpoints = [run.folder / f"checkpoint_{name}.pth" for name in ("final", "latest", "best")]
    for path in checkpoints:
        if path.exists() and not zipfile.is_zipfile(path):  # nnU-Net was killed while it wrote the file
            path.unlink()
    is_trained = checkpoints[0].exists()
    run_training(
        run.dataset,
        run.configuration,
        run.fold,
        run.trainer_class,
        run.plans,
        continue_training=not is_trained and any(path.exists() for path in checkpoints),
        only_run_validation=is_trained,
        device=device,
    )


def _epoch_times(checkpoint: Path) -> list[tuple[float, float]]:
    """Return begin and end of each epoch, those before an interruption as well."""
    import torch

    log = torch.load(checkpoint, map_location="cpu", weights_only=False)["logging"]
    return list(zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True))


def _predict(run: Run, device: Any) -> None:
    """Predict the test images from the checkpoint, as ``nnUNetv2_predict`` does."""
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(run.folder.parent), (run.fold,), FINAL)
    assert run.test_images is not None
    images = group_images(run.test_images, predictor.dataset_json["file_ending"])
    output = run.folder / evaluated_folders(run)[0]
    num_processes = min(3, default_num_processes)  # three as in nnUNetv2_predict
    predictor.predict_from_files(
        list(images.values()),
        [str(output / case) for case in images],
        num_processes_preprocessing=num_processes,
        num_processes_segmentation_export=num_processes,
    )


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes, without its workers; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _end_with(pipe: int) -> None:
    """End this process and its workers as soon as the benchmark, at the other end of the pipe, is no more."""
    while os.read(pipe, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Do the run that stands in the first line of the standard input."""
    content = json.loads(sys.stdin.buffer.readline())
    run = Run(**{**content["run"], "labeled": tuple(content["run"]["labeled"])})
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    execute(run, content["device"])


if __name__ == "__main__":
    main()
