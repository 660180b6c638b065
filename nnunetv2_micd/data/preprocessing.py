"""Preprocesses the images without labels, as nnU-Net preprocesses the labeled ones, into a folder of their own.

A run may be killed at any moment and started again: a case is written and read back in a temporary folder and moved in
with its ``.b2nd`` last, so whatever ``.b2nd`` lies in the folder is whole.
"""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.folders import dataset_id, labeled_folders, preprocessed_folder, raw_folder
from nnunetv2_micd.data.preprocessed import (
    FINGERPRINT_FILE,
    channel_names,
    find_damaged,
    list_preprocessed,
    preprocessing_fingerprint,
    read_fingerprint,
    unlabeled_folder,
)
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, find_data_defect, find_defect, find_images
from nnunetv2_micd.utils.files import shorten

INCOMPLETE_FOLDER = ".incomplete"
"""The folder, inside that of the preprocessed images, for what is being written."""

DEFAULT_NUM_PROCESSES = min(default_num_processes, os.cpu_count() or 1)
"""nnU-Net's own default (8, or ``nnUNet_def_n_proc``), on small machines one for each core."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be preprocessed, and why."""

    case: str
    configuration: str
    reason: str


@dataclass(frozen=True)
class _Job:
    case: str
    images: list[str]
    folder: str
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict[str, Any]


def preprocess_unlabeled(
    dataset: str | int,
    configurations: Sequence[str] | None = None,
    plans_name: str = "nnUNetPlans",
    folders: Sequence[str] | None = None,
    num_processes: int = DEFAULT_NUM_PROCESSES,
    overwrite: bool = False,
) -> list[Failure]:
    """Preprocess the unlabeled images of a dataset; those that are done already are skipped.

    With more than one process, a script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        dataset: name or number of the dataset.
        configurations: such as ``["3d_fullres"]``; by default all for which the labeled cases are preprocessed.
        plans_name: the plans, as in ``nnUNetv2_train -p``.
        folders: where the images lie; by default ``imagesUn`` of the raw dataset.
        num_processes: how many images are preprocessed at a time.
        overwrite: preprocess again what is done already.

    Returns:
        The images that could not be preprocessed, one entry for each configuration. The others are done.

    Raises:
        ValueError: an argument does not fit the dataset, or images do not fit the plans or the labeled cases.
        OSError: something is missing or cannot be written, or a worker process was killed.
    """
    if num_processes < 1:
        raise ValueError(f"The number of processes must be at least 1, not {num_processes}")
    found = Dataset.find(dataset, plans_name)
    name, plans_manager, dataset_json = found.name, found.plans, found.dataset_json
    chosen = _choose_configurations(name, plans_manager, configurations)
    images = find_images(folders or [os.path.join(raw_folder(name), IMAGES_FOLDER)], dataset_json["file_ending"])
    _check_unlabeled(name, images)
    for manager in chosen.values():
        fingerprint = preprocessing_fingerprint(plans_manager, manager, dataset_json)
        _prepare_folder(_folder(name, manager), fingerprint, images, overwrite)
    failures = []
    for configuration, manager in chosen.items():
        folder = _folder(name, manager)
        jobs = [_Job(case, files, folder, plans_manager, manager, dataset_json) for case, files in images.items()]
        failures += _preprocess_configuration(configuration, folder, jobs, num_processes)
    return failures


def _folder(dataset_name: str, manager: ConfigurationManager) -> str:
    return unlabeled_folder(os.path.join(preprocessed_folder(dataset_name), manager.data_identifier))


def _choose_configurations(
    dataset_name: str, plans_manager: PlansManager, configurations: Sequence[str] | None
) -> dict[str, ConfigurationManager]:
    available = plans_manager.available_configurations
    unknown = [name for name in configurations or () if name not in available]
    if unknown:
        raise ValueError(
            f"The plans {plans_manager.plans_name} have no configuration {', '.join(unknown)}; "
            f"they have {', '.join(available)}"
        )
    labeled = labeled_folders(dataset_name)
    managers = {name: plans_manager.get_configuration(name) for name in configurations or available}
    # several configurations may share one folder of preprocessed data
    names = {manager.data_identifier: name for name, manager in reversed(managers.items())}
    chosen = [names[folder] for folder in names if configurations or folder in labeled]
    if not chosen:
        raise FileNotFoundError(
            f"No configuration of the plans {plans_manager.plans_name} has preprocessed labeled cases; run this first: "
            f"nnUNetv2_preprocess -d {dataset_id(dataset_name)} -plans_name {plans_manager.plans_name}"
        )
    return {name: manager for name, manager in managers.items() if name in chosen}


def _check_unlabeled(dataset_name: str, cases: Collection[str]) -> None:
    labeled = set().union(*labeled_folders(dataset_name).values())
    both = sorted(labeled.intersection(cases))
    if both:
        raise ValueError(
            f"Some images are among the labeled cases of {dataset_name} too ({shorten(both)}); take them out of "
            f"{IMAGES_FOLDER}, or out of imagesTr and preprocess the labeled cases again"
        )


def _prepare_folder(folder: str, fingerprint: str, cases: Collection[str], overwrite: bool) -> None:
    """Leave in ``folder`` only what may stay, and note there how its images are preprocessed."""
    done = list_preprocessed(folder)
    is_same = read_fingerprint(folder) == fingerprint
    if done and not is_same and not overwrite:
        raise ValueError(
            f"The images in {folder} were preprocessed with other plans; to preprocess them all again, add --overwrite"
        )
    incomplete = Path(folder, INCOMPLETE_FOLDER)
    shutil.rmtree(incomplete, ignore_errors=True)
    for case in done if overwrite else ():
        if case in cases or not is_same:
            Path(folder, f"{case}.b2nd").unlink()
            Path(folder, f"{case}.pkl").unlink(missing_ok=True)
    incomplete.mkdir(parents=True, exist_ok=True)
    if not is_same:
        (incomplete / FINGERPRINT_FILE).write_text(json.dumps({"fingerprint": fingerprint}))
        os.replace(incomplete / FINGERPRINT_FILE, Path(folder, FINGERPRINT_FILE))


def _preprocess_configuration(
    configuration: str, folder: str, jobs: Sequence[_Job], num_processes: int
) -> list[Failure]:
    there = list_preprocessed(folder)
    done = set(there).difference(find_damaged(folder, there, jobs[0].dataset_json))
    todo = [job for job in jobs if job.case not in done]
    failures = []
    with tqdm(total=len(todo), desc=configuration) as progress:
        for case, reason in _run(todo, num_processes):
            if reason is not None:
                failures.append(Failure(case, configuration, reason))
            progress.update()
    shutil.rmtree(os.path.join(folder, INCOMPLETE_FOLDER), ignore_errors=True)
    print(
        f"{configuration}: {len(todo) - len(failures)} images preprocessed, {len(jobs) - len(todo)} were done before, "
        f"{len(failures)} failed; they are in {folder}"
    )
    return sorted(failures, key=lambda failure: failure.case)


def _run(jobs: Sequence[_Job], num_processes: int) -> Iterator[tuple[str, str | None]]:
    if num_processes == 1 or len(jobs) < 2:
        yield from map(_preprocess_case, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_processes, len(jobs)), context, _start_worker) as executor:
        try:
            for future in as_completed([executor.submit(_preprocess_case, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "A worker process was killed, most often because the memory was full; run the same command again with "
                "fewer processes (-np), the images that are done are kept"
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end with it: the workers of a killed process wait for ever otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _preprocess_case(job: _Job) -> tuple[str, str | None]:
    """Preprocess one image; return its case, and why that failed or None.

    Raises:
        OSError: the data cannot be written, so that no other image can be either.
    """
    incomplete = os.path.join(job.folder, INCOMPLETE_FOLDER)
    with tempfile.TemporaryDirectory(dir=incomplete, ignore_cleanup_errors=True) as temporary:
        target = os.path.join(temporary, job.case)
        reason = _write_case(job, target)
        if reason is None:
            os.replace(target + ".pkl", os.path.join(job.folder, job.case + ".pkl"))
            os.replace(target + ".b2nd", os.path.join(job.folder, job.case + ".b2nd"))
        return job.case, reason


class _UnusableError(Exception):
    """An image is readable, but of no use."""


def _preprocessor(job: _Job) -> Any:
    """Return nnU-Net's preprocessor, which looks at the image first: reading it twice would take too long."""
    num_channels = len(channel_names(job.dataset_json))

    class Preprocessor(job.configuration_manager.preprocessor_class):  # type: ignore[name-defined]
        def run_case_npy(self, data: np.ndarray, seg: None, properties: dict[str, Any], *settings: Any) -> Any:
            defect = find_data_defect(
                data,
                properties["spacing"],
                job.plans_manager.transpose_forward,
                job.configuration_manager.spacing,
                job.configuration_manager.median_image_size_in_voxels,
                num_channels,
            )
            if defect is not None:
                raise _UnusableError(defect)
            return super().run_case_npy(data, seg, properties, *settings)

    return Preprocessor(verbose=False)


def _write_case(job: _Job, target: str) -> str | None:
    try:
        defect = find_defect(job.case, job.images, len(channel_names(job.dataset_json)))
        if defect is not None:
            return defect
        _preprocessor(job).run_case_save(
            target, job.images, None, job.plans_manager, job.configuration_manager, job.dataset_json
        )
        data = blosc2.open(target + ".b2nd", mode="r", dparams={"nthreads": 1})
        is_finite = all(np.isfinite(data[channel]).all() for channel in range(data.shape[0]))
        return None if is_finite else "contains NaN or Inf values"
    except _UnusableError as defect:
        return str(defect)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if reason == "RuntimeError: ":  # of nnU-Net's readers, which print what they mean
            reason = "the images of its channels differ in shape or spacing; export them again on the same grid"
        if not os.path.exists(target + ".b2nd"):  # which is made only once the images are read and processed
            return reason
        raise OSError(
            f"Cannot write to {job.folder} ({reason}), most often because the disk is full; make room and run the same "
            f"command again, the images that are done are kept"
        ) from None
