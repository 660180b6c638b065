"""Lays out a public benchmark as a raw nnU-Net dataset with the published lists of labeled cases as its folds.

What the scripts beside this file share: each of them knows one download, how its files are named, and the lists.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_micd.data.derive import check_number
from nnunetv2_micd.data.folders import find_dataset, raw_folder
from nnunetv2_micd.data.splits import Entry, write_splits
from nnunetv2_micd.utils.files import shorten


@dataclass(frozen=True)
class Files:
    """Where the image of a case and its labels lie in the download."""

    image: Path
    label: Path


@dataclass(frozen=True)
class Benchmark:
    """A public dataset and how the literature divides it.

    Attributes:
        name: of the nnU-Net dataset, without its number.
        description: of the images, for ``dataset.json``: ``channel_names``, ``labels``, ``file_ending`` and the like.
        files: of each case, training, validation and test cases alike.
        train: the training cases, labeled or not.
        val: the validation cases; where there are none, the labeled cases of a fold are its validation cases, too.
        test: the test cases.
        labeled: the labeled ones among the training cases, a fold for each list, by its name in the literature.
        convert_labels: writes the labels of a case as nnU-Net needs them to a path; by default they are linked.
    """

    name: str
    description: Mapping[str, Any]
    files: Mapping[str, Files]
    train: Sequence[str]
    val: Sequence[str]
    test: Sequence[str]
    labeled: Mapping[str, Sequence[str]]
    convert_labels: Callable[[Files, Path], None] | None = None

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
    """Be a command: lay out a benchmark of a download, and print what comes next.

    Args:
        describe: returns the benchmark of a download.
        documentation: of the command.
        number: the default number of the dataset.
    """
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("download", type=Path, metavar="DOWNLOAD_FOLDER", help="the unpacked download")
    parser.add_argument("-d", type=int, default=number, metavar="NUMBER", help="of the dataset; default: %(default)s")
    arguments = parser.parse_args()
    try:
        benchmark = describe(arguments.download.absolute())
        print(summarize(benchmark, lay_out(benchmark, arguments.d)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def read_lists(script: str) -> dict[str, Any]:
    """Return the published lists in the JSON file beside a script, which names their source."""
    return dict(json.loads(Path(script).with_suffix(".json").read_text()))


def check_download(download: Path, parts: Sequence[str], what: str) -> None:
    """Check that a folder looks like a certain download.

    Raises:
        FileNotFoundError: one of ``parts``, patterns such as ``*/lgemri.nrrd``, is not in the folder.
    """
    if not download.is_dir():
        raise FileNotFoundError(f"There is no folder {download}; name that of the unpacked download of {what}")
    for part in parts:
        if next(download.glob(part), None) is None:
            raise FileNotFoundError(
                f"{download} is not the download of {what}, as it has no {part}; name the folder with "
                f"{' and '.join(parts)} in it"
            )


def lay_out(benchmark: Benchmark, number: int) -> Path:
    """Make the raw dataset, of links to the download, and ``splits_final.json`` in its preprocessed folder.

    Args:
        benchmark: which one.
        number: of the new dataset, 1 to 999.

    Returns:
        The folder of the raw dataset.

    Raises:
        ValueError: the number is taken or none that a dataset can have, a variable of nnU-Net is not set, or labels
            cannot be converted.
        OSError: files are missing in the download, or the dataset cannot be written.
    """
    name = f"Dataset{number:03d}_{benchmark.name}"
    raw = Path(raw_folder(name))
    find_dataset(name)  # says where nnUNet_preprocessed is not set
    check_number(number, name)
    _check_files(benchmark)
    incomplete = raw.with_name(f"incomplete_{name}")  # so that nnU-Net never sees half of it
    shutil.rmtree(incomplete, ignore_errors=True)
    try:
        _write_cases(benchmark, [*benchmark.train, *benchmark.val], incomplete, "Tr")
        _write_cases(benchmark, benchmark.test, incomplete, "Ts")
        description = {
            **benchmark.description,
            "name": benchmark.name,
            "numTraining": len(benchmark.train) + len(benchmark.val),
        }
        (incomplete / "dataset.json").write_text(json.dumps(description, indent=4) + "\n")
        preprocessed = Path(nnUNet_preprocessed, name)
        preprocessed.mkdir()  # is not there, or the number would be taken; so no other splits are overwritten
        try:
            write_splits(benchmark.folds(), preprocessed / "splits_final.json")
            incomplete.replace(raw)
        except OSError:
            shutil.rmtree(preprocessed)  # or the number would be taken when the command is repeated
            raise
    except OSError as error:
        raise OSError(f"Cannot make {raw} with links to the download ({error})") from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return raw


def _check_files(benchmark: Benchmark) -> None:
    cases = [*benchmark.train, *benchmark.val, *benchmark.test]
    for kind, noun in (("image", "images"), ("label", "labels")):
        files = {case: getattr(benchmark.files[case], kind) for case in cases}
        missing = [case for case, file in files.items() if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"The download lacks the {noun} of {len(missing)} of the {len(cases)} cases in the published lists "
                f"({shorten(missing)}), such as {files[missing[0]]}; complete it, or unpack it again"
            )


def _write_cases(benchmark: Benchmark, cases: Sequence[str], folder: Path, part: str) -> None:
    ending = benchmark.description["file_ending"]
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    images.mkdir(parents=True)
    labels.mkdir()
    for case in tqdm(cases, f"labels{part}", disable=benchmark.convert_labels is None):
        files = benchmark.files[case]
        (images / f"{case}_0000{ending}").symlink_to(files.image)
        label = labels / f"{case}{ending}"
        if benchmark.convert_labels is None:
            label.symlink_to(files.label)
        else:
            benchmark.convert_labels(files, label)


def summarize(benchmark: Benchmark, raw: Path) -> str:
    """Return what has been made in the folder ``raw``, and the commands that come next."""
    number = int(raw.name[7:10])
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
            "Next, for each fold and trainer, nnUNetTrainer for supervised training among them:",
            f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity",
            f"nnUNetv2_train {number} 3d_fullres 0 -tr nnUNetTrainerMICD",
            f"nnUNetv2_predict -i {images} -o PREDICTIONS {options}",
            f"nnUNetv2_evaluate_folder {labels} PREDICTIONS -djfile PREDICTIONS/dataset.json "
            "-pfile PREDICTIONS/plans.json",
            "Or at once for several trainers, seeds and folds:",
            f"nnUNetv2_micd benchmark -d {number} -c 3d_fullres -tr nnUNetTrainerMICD -n f0 --test {images} {labels}",
        ]
    )
