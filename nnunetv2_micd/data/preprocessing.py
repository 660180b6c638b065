"""Preprocesses images without labels as nnU-Net preprocesses the labeled ones, into a folder beside theirs.

A run may be killed at any moment and started again. Each case is written to a temporary folder, read back and moved to
its place with its ``.pkl`` last, so an image with a ``.pkl`` is complete.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from nnunetv2.configuration import default_num_processes
from tqdm import tqdm

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.folders import labeled_folders
from nnunetv2_micd.data.groups import copy_groups, describe_units, group_cases, load_groups
from nnunetv2_micd.data.orientations import describe_turned
from nnunetv2_micd.data.preprocessed import find_damaged, find_unfinished, list_preprocessed
from nnunetv2_micd.data.preprocessing_folder import (
    ALL_IMAGES,
    INCOMPLETE_FOLDER,
    Part,
    lock_folders,
    prepare_folder,
    record_defects,
    remove_labeled,
)
from nnunetv2_micd.data.preprocessing_job import PreprocessingJob, preprocess_case
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, find_images, find_unused
from nnunetv2_micd.data.splits import write_folds_unlike_nnunet
from nnunetv2_micd.utils.devices import count_cores
from nnunetv2_micd.utils.files import shorten
from nnunetv2_micd.utils.wording import counted

DEFAULT_NUM_PROCESSES = min(default_num_processes, count_cores())
"""nnU-Net's default (8, or ``nnUNet_def_n_proc``), but at most one process for each core."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be preprocessed.

    Attributes:
        case: Identifier of the image, or the name of its file if that is not named like an image.
        configuration: Name of the configuration, or "images" if it was not tried.
        reason: What is wrong with the image.
    """

    case: str
    configuration: str
    reason: str


def preprocess_unlabeled(
    dataset: Dataset,
    configurations: Sequence[str] | None = None,
    folders: Sequence[str] | None = None,
    num_processes: int = DEFAULT_NUM_PROCESSES,
    overwrite: bool = False,
    part: Part = ALL_IMAGES,
) -> list[Failure]:
    """Preprocess the unlabeled images of a dataset. Images that are done already are skipped.

    With more than one process, a script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        dataset: Dataset with the plans.
        configurations: Names of configurations, such as ``["3d_fullres"]``. Default: all configurations whose labeled
            cases are preprocessed.
        folders: Folders of the images. Default: ``imagesUn`` of the raw dataset.
        num_processes: Number of images that are preprocessed at the same time.
        overwrite: Whether to preprocess images again that are done already.
        part: The images to take, when several jobs share the work. Jobs of different parts may run at the same time.

    Returns:
        Images that could not be preprocessed, one entry for each configuration. All others are done.

    Raises:
        ValueError: An argument does not fit the dataset, or images do not fit the plans or the labeled cases.
        OSError: Something is missing or cannot be written, or a worker process was killed.

    Examples:
        >>> preprocess_unlabeled(Dataset.find(4), ["3d_fullres"], num_processes=4)  # doctest: +SKIP
        [Failure(case='patient_7', configuration='3d_fullres', reason='... is cut off or damaged')]
    """
    if num_processes < 1:
        raise ValueError(f"The number of processes must be at least 1, not {num_processes}")
    labeled = labeled_folders(dataset.name)
    chosen = choose_configurations(dataset, labeled, configurations)
    groups = load_groups(dataset.name)
    # Where the configurations hold different cases, one of them is out of date, most often as labels were added.
    folds_of = max((labeled.get(dataset.configuration(name).data_identifier, []) for name in chosen), key=len)
    if not dataset.splits_file.is_file():
        group_cases(folds_of, groups)  # an incomplete file is noticed before the work, and before it is copied
    copy_groups(dataset.name)
    if not folders:
        folders = [str(dataset.raw / IMAGES_FOLDER)]
        if _have_all_got_labels(dataset, chosen, labeled):
            return []
        if not _holds_files(folders[0]) and _make_folds(dataset, folds_of, groups):
            print(f"There are no unlabeled images in {folders[0]} to preprocess.")
            return []
    images = find_images(folders, dataset.file_ending)
    unused = f"is not used, because it is not named CASE_0000{dataset.file_ending}; rename or remove it"
    # The first part reports them for all.
    left_out = [] if part.id else find_unused(folders, dataset.file_ending)
    failures = [Failure(file, "images", unused) for file in left_out]
    _check_unlabeled(dataset, labeled, images)
    cases = part.select(sorted(images))
    with lock_folders(dataset, chosen, part):
        for configuration in chosen:
            prepare_folder(dataset, configuration, images, cases, overwrite, part)
        for configuration in chosen:
            incomplete = part.file(INCOMPLETE_FOLDER)
            jobs = [PreprocessingJob(dataset, configuration, case, images[case], incomplete) for case in cases]
            failures += _preprocess_configuration(dataset, configuration, jobs, num_processes)
    if found := describe_turned(dataset, chosen[0]):  # the other configurations are made of the same images
        print("Warning: " + "; ".join(found), file=sys.stderr)
    _make_folds(dataset, folds_of, groups)
    return failures


def _have_all_got_labels(dataset: Dataset, chosen: Sequence[str], labeled: Mapping[str, Collection[str]]) -> bool:
    """Return True if ``imagesUn`` is empty because its images have got labels, and remove what was made of these."""
    folder = dataset.raw / IMAGES_FOLDER
    if not folder.is_dir() or _holds_files(folder):
        return False
    cases = set().union(*labeled.values())
    removed = sorted({case for name in chosen for case in remove_labeled(dataset, name, cases)})
    if removed:
        print(f"{folder} is empty. No longer among the unlabeled images, as they have labels: {shorten(removed)}")
    return bool(removed)


def _holds_files(folder: str | os.PathLike[str]) -> bool:
    return os.path.isdir(folder) and any(not name.startswith(".") for name in os.listdir(folder))


def _make_folds(dataset: Dataset, cases: Sequence[str], groups: Mapping[str, str]) -> int:
    """Make the folds of few labeled cases or of groups, so that nnU-Net's own trainer has them too; return how many."""
    if dataset.splits_file.is_file() or len(group_cases(cases, groups)) < 2:
        return 0
    folds = write_folds_unlike_nnunet(cases, dataset.splits_file, groups)
    if folds:
        print(f"{dataset.splits_file.name}: {folds} folds of {describe_units(cases, groups)}")
    return folds


def choose_configurations(
    dataset: Dataset, labeled: Collection[str], configurations: Sequence[str] | None = None
) -> list[str]:
    """Return the configurations to preprocess, one for each folder of preprocessed data.

    Args:
        dataset: The dataset.
        labeled: Names of the folders of preprocessed labeled cases.
        configurations: Names of configurations. Default: those whose labeled cases are preprocessed.

    Raises:
        ValueError: The plans have no such configuration.
        FileNotFoundError: No labeled cases are preprocessed.
    """
    plans_name, available = dataset.plans.plans_name, dataset.plans.available_configurations
    unknown = [name for name in configurations or () if name not in available]
    if unknown:
        raise ValueError(
            f"The plans {plans_name} have no configuration {', '.join(unknown)}; they have {', '.join(available)}"
        )
    candidates = list(dict.fromkeys(configurations or available))
    # Several configurations may share a folder, such as those that differ in the batch size only; the first one counts.
    first_of_folder = {dataset.configuration(name).data_identifier: name for name in reversed(candidates)}
    chosen = {name for folder, name in first_of_folder.items() if configurations or folder in labeled}
    if not chosen:
        raise FileNotFoundError(
            f"No configuration of the plans {plans_name} has preprocessed labeled cases; run this first: "
            f"nnUNetv2_preprocess -d {dataset.number} -plans_name {plans_name}"
        )
    return [name for name in candidates if name in chosen]


def _check_unlabeled(dataset: Dataset, labeled: Mapping[str, Sequence[str]], images: Collection[str]) -> None:
    both = sorted(set().union(*labeled.values()).intersection(images))
    if both:
        raise ValueError(
            f"Some images are among the labeled cases of {dataset.name} too ({shorten(both)}); take them out of "
            f"{IMAGES_FOLDER}, or out of imagesTr and preprocess the labeled cases again"
        )


def _preprocess_configuration(
    dataset: Dataset, configuration: str, jobs: Sequence[PreprocessingJob], num_processes: int
) -> list[Failure]:
    folder = dataset.unlabeled_folder(configuration)
    present = list_preprocessed(folder)
    done = set(present).difference(
        find_unfinished(folder, present), find_damaged(folder, present, dataset.dataset_json)
    )
    todo = [job for job in jobs if job.case not in done]
    if interrupted := _interrupted(todo):
        print(f"Tried last, as an earlier run was killed while it worked on them: {shorten(interrupted)}")
        todo.sort(key=lambda job: job.case in interrupted)
    failures = []
    with tqdm(total=len(todo), desc=configuration) as progress:
        for case, reason in _run(todo, num_processes):
            if reason is not None:
                failures.append(Failure(case, configuration, reason))
            progress.update()
    record_defects(folder, todo, {failure.case: failure.reason for failure in failures})
    if jobs:
        shutil.rmtree(folder / jobs[0].incomplete, ignore_errors=True)
    print(
        f"{configuration}: {counted(len(todo) - len(failures), 'image')} preprocessed, {len(jobs) - len(todo)} were "
        f"done before, {len(failures)} failed; they are in {folder}"
    )
    return sorted(failures, key=lambda failure: failure.case)


def _interrupted(jobs: Sequence[PreprocessingJob]) -> list[str]:
    """Return the images that were worked on when this or an earlier run was killed."""
    return [job.case for job in jobs if job.temporary.is_dir()]


def _run(jobs: Sequence[PreprocessingJob], num_processes: int) -> Iterator[tuple[str, str | None]]:
    """Run the jobs; yield case and defect in the order in which they end."""
    if num_processes == 1 or len(jobs) < 2:
        yield from map(preprocess_case, jobs)
        return
    # "fork" can hang in a process that has threads, as torch and blosc2 have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_processes, len(jobs)), context, _start_worker) as executor:
        try:
            for future in as_completed([executor.submit(preprocess_case, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool:
            interrupted = _interrupted(jobs)  # none if it was killed as it started
            cause = "; those that may be the cause come last then, crop or remove one that is killed with -np 1, too: "
            raise ChildProcessError(
                "A worker process was killed, most often because the memory was full; run the same command again with "
                "fewer processes (-np), the images that are done are kept"
                + (cause + shorten(interrupted) if interrupted else "")
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process and end with it: workers of a killed process would wait forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
