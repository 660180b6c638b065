"""Lays out a public benchmark as a raw nnU-Net dataset, with published lists of labeled cases as its folds.

Each script beside this file knows one download: how its files are named and which lists, if any, were published for it.
This file does the rest for all of them.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_micd.data.derive import check_number
from nnunetv2_micd.data.folders import find_dataset, raw_folder
from nnunetv2_micd.data.groups import GROUPS_FILE
from nnunetv2_micd.data.splits import SPLITS_FILE, Entry, write_splits
from nnunetv2_micd.utils.files import atomic_folder, shorten


@dataclass(frozen=True)
class Files:
    """Files of a case in the download.

    Attributes:
        image: File of the image.
        label: File of its labels.
    """

    image: Path
    label: Path


@dataclass(frozen=True)
class Benchmark:
    """A public dataset and how the literature divides it.

    Attributes:
        name: Name of the nnU-Net dataset, without its number.
        description: Entries of ``dataset.json``, such as ``channel_names``, ``labels`` and ``file_ending``.
        files: Files of all training, validation and test cases.
        train: Training cases, labeled or not.
        val: Validation cases. If there are none, each fold validates on its labeled cases.
        test: Test cases.
        labeled: Lists of labeled training cases by their name in the literature; each list becomes a fold. Without
            lists there is no ``splits_final.json``.
        convert_images: Function that writes the image of a case to a path in the form that nnU-Net needs. By default
            the files are linked as they are.
        convert_labels: The same for the labels.
        groups: Patient of each case, if patients have several.
    """

    name: str
    description: Mapping[str, Any]
    files: Mapping[str, Files]
    train: Sequence[str]
    val: Sequence[str]
    test: Sequence[str]
    labeled: Mapping[str, Sequence[str]]
    convert_images: Callable[[Files, Path], None] | None = None
    convert_labels: Callable[[Files, Path], None] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    def folds(self) -> list[Entry]:
        """Return the entries of ``splits_final.json``."""
        return [
            {
                "train": sorted(labeled),
                "val": sorted(self.val or labeled),
                "unlabeled": sorted(set(self.train).difference(labeled)),
            }
            for labeled in self.labeled.values()
        ]


def run(describe: Callable[[Path], Benchmark], documentation: str, number: int) -> None:
    """Run the command of a script: lay out a benchmark and print the next commands.

    Args:
        describe: Function that returns the benchmark for the folder of a download.
        documentation: Text for ``--help``.
        number: Default number of the dataset.
    """
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("download", type=Path, metavar="DOWNLOAD_FOLDER", help="the unpacked download")
    parser.add_argument(
        "-d", type=int, default=number, metavar="NUMBER", help="number of the dataset; default: %(default)s"
    )
    arguments = parser.parse_args()
    try:
        benchmark = describe(arguments.download.absolute())
        print(summarize(benchmark, lay_out(benchmark, arguments.d)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def read_lists(script: str) -> dict[str, Any]:
    """Return the published lists from the JSON file beside a script. The file also names their source."""
    return dict(json.loads(Path(script).with_suffix(".json").read_text()))


def check_download(download: Path, parts: Sequence[str], what: str) -> None:
    """Check that a folder looks like a certain download.

    Args:
        download: Folder of the unpacked download.
        parts: Patterns of which each must match something in the folder, such as ``*/lgemri.nrrd``.
        what: Name of the dataset, for the message.

    Raises:
        FileNotFoundError: There is no such folder, or a pattern matches nothing.
    """
    if not download.is_dir():
        raise FileNotFoundError(f"There is no folder {download}; name the folder of the unpacked download of {what}")
    for part in parts:
        if next(download.glob(part), None) is None:
            raise FileNotFoundError(
                f"{download} is not the download of {what}, as it has no {part}; name the folder with "
                f"{' and '.join(parts)} in it"
            )


def lay_out(benchmark: Benchmark, number: int) -> Path:
    """Make the raw dataset from the download, and ``splits_final.json`` from the published lists, if there are any.

    Args:
        benchmark: The benchmark.
        number: Number of the new dataset, 1 to 999.

    Returns:
        Folder of the raw dataset.

    Raises:
        ValueError: The number is taken or not allowed, a variable of nnU-Net is not set, or images or labels cannot be
            converted.
        OSError: Files are missing in the download, or the dataset cannot be written.
    """
    name = f"Dataset{number:03d}_{benchmark.name}"
    raw = raw_folder(name)
    find_dataset(name)  # raises if nnUNet_preprocessed is not set
    check_number(number, name)
    _check_files(benchmark)
    description = {
        **benchmark.description,
        "name": benchmark.name,
        "numTraining": len(benchmark.train) + len(benchmark.val),
    }
    try:
        with ExitStack() as folders:
            incomplete = folders.enter_context(atomic_folder(raw))
            _write_cases(benchmark, [*benchmark.train, *benchmark.val], incomplete, "Tr")
            _write_cases(benchmark, benchmark.test, incomplete, "Ts")
            (incomplete / "dataset.json").write_text(json.dumps(description, indent=4) + "\n")
            if benchmark.groups:
                (incomplete / GROUPS_FILE).write_text(json.dumps(benchmark.groups, indent=4) + "\n")
            if benchmark.labeled:
                preprocessed = folders.enter_context(atomic_folder(Path(nnUNet_preprocessed, name)))
                write_splits(benchmark.folds(), preprocessed / SPLITS_FILE)
    except OSError as error:
        raise OSError(f"Cannot make {raw} from the download ({error})") from error
    return raw


def _check_files(benchmark: Benchmark) -> None:
    cases = [*benchmark.train, *benchmark.val, *benchmark.test]
    for kind, noun in (("image", "images"), ("label", "labels")):
        files = {case: getattr(benchmark.files[case], kind) for case in cases}
        missing = [case for case, file in files.items() if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"The download lacks the {noun} of {len(missing)} of the {len(cases)} cases "
                f"({shorten(missing)}), such as {files[missing[0]]}; complete it, or unpack it again"
            )


def _write_cases(benchmark: Benchmark, cases: Sequence[str], folder: Path, part: str) -> None:
    ending = benchmark.description["file_ending"]
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    if not cases:
        return
    images.mkdir(parents=True)
    labels.mkdir()
    for case in tqdm(cases, f"labels{part}", disable=benchmark.convert_labels is None):
        files = benchmark.files[case]
        image, label = images / f"{case}_0000{ending}", labels / f"{case}{ending}"
        if benchmark.convert_images is None:
            image.symlink_to(files.image)
        else:
            benchmark.convert_images(files, image)
        if benchmark.convert_labels is None:
            label.symlink_to(files.label)
        else:
            benchmark.convert_labels(files, label)


def summarize(benchmark: Benchmark, raw: Path) -> str:
    """Return a summary of the raw dataset and the next commands."""
    number = int(raw.name[7:10])
    if not benchmark.labeled:
        configuration = "2d" if benchmark.description["file_ending"] == ".png" else "3d_fullres"
        return "\n".join(
            [
                f"{raw} is complete, with {len(benchmark.train)} cases. Next, labeled and test cases drawn by seed:",
                f"nnUNetv2_plan_and_preprocess -d {number} -c {configuration} --verify_dataset_integrity",
                f"nnUNetv2_micd benchmark -d {number} -c {configuration} -tr nnUNetTrainerSelfTraining -n 10 20",
            ]
        )
    images, labels = (shlex.quote(str(raw / folder)) for folder in ("imagesTs", "labelsTs"))
    folds = [
        f"fold {fold}: {list_name}, {len(entry['train'])} cases labeled, {len(entry['unlabeled'])} unlabeled, "
        f"{len(entry['val'])} for validation" + ("" if benchmark.val else " (the labeled ones)")
        for fold, (list_name, entry) in enumerate(zip(benchmark.labeled, benchmark.folds(), strict=True))
    ]
    options = f"-d {number} -c 3d_fullres -f 0 -tr nnUNetTrainerMICD"
    return "\n".join(
        [
            f"{raw} is complete, with {len(benchmark.test)} test cases, and these folds:",
            *folds,
            "Next, for each fold and trainer (nnUNetTrainer is supervised training):",
            f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity",
            f"nnUNetv2_train {number} 3d_fullres 0 -tr nnUNetTrainerMICD",
            f"nnUNetv2_predict -i {images} -o PREDICTIONS {options}",
            f"nnUNetv2_evaluate_folder {labels} PREDICTIONS -djfile PREDICTIONS/dataset.json "
            "-pfile PREDICTIONS/plans.json",
            "Or for several trainers, seeds and folds at once:",
            f"nnUNetv2_micd benchmark -d {number} -c 3d_fullres -tr nnUNetTrainerMICD -n f0 --test {images} {labels}",
        ]
    )
