"""The scripts in ``examples/datasets`` on downloads of tiny files with the names of the real ones."""

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import MICD, Shell, TinyDataset, make_volume, write_image
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from skimage import io

from nnunetv2_micd.data.splits import load_splits

SCRIPTS = Path(__file__).parents[2] / "examples" / "datasets"
NUMBERS = {"amos": 701, "synapse": 702, "left_atrium": 703, "acdc": 704}
FOLDERS = {"amos": "AMOS", "synapse": "Synapse", "left_atrium": "LeftAtrium", "acdc": "ACDC"}


@pytest.fixture(params=NUMBERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    """Return nnU-Net's folders, with nothing in them."""
    folders = TinyDataset(tmp_path / "nnunet")
    folders.root.mkdir()
    folders.set_environment(monkeypatch)
    return folders


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def list_cases(name: str, part: str) -> list[str]:
    return list(json.loads((SCRIPTS / f"{name}.json").read_text()).get(part, []))


def make_download(name: str, folder: Path, shape: tuple[int, int, int] = (6, 7, 8)) -> Path:
    """Make a folder with the files of a download, all with the same image and the same labels."""
    ending = ".nrrd" if name == "left_atrium" else ".nii.gz"
    image, label = folder.with_name(f"image{ending}"), folder.with_name(f"label{ending}")
    voxels, labels = make_volume(0, shape)
    write_image(image, voxels, (2, 1, 1))
    write_image(label, 255 * (labels > 0).astype(np.uint8) if name == "left_atrium" else labels, (2, 1, 1))
    for number, case in enumerate(case for part in ("train", "val", "test") for case in list_cases(name, part)):
        for file, target in zip((image, label), find_files(name, folder, case, number), strict=True):
            for path in target:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, path)
        if name == "acdc":
            text = f"ED: {1 + number % 2}\nES: {9 + number % 5}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
            (folder / "training" / case / "Info.cfg").write_text(text)
            shutil.copy(image, folder / "training" / case / f"{case}_4d.nii.gz")
    return folder


def find_files(name: str, folder: Path, case: str, number: int) -> tuple[list[Path], list[Path]]:
    if name == "amos":
        part = "Va" if case in list_cases(name, "test") else "Tr"
        return [folder / f"images{part}" / f"{case}.nii.gz"], [folder / f"labels{part}" / f"{case}.nii.gz"]
    if name == "synapse":
        training = folder / "Training"
        return [training / "img" / f"img{case}.nii.gz"], [training / "label" / f"label{case}.nii.gz"]
    if name == "left_atrium":
        return [folder / case / "lgemri.nrrd"], [folder / case / "laendo.nrrd"]
    frames = [folder / "training" / case / f"{case}_frame{frame:02d}" for frame in (1 + number % 2, 9 + number % 5)]
    return [Path(f"{frame}.nii.gz") for frame in frames], [Path(f"{frame}_gt.nii.gz") for frame in frames]


def run(name: str, download: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Do what ``python examples/datasets/NAME.py DOWNLOAD_FOLDER`` does, in this process."""
    script = SCRIPTS / f"{name}.py"
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [str(script), str(download), *options])
    exec(compile(script.read_text(), script, "exec"), {"__name__": "__main__", "__file__": str(script), "__doc__": ""})


@pytest.mark.parametrize(
    ("name", "sizes", "labeled"),
    [
        ("amos", (216, 24, 120), {"2 %": 4, "5 %": 10, "10 %": 21}),
        ("synapse", (20, 4, 6), {"10 %": 2, "20 %": 4, "40 %": 8}),
        ("left_atrium", (80, 0, 20), {"first 4": 4, "first 8": 8, "first 16": 16}),
        ("acdc", (140, 20, 40), {"first 3 patients": 6, "first 7 patients": 14}),
    ],
)
def test_lists_are_those_of_the_papers(
    name: str, sizes: tuple[int, int, int], labeled: dict[str, int], load: Any, tmp_path: Path
) -> None:
    benchmark = load(name).describe(make_download(name, tmp_path / "download"))
    parts = (benchmark.train, benchmark.val, benchmark.test)
    assert tuple(map(len, parts)) == sizes
    assert {key: len(cases) for key, cases in benchmark.labeled.items()} == labeled
    assert len(set().union(*parts)) == sum(sizes)
    assert set(benchmark.files) == set().union(*parts)
    for entry, cases in zip(benchmark.folds(), benchmark.labeled.values(), strict=True):
        assert entry["train"] == sorted(cases)
        assert sorted(entry["train"] + entry["unlabeled"]) == sorted(benchmark.train)
        assert set(entry["unlabeled"]).isdisjoint(entry["train"] + entry["val"])


def test_labeled_cases_known_from_the_repositories() -> None:
    lists = json.loads((SCRIPTS / "amos.json").read_text())
    assert lists["labeled"]["2 %"] == ["amos_0017", "amos_0077", "amos_0358", "amos_0361"]
    numbers = ("0078", "0158", "0170", "0192", "0391", "0396", "0410", "0514", "0548", "0578")
    assert lists["labeled"]["5 %"] == [f"amos_{number}" for number in numbers]
    assert json.loads((SCRIPTS / "synapse.json").read_text())["labeled"]["20 %"] == ["0002", "0023", "0034", "0039"]
    assert list_cases("left_atrium", "train")[:4] == [
        "06SR5RBREL16DQ6M8LWS",
        "0RZDK210BSMWAA6467LU",
        "1D7CUD1955YZPGK8XHJX",
        "1GU15S0GJ6PFNARO469W",
    ]
    patients = [f"patient{number}" for number in ("099", "038", "050", "100", "058", "021", "049")]
    assert list_cases("acdc", "train")[:7] == patients


def test_makes_a_dataset_of_links_with_the_lists_as_folds(
    name: str, nnunet: TinyDataset, tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    download = make_download(name, tmp_path / "download")
    run(name, download, monkeypatch)
    full_name = f"Dataset{NUMBERS[name]}_{FOLDERS[name]}"
    raw, benchmark = nnunet.root / "raw" / full_name, load(name).describe(download)
    description = json.loads((raw / "dataset.json").read_text())
    ending = description["file_ending"]
    for part, cases in (("Tr", [*benchmark.train, *benchmark.val]), ("Ts", benchmark.test)):
        assert {path.name for path in (raw / f"images{part}").iterdir()} == {f"{case}_0000{ending}" for case in cases}
        assert {path.name for path in (raw / f"labels{part}").iterdir()} == {f"{case}{ending}" for case in cases}
        for case in cases:
            assert (raw / f"images{part}" / f"{case}_0000{ending}").readlink() == benchmark.files[case].image
            if name != "left_atrium":
                assert (raw / f"labels{part}" / f"{case}{ending}").readlink() == benchmark.files[case].label
    assert description["numTraining"] == len(benchmark.train) + len(benchmark.val)
    assert load_splits(str(nnunet.root / "preprocessed" / full_name / "splits_final.json")) == benchmark.folds()
    assert os.listdir(nnunet.root / "raw") == [full_name]
    printed = capsys.readouterr().out
    for text in (
        "fold 0: ",
        f"plan_and_preprocess -d {NUMBERS[name]} ",
        f"nnUNetv2_train {NUMBERS[name]} 3d_fullres 0",
    ):
        assert text in printed


def test_nnunet_reads_the_cases(
    name: str, nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run(name, make_download(name, tmp_path / "download"), monkeypatch, "-d", "12")
    raw = nnunet.root / "raw" / f"Dataset012_{FOLDERS[name]}"
    description = json.loads((raw / "dataset.json").read_text())
    expected = list(description["labels"].values())
    assert expected == list(range(len(expected)))
    for part in ("Tr", "Ts"):
        image, label = (str(min((raw / f"{kind}{part}").iterdir())) for kind in ("images", "labels"))
        reader = determine_reader_writer_from_dataset_json(description, image)
        assert reader.__name__ == description.get("overwrite_image_reader_writer", "SimpleITKIO")
        # what nnUNetv2_plan_and_preprocess --verify_dataset_integrity does with each case
        assert check_cases([image], label, 1, reader)
        assert verify_labels(label, reader, expected)
    assert "Warning" not in capsys.readouterr().out


@pytest.fixture
def atrium(load: Any, tmp_path: Path) -> tuple[ModuleType, Any]:
    write_image(tmp_path / "image.nrrd", np.zeros((3, 4, 5), np.uint8), (0.625, 0.625, 1.25))
    return load("left_atrium"), load("layout").Files(tmp_path / "image.nrrd", tmp_path / "label.nrrd")


def test_atrium_labels_are_1_with_the_geometry_of_the_image(atrium: Any, tmp_path: Path) -> None:
    module, files = atrium
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1, 2:, 3] = 255
    write_image(files.label, labels)
    module.convert_labels(files, tmp_path / "converted.nrrd")
    converted = sitk.ReadImage(str(tmp_path / "converted.nrrd"))
    assert converted.GetSpacing() == pytest.approx((0.625, 0.625, 1.25))
    array = sitk.GetArrayFromImage(converted)
    assert array.dtype == np.uint8
    assert np.array_equal(array, labels // 255)


def test_atrium_labels_that_do_not_belong_to_the_image(atrium: Any, tmp_path: Path) -> None:
    module, files = atrium
    write_image(files.label, np.zeros((3, 4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"label.nrrd cannot be used for .*image.nrrd .* unpack both again"):
        module.convert_labels(files, tmp_path / "converted.nrrd")
    files.label.write_bytes(b"NRRD0004\nhalf of a")
    with pytest.raises(ValueError, match=r"label.nrrd cannot be used"):
        module.convert_labels(files, tmp_path / "converted.nrrd")


def fail(name: str, download: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    """Return the message of a script that makes nothing."""
    folders = [Path(os.environ[f"nnUNet_{kind}"]) for kind in ("raw", "preprocessed") if f"nnUNet_{kind}" in os.environ]
    before = [sorted(folder.rglob("*")) for folder in folders]
    with pytest.raises(SystemExit) as caught:
        run(name, download, monkeypatch, *options)
    assert [sorted(folder.rglob("*")) for folder in folders] == before
    assert "\n" not in str(caught.value.code)
    return str(caught.value.code)


def test_other_folders_than_the_download(
    name: str, nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "There is no folder" in fail(name, tmp_path / "nowhere", monkeypatch)
    (tmp_path / "other").mkdir()
    assert "is not the download of" in fail(name, tmp_path / "other", monkeypatch)


def test_missing_images_and_labels(
    name: str, nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = make_download(name, tmp_path / "download")
    images, labels = find_files(name, download, list_cases(name, "test")[0], 0)
    if name == "acdc":
        images, labels = (list(download.glob(f"training/patient011/*_frame??{end}.nii.gz")) for end in ("", "_gt"))
    labels[0].rename(tmp_path / "taken away")
    assert "lacks the labels of 1 of the" in fail(name, download, monkeypatch)
    images[0].unlink()
    assert "lacks the images of 1 of the" in fail(name, download, monkeypatch)


def test_the_two_frames_of_a_patient_of_acdc_are_one_group(load: Any, nnunet: TinyDataset, tmp_path: Path) -> None:
    raw = load("layout").lay_out(load("acdc").describe(make_download("acdc", tmp_path / "download")), 704)
    groups = json.loads((raw / "groups.json").read_text())
    assert len(groups) == 200
    assert len(set(groups.values())) == 100
    assert {path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesTs").iterdir()} < groups.keys()


def test_acdc_without_the_numbers_of_the_frames(
    nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = make_download("acdc", tmp_path / "download")
    (download / "training" / "patient007" / "Info.cfg").write_text("ED: 1\n")
    assert "patient007/Info.cfg does not name the two frames" in fail("acdc", download, monkeypatch)
    (download / "training" / "patient007" / "Info.cfg").unlink()
    assert "lacks" in fail("acdc", download, monkeypatch)


def test_taken_and_wrong_numbers(nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = make_download("synapse", tmp_path / "download")
    splits = nnunet.root / "preprocessed" / "Dataset702_Synapse" / "splits_final.json"
    splits.parent.mkdir()
    splits.write_text("[]")
    assert "The number 702 belongs to Dataset702_Synapse already" in fail("synapse", download, monkeypatch)
    assert splits.read_text() == "[]"
    assert "from 1 to 999, not 1000" in fail("synapse", download, monkeypatch, "-d", "1000")
    run("synapse", download, monkeypatch, "-d", "703")
    assert "The number 703 belongs to" in fail("synapse", download, monkeypatch, "-d", "703")


@pytest.mark.parametrize("kind", ["raw", "preprocessed"])
def test_variables_that_are_not_set(
    kind: str, nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = make_download("synapse", tmp_path / "download")
    monkeypatch.delenv(f"nnUNet_{kind}")
    assert f"nnUNet_{kind} is not set" in fail("synapse", download, monkeypatch)


def test_where_links_cannot_be_made(nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a required privilege is not held")

    download = make_download("synapse", tmp_path / "download")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert "privilege is not held" in fail("synapse", download, monkeypatch)


@pytest.mark.slow
def test_a_fold_is_trained(nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("synapse", make_download("synapse", tmp_path / "download", (20, 24, 28)), monkeypatch)
    shell = Shell(nnunet)
    shell("nnUNetv2_plan_and_preprocess -d 702 -c 3d_fullres --verify_dataset_integrity -np 1", nnUNet_n_proc_DA="1")
    doctor = shell("nnUNetv2_micd doctor -d 702 -c 3d_fullres")
    for counts in ("2 labeled, 18 unlabeled", "4 labeled, 16 unlabeled", "8 labeled, 12 unlabeled"):
        assert f"{counts}, 4 validation" in doctor
    shell(f"nnUNetv2_train 702 3d_fullres 1 -tr {MICD} -device cpu")
    folder = nnunet.results / "Dataset702_Synapse" / f"{MICD}__nnUNetPlans__3d_fullres" / "fold_1"
    assert (folder / "checkpoint_final.pth").is_file()


def make_fetal_heads(folder: Path, cases: tuple[str, ...] = ("000_HC", "010_HC", "010_2HC", "186_HC")) -> Path:
    """Make images of 8 x 12 pixels in columns of 0 and 200, with the outline of a head of 4 x 8."""
    folder.mkdir()
    image = np.tile(np.array([0, 200], np.uint8), (8, 6))
    outline = np.zeros((8, 12), np.uint8)
    outline[2:6, 4:12] = 255
    outline[3:5, 5:11] = 0
    for case in cases:
        io.imsave(folder / f"{case}.png", image, check_contrast=False)
        io.imsave(folder / f"{case}_Annotation.png", outline, check_contrast=False)
    io.imsave(folder / "000_HC.png", np.stack([image] * 3, -1), check_contrast=False)  # the same, as colors
    return folder


def test_fetal_heads_are_shrunk_and_filled(
    nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run("fetal_heads", make_fetal_heads(tmp_path / "download"), monkeypatch)
    raw = nnunet.root / "raw" / "Dataset705_FetalHead"
    cases = ["000_HC", "010_2HC", "010_HC"]  # the outline of 186_HC leaves the image
    assert sorted(os.listdir(raw / "labelsTr")) == [f"{case}.png" for case in cases]
    assert json.loads((raw / "groups.json").read_text()) == {"000_HC": "000", "010_2HC": "010", "010_HC": "010"}
    description = json.loads((raw / "dataset.json").read_text())
    for case in cases:
        image, label = str(raw / "imagesTr" / f"{case}_0000.png"), str(raw / "labelsTr" / f"{case}.png")
        assert np.array_equal(io.imread(image), np.full((2, 3), 100))
        assert np.array_equal(io.imread(label), [[0, 1, 1], [0, 1, 1]])  # half of the 16 pixels, and all in x
        reader = determine_reader_writer_from_dataset_json(description, image)
        assert check_cases([image], label, 1, reader)
        assert verify_labels(label, reader, [0, 1])
    assert not (raw / "imagesTs").exists()
    assert os.listdir(nnunet.root / "preprocessed") == []
    assert "benchmark -d 705 -c 2d " in capsys.readouterr().out


def test_fetal_heads_that_are_damaged(nnunet: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = make_fetal_heads(tmp_path / "download")
    label = download / "010_HC_Annotation.png"
    open_outline = io.imread(label)
    open_outline[2] = 0
    for damaged, message in ((open_outline, "has no closed outline"), (open_outline[1:], r"has \(7, 12\) pixels")):
        io.imsave(label, damaged, check_contrast=False)
        assert re.search(f"010_HC_Annotation.png {message}", fail("fetal_heads", download, monkeypatch))
    label.write_bytes(label.read_bytes()[:30])
    assert "010_HC_Annotation.png cannot be read" in fail("fetal_heads", download, monkeypatch)
    label.unlink()
    assert "lacks the labels of 1 of the 3 cases" in fail("fetal_heads", download, monkeypatch)
