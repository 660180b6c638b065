"""Wrong values and damaged files: every command ends in one sentence, with what is wrong and what to do."""

import errno
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from helpers import TinyDataset, make_trainer, make_volume, write_image
from PIL import Image

import nnunetv2_micd
from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.benchmark.records import read_record
from nnunetv2_micd.cli.main import errors_in_one_sentence, main
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessing import preprocess_unlabeled
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.utils.checkpoint_files import read_checkpoint
from nnunetv2_micd.utils.locks import hold_lock

Damage = Callable[[TinyDataset], Any]
Run = Callable[[str], str]

NAN, INF = float("nan"), float("inf")
DEEP = b"[" * 100_000
VOLUME = make_volume(3, (20, 22, 26))[0]


@pytest.fixture(autouse=True)
def sound_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunetv2_micd, "EXT_TRAINER_BEFORE_IMPORT", TRAINER_FOLDER)


@pytest.fixture
def run(dataset: TinyDataset, capfd: pytest.CaptureFixture) -> Run:
    """Run a command that must fail, and return its last line; of the doctor, all lines."""

    def call(command: str) -> str:
        places = {"root": dataset.root, "raw": dataset.raw, "images": dataset.images, "results": dataset.results}
        with pytest.raises(SystemExit) as stop:
            main(command.format(**places).split())
        printed = "\n".join(capfd.readouterr())
        assert "Traceback" not in printed
        message = str(stop.value.code)
        if command.startswith("doctor"):
            assert message == "1"
            return printed
        assert message.startswith("error: ")
        assert "\n" not in message
        assert "[Errno" not in message
        return message

    return call


# ------------------------------------------------------------------------------------------------- values of options

SPLIT = "split -d 901 -n 2"
EXPORT = "export -d 901 -c 3d_fullres -o {root}/model -f 0 -tr nnUNetTrainer"
BENCHMARK = "benchmark -d 901 -c 3d_fullres -tr nnUNetTrainerMeanTeacher -n 2 -device cpu --epochs 1 --iterations 1"
TUNE = BENCHMARK.replace("benchmark", "tune")
PROFILE = "profile -d 901 -c 3d_fullres -device cpu"
DRAW = "draw -i {images} -p {root}/predicted"

VALUES = {
    **dict.fromkeys(
        [
            f"split -d 901 -n {count}"
            for count in ("-1", "1.5", "0%", "nan%", "%", "1e400%", "5%%", "٣", "1_0", "9" * 5000)
        ],
        'The number of labeled cases must be like "6" or "10%", not "',
    ),
    "split -d 901 -n 100%": "leave none whose labels .* there are 5; label fewer, or hold fewer back with --val",
    **dict.fromkeys([f"{SPLIT} --val {share}" for share in ("nan", "inf", "-0.5")], "must lie between 0 and 1, not "),
    f"{SPLIT} --val 0.99": "there are 0; label fewer, or hold fewer back with --val",
    **dict.fromkeys(
        [f"{command} --seeds {seed}" for command in (SPLIT, BENCHMARK, TUNE) for seed in (-1, 2**32)],
        "A seed must lie between 0 and 4294967295, not (-1|4294967296)",
    ),
    f"{BENCHMARK} -n f0 --seeds -1": "A seed must lie between 0 and 4294967295, not -1",
    **dict.fromkeys(
        [f"{SPLIT} --as-dataset {number}" for number in (0, -5, 1000, 10**20)],
        "A dataset needs a number from 1 to 999, not ",
    ),
    **dict.fromkeys(
        [
            f"split -n 2 -d {name}"
            for name in ("-901", "9.01", "²", "٩٠١", "9" * 5000, "Dataset", "Dataset901", "Dataset901_Tiny/", "/etc")
        ],
        "is neither the number of a dataset nor a name such as Dataset004_Hippocampus",
    ),
    "preprocess -d 901 -c 3d_fullres/": "no configuration 3d_fullres/; they have 2d, 3d_fullres",
    "preprocess -d 901 -p ../x": "There are no plans x.json .*; name one of nnUNetPlans with -p",
    "preprocess -d 901 -num_parts 3": "-part_id is missing, from 0 to 2; say which of the jobs this is",
    "preprocess -d 901 -num_parts 0": "There is no part 0 of 0; -part_id counts from 0",
    "preprocess -d 901 -i {raw}/dataset.json": "There is no folder .*dataset.json; put the unlabeled images there, or",
    f"{EXPORT} -f \u0660": "\u0660 is not a fold; give numbers or all, such as: -f 0 1 2",
    f"{EXPORT} -f 00": "00 is not a fold; give numbers or all, such as: -f 0 1 2",
    f"{EXPORT} -f -1": "-1 is not a fold; give numbers or all, such as: -f 0 1 2",
    f"{EXPORT} --as os": "os is none of nnU-Net's own trainers; use --as nnUNetTrainer",
    f"{DRAW} -n 0": "The number of cases must be at least 1, not 0",
    "draw -i nope -p nope": "There is no dataset.json in nope; name a folder that nnUNetv2_predict has written",
    **dict.fromkeys(
        [f"report -d 901 -o {{root}}/report --tolerance {tolerance}" for tolerance in ("nan", "-1", "inf", "1e400")],
        "The tolerance must be a positive number of millimeters, not ",
    ),
    "report -d 901 -o {root}/report": "There are no finished runs .* make some first: nnUNetv2_micd benchmark -d 901",
    f"{BENCHMARK} --jobs 0": "The number of jobs must be at least 1, not 0",
    f"{BENCHMARK} --executor-options =": "The options = are for an executor; add --executor slurm",
    f"{BENCHMARK} -n f\u0660": 'must be like "6" or "10%", not "f\u0660"',
    f"{BENCHMARK} --longer 1": "must be at least 2 times as long, not 1",
    f"{BENCHMARK} -tr ../x": r"There is no trainer \.\./x; see: nnUNetv2_micd list",
    f"{BENCHMARK} -tr torch": "torch cannot be used as a trainer",
    f"{BENCHMARK} --test nope nope": "There is no folder nope; --test needs one of images and one of their labels",
    **dict.fromkeys(
        [f"{TUNE} --weights 1 {weight}" for weight in ("-1", "nan", "inf", "1/0", "1e400", "0x3")],
        'A weight must be a positive number such as "3" or "1/3", not "',
    ),
    f"{PROFILE} -f 1.5": "A fold is a number or all, not 1.5",
    f"{PROFILE} --rounds 0": "The number of rounds must be at least 1, not 0",
    "dataset -d 0 -n New -i {raw}/imagesTr -l {raw}/labelsTr --channels MR": "needs a number from 1 to 999, not 0",
    "dataset -d 5 -n a/b -i {raw}/imagesTr -l {raw}/labelsTr --channels MR": "letters, digits, - and _ only, not 'a/b'",
    "dataset -d 5 -n New -i {raw}/imagesTr -l nope": "There is no folder nope; name an existing one",
    "dataset -d 5 -n New -i {raw}/dataset.json -l {raw}/labelsTr": "There is no folder .*json; name an existing one",
    "dataset -d 5 -n New -i {images} -l {raw}/labelsTr": "have no label in .*; name the labels like the images",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrong_values_of_options(run: Run) -> None:
    wrong = {command: run(command) for command in VALUES}
    assert [(command, wrong[command]) for command in VALUES if not re.search(VALUES[command], wrong[command])] == []


# ------------------------------------------------------------------------------------------------- JSON files

PREPROCESS = "preprocess -d 901 -c 3d_fullres -np 1"
DOCTOR = "doctor -d 901 -c 3d_fullres"
PLANS, DESCRIPTION = "preprocessed/Dataset901_Tiny/nnUNetPlans.json", "preprocessed/Dataset901_Tiny/dataset.json"
SPLITS, RAW = "preprocessed/Dataset901_Tiny/splits_final.json", "raw/Dataset901_Tiny/dataset.json"
GROUPS = "raw/Dataset901_Tiny/groups.json"


def put(file: str, place: str, value: Any) -> Damage:
    """Change a value in a JSON file; its place is its keys with slashes between them."""

    def damage(dataset: TinyDataset) -> None:
        content = json.loads((dataset.root / file).read_text())
        *keys, last = place.split("/")
        part = content
        for key in keys:
            part = part[key]
        part[last] = value
        (dataset.root / file).write_text(json.dumps(content))

    return damage


def contain(file: str, content: bytes | str) -> Damage:
    return lambda dataset: (dataset.root / file).write_bytes(content.encode() if isinstance(content, str) else content)


def mark(file: str) -> Damage:
    """Let a file begin with a byte order mark, as editors of Windows do."""
    return lambda dataset: (dataset.root / file).write_bytes(b"\xef\xbb\xbf" + (dataset.root / file).read_bytes())


def replace_by_folder(file: str) -> Damage:
    def damage(dataset: TinyDataset) -> None:
        (dataset.root / file).unlink(missing_ok=True)
        (dataset.root / file).mkdir()

    return damage


CONFIGURATION = "configurations/3d_fullres/"
WRONG_PLANS = {
    **{
        f"spacing {value}": (CONFIGURATION + "spacing", value)
        for value in ([NAN, 1, 1], [0, 1, 1], [-1, 1, 1], [INF, 1, 1], ["1", 1, 1], [1, 1], [], None, {}, [1] * 4)
    },
    **{
        f"median size {value}": (CONFIGURATION + "median_image_size_in_voxels", value)
        for value in ([NAN] * 3, [20, 20], [0, 0, 0], "x")
    },
    **{
        f"patch size {value}": (CONFIGURATION + "patch_size", value) for value in ([-16, 20, 24], [16.5, 20, 24], "abc")
    },
    **{f"batch size {value}": (CONFIGURATION + "batch_size", value) for value in (NAN, "2", 2.0)},
    **{
        f"identifier {value!a}": (CONFIGURATION + "data_identifier", value)
        for value in (5, "", "..", "a\0", "a\nb", "\ud800")
    },
    **{
        f"normalization {value}": (CONFIGURATION + "normalization_schemes", value)
        for value in (["ZScoreNormalization"] * 2, [], 5)
    },
    **{f"mask {value}": (CONFIGURATION + "use_mask_for_norm", value) for value in ([], "x")},
    **{f"preprocessor {value}": (CONFIGURATION + "preprocessor_name", value) for value in ("Nope", 3)},
    "resampling": (CONFIGURATION + "resampling_fn_data", "nope"),
    **{
        f"transposition {value}": ("transpose_forward", value)
        for value in ([0, 0, 1], [0, 1, 3], [0, 1], [0.5, 1, 2], "012")
    },
    **{f"name {value}": ("plans_name", value) for value in ("../x", 5)},
    **{f"dataset {value}": ("dataset_name", value) for value in ("Dataset902_Other", 3)},
    **{f"intensities {value}": ("foreground_intensity_properties_per_channel", value) for value in ({}, [], None)},
}
WRONG_DESCRIPTIONS = {
    **{f"ending {value!a}": ("file_ending", value) for value in ("", "nii.gz", "./x", ".\0")},
    **{
        f"labels {value}": ("labels", {"background": 0, **value})
        for value in ({"a": 5}, {"a": -1}, {"a": 10**30}, {}, {"a": None}, {"a": [[1]]}, {"a": 2, "ignore": 1})
    },
}

DAMAGED_FILES: dict[str, tuple[Damage, str, str]] = {
    **{
        f"{name} of {Path(file).name}": (
            damage(file),
            command,
            rf"{Path(file).name}.* (valid JSON|as nnU-Net reads it).*correct",
        )
        for file, command in (
            (PLANS, PREPROCESS),
            (DESCRIPTION, DOCTOR),
            (SPLITS, SPLIT),
            (RAW, f"{SPLIT} --as-dataset 5"),
        )
        for name, damage in {
            "byte order mark": mark,
            "UTF-16": lambda file: contain(file, "{}".encode("utf-16")),
            "depth": lambda file: contain(file, DEEP),
            "digits": lambda file: contain(file, "9" * 5000),
            "no value": lambda file: contain(file, '{"labels":'),
        }.items()
    },
    "folder for splits": (
        replace_by_folder(SPLITS),
        SPLIT,
        "splits_final.json: Is a directory; a file is needed there",
    ),
    **{
        f"groups {content[:9]!r}": (
            contain(GROUPS, content),
            SPLIT,
            r"groups.json is not of the form .*; correct it or del",
        )
        for content in (b"", b"[]", b"null", b"NaN", b'{"case_0": 1}', DEEP)
    },
    "groups of some": (contain(GROUPS, '{"case_0": "a"}'), SPLIT, "no group: case_1, .*; add them, or delete"),
    "one group": (
        contain(GROUPS, json.dumps(dict.fromkeys([f"case_{i}" for i in range(6)], "a"))),
        SPLIT,
        "label fewer",
    ),
    **{
        f"raw cases {name}": (put(RAW, "dataset", value), f"{SPLIT} --as-dataset 5", message)
        for name, value, message in (
            ("list", [], "not as nnU-Net reads it .*; correct it"),
            ("of no image", {"a": {}}, "not as nnU-Net reads it .*; correct it"),
            ("of a number", {"a": {"images": 5, "label": 3}}, "not as nnU-Net reads it .*; correct it"),
            (
                "outside",
                {f"../case_{i}": {"images": ["imagesTr/a"], "label": "b"} for i in range(6)},
                "names of cases .*; correct it",
            ),
            (
                "without files",
                {f"case_{i}": {"images": [f"imagesTr/no_{i}.nii.gz"], "label": "no"} for i in range(6)},
                "Files of .* are missing .*; restore them",
            ),
        )
    },
    "raw ending": (
        put(RAW, "file_ending", ".png"),
        f"{SPLIT} --as-dataset 5",
        "no images named CASE_0000.png; add them",
    ),
    "no raw labels": (
        lambda dataset: shutil.rmtree(dataset.raw / "labelsTr"),
        f"{SPLIT} --as-dataset 5",
        r"Files of .* are missing \(.*case_.*\); restore them",
    ),
    "folder for a record": (
        replace_by_folder("preprocessed/Dataset901_Tiny/nnUNetPlans_3d_fullres_unlabeled/sources.json"),
        PREPROCESS,
        "sources.json: Is a directory; a file is needed there; move the folder away",
    ),
    "folder for a fingerprint": (
        replace_by_folder("preprocessed/Dataset901_Tiny/nnUNetPlans_3d_fullres_unlabeled/unlabeled.json"),
        DOCTOR,
        "preprocess them again: nnUNetv2_micd preprocess -d 901 .* --overwrite",
    ),
    "file for a folder": (
        lambda dataset: (shutil.rmtree(dataset.unlabeled_folder()), dataset.unlabeled_folder().touch()),
        PREPROCESS,
        "_unlabeled: File exists; a folder is needed there; move the file away",
    ),
    "file in a path": (lambda _: None, f"{EXPORT} -o {{raw}}/dataset.json/x", "There is no such training"),
    "long name": (
        lambda dataset: (
            put(PLANS, CONFIGURATION + "data_identifier", "x" * 250)(dataset),
            dataset.labeled_folder().rename(dataset.preprocessed / ("x" * 250)),
        ),
        PREPROCESS,
        "File name too long; choose a shorter name",
    ),
    "other images": (
        lambda dataset: (shutil.rmtree(dataset.images), dataset.images.mkdir(), (dataset.images / "README").touch()),
        PREPROCESS,
        r"are \.nii\.gz files, but those in .* are others, such as README; convert them, or name another",
    ),
}


@pytest.mark.parametrize("what", DAMAGED_FILES)
def test_damaged_files(what: str, dataset: TinyDataset, run: Run) -> None:
    damage, command, words = DAMAGED_FILES[what]
    damage(dataset)
    assert re.search(words, message := run(command)), message
    assert not (dataset.root / "raw" / "Dataset005_Tiny_2labels_seed0").exists()


def test_wrong_plans(dataset: TinyDataset, run: Run) -> None:
    """The plans are blamed, by the doctor as well, and not the images that do not fit them."""
    files = {
        PLANS: (dataset.plans_file, WRONG_PLANS),
        DESCRIPTION: (dataset.preprocessed / "dataset.json", WRONG_DESCRIPTIONS),
    }
    for file, (path, values) in files.items():
        sound = path.read_text()
        for what, (place, value) in values.items():
            put(file, place, value)(dataset)
            for command in (PREPROCESS, DOCTOR):
                message = run(command)
                assert "is not as nnU-Net writes it (" in message, (what, message)
                assert "correct it, or plan the dataset again: nnUNetv2_plan_and_preprocess -d 901" in message, what
            path.write_text(sound)


def record(**values: Any) -> dict[str, Any]:
    """Return the content of a sound record of a run, but for some values."""
    words = dict.fromkeys(("dataset", "configuration", "plans", "trainer", "class", "budget", "plans_hash"), "a")
    numbers = dict.fromkeys(("fold", "seed", "num_unlabeled", "epochs", "iterations"), 1)
    result = {**dict.fromkeys(("predictions", "truth", "checkpoint", "device", "machine"), "a"), "versions": {}}
    run = {"labeled": ["a"], "test_images": None, "test_labels": None, "transductive": False}
    return {**words, **numbers, **result, **run, "status": "done", "error": None, "training_seconds": 1.0, **values}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("training_seconds", value) for value in (NAN, INF, -1, 10**400, "1")),
        *(("epochs", value) for value in (-3, 10**30, 1.5)),
        *(("fold", value) for value in (-1, "5")),
        *(("labeled", value) for value in ([1, "a"], "ab", None)),
        *(("weight", value) for value in ("abc", "1/0", 3)),
        *(("predictions", value) for value in ("", "a\0", "../a", "\ud800")),
        *(("versions", []), ("status", "odd"), ("is_tuning", "yes")),
    ],
)
def test_wrong_records_of_runs(name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "benchmark.json").write_text(json.dumps(record()))
    assert read_record(tmp_path) is not None
    (tmp_path / "benchmark.json").write_text(json.dumps(record(**{name: value})))
    with pytest.raises(
        ValueError, match=rf"benchmark.json is damaged \({name} is .*\); delete the folder .* to repeat"
    ):
        read_record(tmp_path)


# ------------------------------------------------------------------------------------------------- images


def use_reader(dataset: TinyDataset, reader: str, ending: str, channels: int = 1) -> None:
    """Let the images of a dataset be those of another reader; there are none yet."""
    shutil.rmtree(dataset.images)
    dataset.images.mkdir()
    plans = json.loads(dataset.plans_file.read_text())
    intensities = plans["foreground_intensity_properties_per_channel"]
    plans |= {
        "image_reader_writer": reader,
        "foreground_intensity_properties_per_channel": {str(channel): intensities["0"] for channel in range(channels)},
    }
    for name, configuration in plans["configurations"].items():
        shutil.rmtree(dataset.unlabeled_folder(name))
        configuration |= {
            "normalization_schemes": ["ZScoreNormalization"] * channels,
            "use_mask_for_norm": [False] * channels,
        }
    dataset.plans_file.write_text(json.dumps(plans))
    put(DESCRIPTION, "file_ending", ending)(dataset)
    put(DESCRIPTION, "channel_names", {str(channel): "MRI" for channel in range(channels)})(dataset)


def nifti(place: int = 0, value: bytes = b"") -> bytes:
    """Return a NIfTI file with other bytes at a place of its header."""
    header = bytearray(352)
    header[:4] = (348).to_bytes(4, "little")
    header[40:56] = np.array([3, *VOLUME.shape[::-1], 1, 1, 1, 1], "<i2").tobytes()
    header[70:74] = np.array([16, 32], "<i2").tobytes()
    header[76:112] = np.array([1, 1, 1, 1, 1, 1, 1, 1, 352], "<f4").tobytes()
    header[344:348] = b"n+1\0"
    header[place : place + len(value)] = value
    return bytes(header) + VOLUME.astype("<f4").tobytes()


def floats(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def shorts(*numbers: int) -> bytes:
    return np.array(numbers, "<i2").tobytes()


READ = r"cannot be read \(.*\); copy or export it again, or remove it"
CUT = r"is cut off; copy or export it again, or remove it"

HEADERS: dict[str, tuple[bytes, str]] = {
    **{f"offset {value}": (nifti(108, floats(value)), CUT) for value in (NAN, INF, 1e30)},
    **{f"{value} axes": (nifti(40, shorts(value)), READ) for value in (0, 9, -1)},
    "many voxels": (nifti(42, shorts(32767, 32767, 32767)), CUT),
    "negative shape": (nifti(42, shorts(-26)), READ),
    "no type": (nifti(70, shorts(0)), READ),
    "unknown type": (nifti(70, shorts(999)), READ),
    "tiny spacing": (nifti(80, floats(1e-30)), r"correct its spacing, which is .* x 1e-30 in the plans' order"),
    "huge values": (nifti(112, floats(1e38)), "has the value inf everywhere; remove it, or export it again"),
}


def meta(old: str = "", new: str = "") -> bytes:
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 1 1 1\nDimSize = 26 22 20\n"
        "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    assert old in header
    return header.replace(old, new).encode() + VOLUME.astype("<f4").tobytes()


META: dict[str, tuple[bytes, str]] = {
    "cut": (meta()[:-1], READ),
    "half": (meta()[: len(meta()) // 2], READ),
    "header": (meta()[:60], READ),
    "zero spacing": (meta("Spacing = 1", "Spacing = 0"), READ),
    "NaN spacing": (meta("Spacing = 1", "Spacing = nan"), READ),
    "no voxels": (meta("= 26", "= 0"), "has no voxels; remove it|" + READ),
    "many voxels": (meta("26 22 20", "99999 99999 99999"), READ),
    "negative shape": (meta("= 26", "= -6"), READ),
    "unknown type": (meta("FLOAT", "NOPE"), READ),
    "data elsewhere": (meta("LOCAL", "nope.raw"), READ),
    "text": (b"no image", READ),
}


def tiff(array: np.ndarray = VOLUME, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


FORM = r'write into it \{"spacing": \[z, y, x\]\} with the three numbers in mm'
TIFF: dict[str, tuple[bytes, str]] = {
    "2D": (tiff(VOLUME[0]), READ),
    "4D": (tiff(np.stack([VOLUME] * 5)), READ),
    "half": (tiff()[: len(tiff()) // 2], READ),
    "compressed": (tiff(compression="zlib")[:-300], READ),
    "text": (b"no image", READ),
}
SPACINGS: dict[str, tuple[bytes, str]] = {
    **{
        f"spacing {name}": (json.dumps({"spacing": value}).encode(), f"json has the spacing .*; {FORM}")
        for name, value in {
            "zero": [0, 1, 1],
            "NaN": [NAN, 1, 1],
            "negative": [-1, 1, 1],
            "text": ["1", "1", "1"],
            "two": [1, 1],
            "null": None,
            "object": {"x": 1, "y": 1, "z": 1},
        }.items()
    },
    "no spacing": (b"{}", f"json has the spacing None; {FORM}"),
    **{
        name: (content, rf"{name}\.json .*; {FORM}")
        for name, content in {"empty": b"", "list": b"[]", "deep": DEEP, "mark": b"\xef\xbb\xbf{}"}.items()
    },
}


def png(mode: str, size: tuple[int, int] = (28, 24), kind: str = "PNG") -> bytes:
    pixels = np.random.RandomState(0).randint(0, 255, (*size[::-1], 4)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(stream, format=kind)
    return stream.getvalue()


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


PHOTOGRAPHS: dict[str, tuple[bytes, str]] = {
    "transparent": (
        png("RGBA"),
        r"0003 \(the fourth of a photograph is its transparency\), but needs .*; export it with",
    ),
    "gray": (png("L"), "has the channels 0000, but needs 0000, 0001, 0002; export it with these, or remove it"),
    "black and white": (png("1"), "has the channels 0000, but needs"),
    "gray and transparent": (png("LA"), READ),
    "half": (png("RGB")[:999], READ),
    "flipped": (flip(png("RGB")), READ),
    "text": (b"no image", READ),
    "of one pixel": (png("RGB", (1, 1)), "everywhere; remove it, or export it again"),
}


def failures_of(dataset: TinyDataset, images: Mapping[str, bytes], ending: str, configuration: str) -> dict[str, str]:
    for case, content in images.items():
        (dataset.images / f"{case}_0000{ending}").write_bytes(content)
    failures = preprocess_unlabeled(Dataset.find(dataset.id), [configuration], num_processes=1)
    assert all("\n" not in failure.reason for failure in failures)
    return {failure.case: failure.reason for failure in failures}


@pytest.mark.parametrize(
    ("reader", "ending", "images", "sound"),
    [
        (
            "SimpleITKIO",
            ".nii.gz",
            {name: (gzip.compress(content), words) for name, (content, words) in HEADERS.items()},
            gzip.compress(nifti()),
        ),
        ("NibabelIO", ".nii", HEADERS, nifti()),
        ("SimpleITKIO", ".mha", META, meta()),
        ("Tiff3DIO", ".tif", TIFF, tiff()),
        ("NaturalImage2DIO", ".png", PHOTOGRAPHS, png("RGB")),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damaged_images(
    reader: str, ending: str, images: dict[str, tuple[bytes, str]], sound: bytes, dataset: TinyDataset
) -> None:
    is_photograph = reader == "NaturalImage2DIO"
    use_reader(dataset, reader, ending, channels=3 if is_photograph else 1)
    contents = {"sound": sound, **{case: content for case, (content, _) in images.items()}}
    failures = failures_of(dataset, contents, ending, "2d" if is_photograph else "3d_fullres")
    assert failures.keys() == images.keys()
    assert [(case, failures[case]) for case in images if not re.search(images[case][1], failures[case])] == []


def test_spacing_of_a_tiff(dataset: TinyDataset) -> None:
    use_reader(dataset, "Tiff3DIO", ".tif")
    for case, (content, _) in SPACINGS.items():
        (dataset.images / f"{case}.json").write_bytes(content)
    images = dict.fromkeys(["without", *SPACINGS], tiff())
    failures = failures_of(dataset, images, ".tif", "3d_fullres")
    assert failures.keys() == SPACINGS.keys()  # none is needed, where the spacing of the labeled images is 1
    assert [(case, failures[case]) for case in SPACINGS if not re.search(SPACINGS[case][1], failures[case])] == []
    put(PLANS, "original_median_spacing_after_transp", [2.0, 1.0, 1.0])(dataset)
    (dataset.unlabeled_folder() / "without.pkl").unlink()
    assert re.search(rf"has no .*without.json, .*; {FORM}", failures_of(dataset, {}, ".tif", "3d_fullres")["without"])


def test_the_spacing_of_a_message_is_in_the_order_of_the_plans(dataset: TinyDataset) -> None:
    put(PLANS, "transpose_forward", [2, 0, 1])(dataset)
    shutil.rmtree(dataset.unlabeled_folder())
    write_image(dataset.images / "new_0000.nii.gz", VOLUME, (40, 20, 30))  # x, y, z
    reason = failures_of(dataset, {}, ".nii.gz", "3d_fullres")["new"]
    assert "correct its spacing, which is 40 x 30 x 20 in the plans' order" in reason


@pytest.fixture
def odd_files(dataset: TinyDataset) -> list[str]:
    """Files among the images from which nobody can read, or never to an end."""
    places = {name: dataset.images / f"{name}_0000.nii.gz" for name in ("pipe", "zeros", "null", "dangling")}
    os.mkfifo(places["pipe"])
    places["zeros"].symlink_to("/dev/zero")
    places["null"].symlink_to("/dev/null")
    places["dangling"].symlink_to("nowhere")
    return sorted(places)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in the file system")
def test_files_that_are_none(odd_files: list[str], dataset: TinyDataset, run: Run) -> None:
    failures = failures_of(dataset, {}, ".nii.gz", "3d_fullres")
    assert sorted(failures) == odd_files
    assert "is a link to a file that does not exist; restore that file, or remove the link" in failures.pop("dangling")
    assert all("is no ordinary file; replace it by an image, or remove it" in reason for reason in failures.values())
    images, labels = dataset.root / "pipes", dataset.root / "labels"
    images.mkdir()
    labels.mkdir()
    (dataset.images / "pipe_0000.nii.gz").rename(images / "pipe.nii.gz")
    shutil.copy(dataset.raw / "labelsTr" / "case_0.nii.gz", labels / "pipe.nii.gz")
    message = run(f"dataset -d 5 -n New -i {images} -l {labels} --channels MR")
    assert "pipe.nii.gz is no ordinary file; replace it by an image, or remove it" in message


# ------------------------------------------------------------------------------------------------- trainings


def spoil(content: bytes) -> bytes:
    """Change bytes behind the header, which nobody sees before they are decompressed."""
    begin, end = len(content) // 3, 2 * len(content) // 3
    return content[:begin] + bytes(byte ^ 255 for byte in content[begin:end]) + content[end:]


def train(dataset: TinyDataset, fold: int = 0, checkpoint: Path | None = None) -> None:
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset, fold=fold)
    if checkpoint is not None:
        trainer.load_checkpoint(str(checkpoint))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(4):
        trainer.train_step(next(trainer.dataloader_train))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        *(
            (
                f"nnUNetPlans_3d_fullres/case_0{ending}",
                damage,
                r"are missing or damaged \(case_0\); .*nnUNetv2_preprocess",
            )
            for ending in (".pkl", "_seg.b2nd")
            for damage in (lambda content: b"", lambda content: content[:-9])
        ),
        (
            "nnUNetPlans_3d_fullres_unlabeled/image_*.b2nd",
            spoil,
            r"image_\d.b2nd is damaged .*; delete it and its .pkl file, and preprocess its image again",
        ),
    ],
)
def test_damaged_files_of_a_training(
    file: str, damage: Callable[[bytes], bytes], words: str, dataset: TinyDataset
) -> None:
    for path in dataset.preprocessed.glob(file):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        train(dataset)


def test_a_negative_fold_is_not_counted_from_the_last(dataset: TinyDataset) -> None:
    with pytest.raises(ValueError, match="There is no fold -1; folds count from 0"):
        train(dataset, fold=-1)


def test_checkpoints_that_do_not_fit(dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset)
    trainer.initialize()
    path = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    sound = read_checkpoint(path)
    ours = sound["nnunetv2_micd"]
    weights = {name: weight[:1] for name, weight in sound["network_weights"].items()}
    damaged = "is damaged: it does not say which version wrote it; continue from another"
    other = r"does not fit this training \(.*\); continue from another checkpoint, .*, or train anew without --c"
    for content, words in (
        ({"nnunetv2_micd": 5}, damaged),
        ({"nnunetv2_micd": {**ours, "version": None}}, damaged),
        ({"nnunetv2_micd": {"version": ours["version"]}}, other),
        ({"optimizer_state": None}, other),
        ({"network_weights": weights}, other),
    ):
        torch.save({**sound, **content}, path)
        with pytest.raises(ValueError, match=words):
            trainer.load_checkpoint(str(path))


# ------------------------------------------------------------------------------------------------- models and pictures


@pytest.fixture
def model(dataset: TinyDataset) -> Path:
    """Return the checkpoint of a model that no training has made."""
    folder = dataset.results / dataset.name / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    for source, name in ((dataset.plans_file, "plans.json"), (dataset.preprocessed / "dataset.json", "dataset.json")):
        shutil.copy(source, folder / name)
    (folder / "dataset_fingerprint.json").write_text("{}")
    return folder / "fold_0" / "checkpoint_final.pth"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *(
            ({"nnunetv2_micd": ours}, "is damaged: its nnunetv2_micd holds no networks; export another with -chk")
            for ours in (5, [], {"teachers": []}, {"teachers": {"b": 5}})
        ),
        ({"init_args": {}}, "cannot build a network from these plans .*; restore plans.json"),
        ({"init_args": {"configuration": "nope"}}, "cannot build a network from these plans .*; restore plans.json"),
        ({"plans": {}}, "cannot build a network from these plans .*; restore plans.json"),
        ({"plans": []}, "plans.json holds no JSON object, .*; correct or restore it"),
        ({"network_weights": {"weight": torch.ones(1)}}, "builds a different network .*; name with --as"),
    ],
)
def test_models_that_cannot_be_exported(content: dict[str, Any], words: str, model: Path, run: Run) -> None:
    if "plans" in content:
        (model.parent.parent / "plans.json").write_text(json.dumps(content["plans"]))
    sound = {"network_weights": {"w": torch.ones(1)}, "trainer_name": "a", "init_args": {"configuration": "3d_fullres"}}
    torch.save(sound | content, model)
    assert re.search(words, message := run(EXPORT)), message
    assert not (model.parents[4] / "model").exists()


@pytest.fixture
def predicted(dataset: TinyDataset) -> Path:
    """Return a folder as nnUNetv2_predict writes it, for two of the unlabeled images."""
    folder = dataset.root / "predicted"
    folder.mkdir()
    shutil.copy(dataset.plans_file, folder / "plans.json")
    shutil.copy(dataset.preprocessed / "dataset.json", folder)
    for case in dataset.unlabeled[:2]:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset.images / f"{case}_0000.nii.gz")))
        write_image(folder / f"{case}.nii.gz", (image > 150).astype(np.uint8))
    return folder


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("predicted/plans.json", b"{}", "not as nnU-Net writes it .*; predict again"),
        ("predicted/plans.json", b"[]", "plans.json holds no JSON object, .*; correct or restore it"),
        ("predicted/dataset.json", b"{}", "not as nnU-Net writes it .*; predict again"),
        (
            "predicted/dataset.json",
            b'{"file_ending": ".nii.gz", "labels": 5}',
            "not as nnU-Net writes it .*; predict again",
        ),
        ("predicted/dataset.json", DEEP, "dataset.json is not valid JSON .*; correct it or restore it"),
        ("predicted/image_0.nii.gz", b"no image", READ),
        ("predicted/image_0.nii.gz", b"", READ),
        ("raw/Dataset901_Tiny/imagesUn/image_0_0000.nii.gz", b"no image", READ),
    ],
)
def test_predictions_that_cannot_be_drawn(file: str, content: bytes, words: str, predicted: Path, run: Run) -> None:
    contain(file, content)(TinyDataset(predicted.parent))
    assert re.search(words, message := run(f"{DRAW} -o {{root}}/picture.png")), message
    assert not (predicted.parent / "picture.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("-i nope", "nope: No such file or directory; correct the path"),
        ("-o {root}/nope/picture.png", "No such file or directory; correct the path, or make the folder first"),
        ("-o {root}/picture.nope", "'nope' is not supported"),
        ("-o {images}", "imagesUn: Is a directory; a file is needed there"),
        ("-o {raw}/dataset.json/x.png", "Not a directory; a part of this path is a file"),
    ],
)
def test_pictures_that_cannot_be_written(options: str, words: str, predicted: Path, run: Run) -> None:
    assert re.search(words, message := run(f"{DRAW} {options}")), message


def test_a_folder_of_predictions_may_be_called_truth(predicted: Path, dataset: TinyDataset) -> None:
    truth = predicted.rename(predicted.with_name("truth"))
    picture = dataset.root / "picture.png"
    main(["draw", "-i", str(dataset.images), "-p", str(truth), "-l", str(truth), "-o", str(picture)])
    assert picture.is_file()


# ------------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    "folder", ["raw/Dataset901_Tiny/imagesUn", "preprocessed/Dataset901_Tiny/nnUNetPlans_3d_fullres"]
)
def test_the_doctor_reports_beside_a_folder_that_may_not_be_read(
    folder: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    listdir = os.listdir

    def refuse(path: str = ".") -> list[str]:  # as for users; root may read everything
        if os.fspath(path).endswith(folder):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr("os.listdir", refuse)
    with suppress(SystemExit):
        main(["doctor", "-d", "901", "-c", "3d_fullres"])
    printed = capsys.readouterr().out
    assert "nnUNet_results" in printed
    is_needed = folder.endswith("fullres")
    assert ("3d_fullres: Permission denied; change the permissions of this file or its folder" in printed) == is_needed
    assert ("no problems" in printed) != is_needed


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(model))

    model.touch()
    monkeypatch.setattr("torch.load", refuse)
    with pytest.raises(PermissionError):
        read_checkpoint(model)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="there is no folder in which not even root can make a file")
def test_a_place_without_files_is_not_waited_for() -> None:
    with pytest.raises(OSError, match="No such file or directory"), hold_lock("/proc/new.lock", "writing", wait=-1):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 3 GiB"), r"memory is full \(Unable to allocate 3 GiB\); .* fewer processes"),
        (MemoryError(), "The memory is full; end other programs"),
        (ImportError("libtorch.so: failed to map"), "libtorch.so: failed to map; nnUNetv2_micd doctor says what"),
        (KeyboardInterrupt(), "Interrupted; to go on, run the same command again"),
        (
            OSError(5, "Input/output error", "/disk/file"),
            "/disk/file: Input/output error; check this path and its disk",
        ),
        (OSError(21, "Is a directory", "file.1.tmp", None, "file"), "^error: file: Is a directory"),
    ],
)
def test_what_the_machine_does_is_said_in_a_sentence(error: BaseException, words: str) -> None:
    with pytest.raises(SystemExit, match=words), errors_in_one_sentence():
        raise error
