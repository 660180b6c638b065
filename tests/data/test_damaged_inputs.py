"""Damaged datasets: one sentence names what is wrong, and images that are intact are still used."""

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import (
    BOTH,
    IGNORE,
    REGIONS,
    TinyDataset,
    make_trainer,
    make_volume,
    preprocess_labeled,
    relabel,
    write_image,
)

import nnunetv2_micd
from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.image_defects import find_defect
from nnunetv2_micd.data.preprocessing import preprocess_unlabeled
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD

VOLUME = make_volume(3, (20, 22, 26))[0]

FileDamage = Callable[[Path], Any]
DatasetDamage = Callable[[TinyDataset], Any]


@pytest.fixture(autouse=True)
def sound_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunetv2_micd, "EXT_TRAINER_BEFORE_IMPORT", TRAINER_FOLDER)


@pytest.fixture
def fresh(dataset: TinyDataset) -> TinyDataset:
    """Return a dataset the unlabeled images of which are not preprocessed yet."""
    for configuration in ("2d", "3d_fullres"):
        shutil.rmtree(dataset.unlabeled_folder(configuration))
    return dataset


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Callable[..., tuple[str, str]]:
    """Run a command that may fail; return its error and all else that it prints."""

    def call(*arguments: str) -> tuple[str, str]:
        stop = None
        try:
            main(list(arguments))
        except SystemExit as error:
            stop = error.code
        printed = "\n".join(capfd.readouterr())
        assert "Traceback" not in printed
        assert "\n" not in str(stop)
        return "" if stop is None else str(stop), printed

    return call


def preprocess(run: Callable[..., tuple[str, str]], *options: str) -> tuple[str, str]:
    return run("preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1", *options)


def used(dataset: TinyDataset, configuration: str = "3d_fullres", fold: int | str = 0) -> set[str]:
    """Return the unlabeled images that a training finds when it starts."""
    trainer = make_trainer(nnUNetTrainerMICD, dataset, configuration, fold)
    trainer.get_tr_and_val_datasets()
    return set(trainer.unlabeled_images.identifiers)


def train(dataset: TinyDataset, configuration: str = "3d_fullres", fold: int | str = 0) -> set[str]:
    """Start a training, take one step and return the unlabeled images, each of which has been loaded."""
    trainer = make_trainer(nnUNetTrainerMICD, dataset, configuration, fold)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    record = trainer.train_step(next(trainer.dataloader_train))
    assert all(np.isfinite(value) for value in record.values())
    images = trainer.dataloader_unlabeled.data_loader
    assert all(images._load_patch(name)[0].isfinite().all() for name in images._data.identifiers)
    return set(images._data.identifiers)


# ------------------------------------------------------------------------------------------------- files of raw images


def write(array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> FileDamage:
    return lambda path: write_image(path, array, spacing)


def write_sitk(array: np.ndarray, **options: Any) -> FileDamage:
    return lambda path: sitk.WriteImage(sitk.GetImageFromArray(array, **options), str(path))


def nifti(array: np.ndarray = VOLUME) -> bytes:
    """Return an uncompressed NIfTI file."""
    header = bytearray(352)
    header[:4] = (348).to_bytes(4, "little")
    header[40:56] = np.array([3, *array.shape[::-1], 1, 1, 1, 1], "<i2").tobytes()
    header[70:74] = np.array([16, 32], "<i2").tobytes()
    header[76:112] = np.array([1, 1, 1, 1, 1, 1, 1, 1, 352], "<f4").tobytes()
    header[344:348] = b"n+1\0"
    return bytes(header) + array.astype("<f4").tobytes()


def cut(content: bytes, share: float) -> bytes:
    return content[: int(share * len(content))]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def contain(content: bytes) -> FileDamage:
    return lambda path: path.write_bytes(content)


def link(target: str) -> FileDamage:
    return lambda path: path.symlink_to(target)


def with_one(value: float) -> np.ndarray:
    array = VOLUME.copy()
    array[2, 3, 4] = value
    return array


SOUND_FILES: dict[str, FileDamage] = {
    **{f"of {kind}": write(VOLUME.astype(kind)) for kind in ("uint8", "int16", "uint64", "int64", "float64")},
    "complex": write_sitk(VOLUME.astype(np.complex64)),
    "of one slice": write(VOLUME[:1]),
    "of 2 voxels": write(VOLUME[:1, :1, :2]),
    "constant but for a voxel": write(np.where(VOLUME[9, 9, 9] == VOLUME, 1, 0).astype(np.uint8)),
    "with a NaN": write(with_one(np.nan)),  # SimpleITK reads these two as 0
    "with an Inf": write(with_one(np.inf)),
    "4D of one volume": write_sitk(VOLUME[None], isVector=False),
    "of thick slices": write(VOLUME, (1, 1, 9)),
    "not compressed": contain(nifti()),
    "compressed in two parts": contain(gzip.compress(nifti()[:999]) + gzip.compress(nifti()[999:])),
    "padded with zeros": contain(gzip.compress(nifti()) + bytes(512)),
    "a link": link("image_0_0000.nii.gz"),
}

USELESS_FILES: dict[str, tuple[FileDamage, str]] = {
    "empty": (contain(b""), "new_0000.nii.gz is empty"),
    "random": (contain(np.random.RandomState(0).bytes(999)), "Unable to determine ImageIO reader"),
    "compressed random": (contain(gzip.compress(np.random.RandomState(0).bytes(999))), "Unable to determine ImageIO"),
    "text": (contain(b"no image"), "Unable to determine ImageIO reader"),
    "cut": (contain(cut(gzip.compress(nifti()), 0.5)), "cut off or damaged"),
    "cut by a byte": (contain(gzip.compress(nifti())[:-1]), "cut off or damaged"),
    "flipped": (contain(flipped(gzip.compress(nifti()))), "cut off or damaged"),
    "with junk": (contain(gzip.compress(nifti()) + b"junk"), "cut off or damaged"),
    "cut before it was compressed": (contain(gzip.compress(cut(nifti(), 0.9))), "cut off"),
    "cut and not compressed": (contain(cut(nifti(), 0.9)), "cut off"),
    "header only": (contain(gzip.compress(nifti()[:352])), "cut off"),
    "half a header": (contain(gzip.compress(nifti()[:100])), "is cut off"),
    "a dangling link": (link("nowhere.nii.gz"), "is a link to a file that does not exist"),
    "a link to itself": (link("new_0000.nii.gz"), "is a link to a file that does not exist"),
    "2D": (write_sitk(VOLUME[0]), "is two-dimensional"),
    "4D": (write_sitk(np.stack([VOLUME] * 2), isVector=False), "has the channels 0000, 0001, but needs 0000"),
    "RGB": (write_sitk(np.stack([VOLUME] * 3, -1), isVector=True), "and 15 more, but needs 0000"),
    "zero": (write(VOLUME * 0), "has the value 0 everywhere"),
    "constant": (write(VOLUME * 0 + 7), "has the value 7 everywhere"),
    "of NaN": (write(VOLUME * np.nan), "has the value 0 everywhere"),
    "of 1 voxel": (write(VOLUME[:1, :1, :1]), "everywhere"),
    "of huge values": (write(VOLUME * 1e36), "contains NaN or Inf values"),
    "of m for mm": (write(VOLUME, (1e3, 1e3, 1e3)), "would have 20000 x 22000 x 26000 voxels .*1000 x 1000 x 1000"),
    "of cm for mm": (
        write(VOLUME, (10, 10, 10)),
        "would have 200 x 220 x 260 voxels .* labeled images have about 21 x",
    ),
    "of mm for m": (write(VOLUME, (1e-3, 1e-3, 1e-3)), "would have 0 x 0 x 0 voxels .*0.001"),
}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_odd_but_valid_images_are_trained_on(configuration: str, fresh: TinyDataset) -> None:
    for name, make in SOUND_FILES.items():
        make(fresh.images / f"{name}_0000.nii.gz")
    assert preprocess_unlabeled(Dataset.find(fresh.id), [configuration], num_processes=1) == []
    assert train(fresh, configuration) == {*fresh.unlabeled, *SOUND_FILES}


@pytest.mark.parametrize("name", USELESS_FILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_useless_images_are_named_and_the_others_used(name: str, fresh: TinyDataset, run: Callable) -> None:
    damage, message = USELESS_FILES[name]
    damage(fresh.images / "new_0000.nii.gz")
    error, printed = preprocess(run)
    assert error == "error: 1 image could not be preprocessed"
    assert re.search(rf"^3d_fullres, new: .*{message}", printed, re.MULTILINE), printed
    with pytest.warns(UserWarning, match=r"could not be preprocessed and are not used: new \("):
        assert used(fresh) == set(fresh.unlabeled)


def test_a_two_dimensional_image_is_used_in_2d(fresh: TinyDataset) -> None:
    USELESS_FILES["2D"][0](fresh.images / "new_0000.nii.gz")
    assert preprocess_unlabeled(Dataset.find(fresh.id), ["2d"], num_processes=1) == []
    assert train(fresh, "2d") == {*fresh.unlabeled, "new"}


def test_a_whole_image_beside_crops_is_used_with_a_word_on_its_cost(
    fresh: TinyDataset, capfd: pytest.CaptureFixture
) -> None:
    write_image(fresh.images / "whole_0000.nii.gz", np.tile(VOLUME, (9, 9, 9)))
    assert preprocess_unlabeled(Dataset.find(fresh.id), ["3d_fullres"], num_processes=1) == []
    assert "Warning: whole would have 180 x 198 x 234 voxels at the spacing of the plans" in capfd.readouterr().err
    assert used(fresh) == {*fresh.unlabeled, "whole"}


@pytest.mark.filterwarnings("ignore:Images in imagesUn")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_image_is_named(fresh: TinyDataset, run: Callable) -> None:
    (fresh.images / "image_1_0000.nii.gz").chmod(0)
    error, printed = preprocess(run)
    assert error == "error: 1 image could not be preprocessed"
    assert "3d_fullres, image_1: cannot be read (PermissionError" in printed
    assert used(fresh) == {"image_0", "image_2", "image_3"}


# ------------------------------------------------------------------------------------------------- names and folders

SOUND_NAMES = [
    "a\nb",
    "a\tb",
    "a\x1b[31m",
    "a\u3000b",
    "a\u00a0b",
    "a\u200bb",
    "a\u00adb",
    "my case",
    " ",
    "a.b.c",
    "a.nii.gz",
    "a.b2nd",
    "bräin",
    "bra\u0308in",
    "脑",
    "-x",
    "--overwrite",
    'it\'s "q"',
    "100%s{0}",
    "a[1]*?",
    "a\\b",
    "$HOME",
    "~",
    "case_0_0000",
    "case_00000",
    "seg",
    "IMAGE_0",
    "x" * 243,
]

UNUSED_NAMES = [
    "a.nii.gz",
    "_0000.nii.gz",
    "a_000.nii.gz",
    "a_0000.nii",
    "a_0000.NII.GZ",
    "a_0000.nrrd",
    "a_\u0660\u0660\u0660\u0660.nii.gz",
    "a\udcff_0000.nii.gz",  # not valid Unicode: from a ZIP file of another country
]


def add(dataset: TinyDataset, name: str) -> None:
    try:
        shutil.copy(dataset.images / "image_0_0000.nii.gz", dataset.images / name)
    except OSError as error:
        pytest.skip(f"this file system does not have such names: {error}")


def test_odd_names_are_used(fresh: TinyDataset, run: Callable) -> None:
    for name in SOUND_NAMES:
        add(fresh, f"{name}_0000.nii.gz")
    (fresh.images / "image_0.json").touch()  # as nnU-Net has them beside TIFF files
    error, printed = preprocess(run)
    assert error == ""
    assert "Warning" not in printed
    assert train(fresh) == {*fresh.unlabeled, *SOUND_NAMES}


@pytest.mark.parametrize("name", UNUSED_NAMES, ids=ascii)
def test_other_names_are_reported(name: str, fresh: TinyDataset, run: Callable) -> None:
    add(fresh, name)
    error, printed = preprocess(run)
    assert error == "error: 1 image could not be preprocessed"
    path = str(fresh.images / name)
    printable = path if path.isprintable() else ascii(path)
    assert (
        f"images, {printable}: is not used, because it is not named CASE_0000.nii.gz; rename or remove it\n" in printed
    )
    assert used(fresh) == set(fresh.unlabeled)
    shutil.rmtree(fresh.images)
    fresh.images.mkdir()
    (fresh.images / name).touch()
    error, _ = preprocess(run)
    assert error.startswith("error: ")
    assert str(fresh.images) in error
    error, printed = run("doctor", "-d", "901", "-c", "3d_fullres")
    assert error == ""  # the images that are preprocessed are there
    assert "0 images in imagesUn, 4 preprocessed" in printed


@pytest.mark.filterwarnings("ignore:Images in imagesUn")
def test_a_name_of_a_segmentation_is_refused(fresh: TinyDataset, run: Callable) -> None:
    add(fresh, "patient_seg_0000.nii.gz")
    error, printed = preprocess(run)
    assert error == "error: 1 image could not be preprocessed"
    assert "3d_fullres, patient_seg: is named like a segmentation" in printed
    assert used(fresh) == set(fresh.unlabeled)


def test_what_operating_systems_leave_behind_is_not_mentioned(fresh: TinyDataset, run: Callable) -> None:
    for name in (".DS_Store", "._image_0_0000.nii.gz", "._.DS_Store"):
        (fresh.images / name).write_bytes(b"\0")
    (fresh.images / ".Trash").mkdir()
    error, printed = preprocess(run)
    assert error == ""
    assert "Warning" not in printed
    (fresh.unlabeled_folder() / "._image_0.b2nd").write_bytes(b"\0")
    assert train(fresh) == set(fresh.unlabeled)


def empty(dataset: TinyDataset) -> None:
    shutil.rmtree(dataset.images)
    dataset.images.mkdir()


def nest(dataset: TinyDataset) -> None:
    dataset.images.rename(dataset.raw / "site_a")
    dataset.images.mkdir()
    (dataset.raw / "site_a").rename(dataset.images / "site_a")


def replace_by_folder(dataset: TinyDataset) -> None:
    empty(dataset)
    (dataset.images / "a_0000.nii.gz").mkdir()


def replace_by_file(dataset: TinyDataset) -> None:
    shutil.rmtree(dataset.images)
    dataset.images.touch()


def copy_labeled(dataset: TinyDataset) -> None:
    shutil.copy(dataset.raw / "imagesTr" / "case_5_0000.nii.gz", dataset.images)


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (empty, [], "is empty; put the unlabeled images there, or name another with -i"),
        (nest, [], r"holds no images, only folders \(site_a/\); .* name another with -i"),
        (replace_by_folder, [], r"holds no images, only folders \(a_0000.nii.gz/\)"),
        (replace_by_file, [], "There is no folder"),
        (copy_labeled, [], r"among the labeled cases of Dataset901_Tiny too \(case_5\); take them out"),
        (lambda _: None, ["-i", "{images}", "{images}"], "in several folders .*, the second time in"),
        (lambda _: None, ["-i", "{images}", "{images}/nowhere"], "There is no folder .*/nowhere"),
        (lambda _: None, ["-i", "{images}", "{root}/raw/Dataset901_Tiny/imagesTr"], "labeled cases .* and 1 more"),
        (lambda _: None, ["-i", "{root}/raw/Dataset901_Tiny/labelsTr"], "No file in .*labelsTr is named CASE_0000.nii"),
    ],
)
def test_folders_that_cannot_be_used_stop_before_anything_is_done(
    damage: DatasetDamage, options: list[str], message: str, fresh: TinyDataset, run: Callable
) -> None:
    damage(fresh)
    error, _ = preprocess(run, *(option.format(images=fresh.images, root=fresh.root) for option in options))
    assert re.match(f"error: .*{message}", error), error
    assert not fresh.unlabeled_folder().exists()
    with pytest.raises(ValueError, match="nnUNetv2_micd preprocess -d 901"):
        used(fresh)
    assert "fold 0: The" in run("doctor", "-d", "901")[1]


def test_folders_beside_the_images_are_reported(fresh: TinyDataset, run: Callable) -> None:
    shutil.copytree(fresh.images, fresh.images / "more")
    (fresh.images / "new_0000.nii.gz").mkdir()
    error, printed = preprocess(run)
    assert error == ""
    assert "not used, as they are no images: more/, new_0000.nii.gz/ in" in printed


# ------------------------------------------------------------------------------------------------- several channels


@pytest.fixture
def two_channels(fresh: TinyDataset) -> TinyDataset:
    for path in [*(fresh.raw / "imagesTr").iterdir(), *fresh.images.iterdir()]:
        shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))
    for folder in (fresh.raw, fresh.preprocessed):
        change(folder / "dataset.json", channel_names={"0": "T1", "1": "T2"})
    plans = json.loads(fresh.plans_file.read_text())
    plans["configurations"].pop("2d")
    plans["configurations"]["3d_fullres"] |= {
        "use_mask_for_norm": [False] * 2,
        "normalization_schemes": ["ZScoreNormalization"] * 2,
    }
    plans["foreground_intensity_properties_per_channel"]["1"] = {}
    fresh.plans_file.write_text(json.dumps(plans))
    shutil.rmtree(fresh.labeled_folder("2d"))
    preprocess_labeled(fresh)
    return fresh


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.filterwarnings("ignore:Images in imagesUn")
def test_channels_that_do_not_fit_together(two_channels: TinyDataset) -> None:
    def channels(case: str, *numbers: int, first: np.ndarray = VOLUME, **properties: Any) -> None:
        for number in numbers:
            write_image(two_channels.images / f"{case}_{number:04d}.nii.gz", VOLUME)
        image = sitk.GetImageFromArray(first)
        for name, value in properties.items():
            getattr(image, f"Set{name}")(value)
        sitk.WriteImage(image, str(two_channels.images / f"{case}_{numbers[0]:04d}.nii.gz"))

    needs = ", but needs 0000, 0001; export it with these, or remove it"
    grid = "the images of its channels differ in shape or spacing; export them again on the same grid"
    expected = {
        "only first": f"has the channels 0000{needs}",
        "only second": f"has the channels 0001{needs}",
        "gap": f"has the channels 0000, 0002{needs}",
        "from one": f"has the channels 0001, 0002{needs}",
        "three": f"has the channels 0000, 0001, 0002{needs}",
        "shape": grid,
        "spacing": grid,
        "too many": f"has the channels 0000, 0001, 0002{needs}",
    }
    channels("only first", 0)
    channels("only second", 1)
    channels("gap", 0, 2)
    channels("from one", 1, 2)
    channels("three", 0, 1, 2)
    channels("shape", 0, 1, first=VOLUME[:-1])
    channels("spacing", 0, 1, Spacing=(1, 1, 2))
    channels("origin", 0, 1, Origin=(5, 0, 0))  # which nnU-Net warns of
    channels("direction", 0, 1, Direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    channels("one is zero", 0, 1, first=VOLUME * 0)
    channels("types", 0, 1, first=VOLUME.astype(np.int16))
    write_sitk(np.stack([VOLUME] * 2), isVector=False)(two_channels.images / "in one file_0000.nii.gz")
    write_sitk(np.stack([VOLUME] * 3), isVector=False)(two_channels.images / "too many_0000.nii.gz")
    write_image(two_channels.images / "2D and 3D_0000.nii.gz", VOLUME)
    write_sitk(VOLUME[0])(two_channels.images / "2D and 3D_0001.nii.gz")

    failures = {
        failure.case: failure.reason for failure in preprocess_unlabeled(Dataset.find(two_channels.id), num_processes=1)
    }
    assert failures.pop("2D and 3D")
    assert failures == expected
    sound = {"origin", "direction", "one is zero", "types", "in one file"}
    assert train(two_channels) == {*two_channels.unlabeled, *sound}


# ------------------------------------------------------------------------------------------------- preprocessed images


def store(array: np.ndarray) -> FileDamage:
    def damage(path: Path) -> None:
        path.unlink()
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(path))

    return damage


def rewrite(edit: Callable[[bytes], bytes]) -> FileDamage:
    return lambda path: path.write_bytes(edit(path.read_bytes()))


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


PREPROCESSED = VOLUME[None]

SPOILED_DATA: dict[str, FileDamage] = {
    **{f"cut to {share}": rewrite(lambda content, share=share: cut(content, share)) for share in (0, 0.01, 0.5, 0.99)},
    "cut by a byte": rewrite(lambda content: content[:-1]),
    "random": contain(np.random.RandomState(0).bytes(999)),
    "of two channels": store(np.concatenate([PREPROCESSED] * 2)),
    "of no channel": store(PREPROCESSED[:0]),
    "of no voxel": store(PREPROCESSED[:, :0]),
    "of three axes": store(VOLUME),
    "of five axes": store(PREPROCESSED[None]),
    "integer": store(PREPROCESSED.astype(np.int16)),
    "complex": store(PREPROCESSED.astype(np.complex64)),
    "of strings": store(np.full((1, 4, 4, 4), "a", "S3")),
    "a dangling link": replace_by_link,
}


@pytest.mark.parametrize("name", SPOILED_DATA)
def test_spoiled_data_is_named_and_made_again(name: str, dataset: TinyDataset, run: Callable) -> None:
    SPOILED_DATA[name](dataset.unlabeled_folder() / "image_1.b2nd")
    with pytest.raises(ValueError, match=r"are damaged \(image_1\).*nnUNetv2_micd preprocess -d 901") as error:
        used(dataset)
    stop, printed = run("doctor", "-d", "901", "-c", "3d_fullres")
    assert (stop, "folds 0, 1: " + str(error.value) in printed) == ("1", True)
    error_of_command, printed = preprocess(run)
    assert error_of_command == ""
    assert "1 image preprocessed, 3 were done before" in printed
    assert used(dataset) == set(dataset.unlabeled)


def test_spoiled_data_of_a_case_that_is_used_without_its_label(dataset: TinyDataset, run: Callable) -> None:
    rewrite(lambda content: cut(content, 0.5))(dataset.labeled_folder() / "case_5.b2nd")
    assert used(dataset) == set(dataset.unlabeled)
    with pytest.raises(ValueError, match=r"damaged data \(case_5\); .*nnUNetv2_preprocess -d 901"):
        used(dataset, fold=1)
    stop, printed = run("doctor", "-d", "901", "-c", "3d_fullres")
    assert stop == "1"
    assert f"labeled cases in {dataset.labeled_folder()} are damaged (case_5)" in printed


def test_foreign_files_beside_preprocessed_images(dataset: TinyDataset, run: Callable) -> None:
    folder = dataset.unlabeled_folder()
    for name in (".DS_Store", "._image_0.b2nd", "Thumbs.db", "notes.txt", "old.npz"):
        (folder / name).write_bytes(b"\0")
    shutil.copy(folder / "image_0.b2nd", folder / "image_0_seg.b2nd")
    (folder / "image_2.pkl").unlink()
    assert preprocess(run)[0] == ""
    assert train(dataset) == set(dataset.unlabeled)
    (folder / "a folder.b2nd").mkdir()
    with pytest.raises(ValueError, match=r"are damaged \(a folder\)"):
        used(dataset)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db"])
def test_foreign_files_beside_labeled_cases_are_found_by_the_doctor(
    name: str, dataset: TinyDataset, run: Callable
) -> None:
    (dataset.labeled_folder() / name).touch()
    stop, printed = run("doctor", "-d", "901", "-c", "3d_fullres")
    assert stop == "1"
    assert f"keep nnU-Net from reading it ({name})" in printed


# ------------------------------------------------------------------------------------------------- JSON files

NO_JSON = [b"", b"{", b"\xff\xfe\0", b"\xef\xbb\xbf{}"]
OTHER_JSON = [b"[]", b'"text"', b"3", b"null", b"{}"]


@pytest.mark.parametrize("content", [*NO_JSON, *OTHER_JSON, b'{"fingerprint": 3}'])
def test_a_lost_record_of_the_plans_means_to_preprocess_again(
    content: bytes, dataset: TinyDataset, run: Callable
) -> None:
    (dataset.unlabeled_folder() / "unlabeled.json").write_bytes(content)
    error, _ = preprocess(run)
    assert error.endswith("preprocessed with other plans; to preprocess them all again, add --overwrite")
    with pytest.raises(ValueError, match="-p nnUNetPlans --overwrite"):
        used(dataset)
    assert preprocess(run, "--overwrite")[0] == ""
    assert used(dataset) == set(dataset.unlabeled)


@pytest.mark.parametrize("content", [*NO_JSON, *OTHER_JSON])
@pytest.mark.parametrize("name", ["dataset.json", "nnUNetPlans.json"])
def test_damaged_files_of_nnunet_are_named(name: str, content: bytes, dataset: TinyDataset, run: Callable) -> None:
    (dataset.preprocessed / name).write_bytes(content)
    for error in (preprocess(run)[0], preprocess(run, "--overwrite")[0]):
        assert error.startswith("error: ")
        assert name in error
        assert str(dataset.preprocessed) in error
    stop, printed = run("doctor", "-d", "901")
    assert (stop, error.removeprefix("error: ") in printed) == ("1", True)
    assert run("split", "-d", "901", "-n", "2")[0] == ""  # needs neither
    assert run("list")[0] == ""


def remove(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.pop(name)


def put(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.update(values)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("dataset.json", remove(name)) for name in ("channel_names", "labels", "file_ending")),
        *(("dataset.json", put(channel_names=value)) for value in (None, 3, [], "x", {})),
        *(("dataset.json", put(labels=value)) for value in (None, 3, [], "x", {}, {"first": 1})),
        *(("dataset.json", put(file_ending=value)) for value in (None, 3, [])),
        *(("nnUNetPlans.json", remove(name)) for name in ("plans_name", "dataset_name", "configurations")),
        *(("nnUNetPlans.json", remove(name)) for name in ("transpose_forward", "image_reader_writer")),
        ("nnUNetPlans.json", remove("foreground_intensity_properties_per_channel")),
        ("nnUNetPlans.json", put(image_reader_writer="NoSuchReader")),
        *(("nnUNetPlans.json", put(configurations=value)) for value in ([], None, {"3d_fullres": None})),
        ("nnUNetPlans.json", put(configurations={"3d_fullres": {"inherits_from": "no such"}})),
        ("nnUNetPlans.json", put(configurations={"3d_fullres": {"inherits_from": "3d_fullres"}})),
        *(
            ("nnUNetPlans.json", lambda content, name=name: content["configurations"]["3d_fullres"].pop(name))
            for name in ("spacing", "data_identifier", "patch_size", "batch_size", "architecture")
        ),
        ("nnUNetPlans.json", lambda content: content["configurations"]["2d"].update(data_identifier="../../escaped")),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans format")
def test_incomplete_files_of_nnunet_are_named(
    file: str, damage: Callable[[dict[str, Any]], Any], dataset: TinyDataset, run: Callable
) -> None:
    content = json.loads((dataset.preprocessed / file).read_text())
    damage(content)
    (dataset.preprocessed / file).write_text(json.dumps(content))
    error, _ = preprocess(run)
    message = f"error: nnUNetPlans.json or dataset.json in {dataset.preprocessed} is not as nnU-Net writes it ("
    assert error.startswith(message)
    stop, printed = run("doctor", "-d", "901")
    assert (stop, error.removeprefix("error: ") in printed) == ("1", True)


TRAIN, VAL = ["case_0", "case_1"], ["case_3"]


def entry(**values: Any) -> list[Any]:
    return [{"train": TRAIN, "val": VAL, **values}]


@pytest.mark.parametrize(
    "splits",
    [
        *NO_JSON[:3],
        *OTHER_JSON[1:],
        *([value] for value in (None, "x", 3, [TRAIN, VAL], {"train": TRAIN}, {"val": VAL})),
        *(entry(train=value) for value in (None, 3, "case_0", [0, 1], [TRAIN], {"case_0": 1})),
        *(entry(val=value) for value in (None, 3, "case_3", [3], [VAL], {"case_3": 1})),
        *(entry(unlabeled=value) for value in (None, False, 3, "case_5", [5], [["case_5"]], [None], {"case_5": 1})),
        [*entry(), {"train": 3, "val": VAL}],
    ],
    ids=lambda splits: str(splits)[:60],
)
def test_wrong_types_in_splits(splits: Any, dataset: TinyDataset, run: Callable) -> None:
    content = splits if isinstance(splits, bytes) else json.dumps(splits).encode()
    dataset.splits_file.write_bytes(content)
    error, _ = run("split", "-d", "901", "-n", "2")
    assert error.startswith("error: ")
    assert f"{dataset.splits_file} is not a list of" in error
    assert dataset.splits_file.read_bytes() == content
    stop, printed = run("doctor", "-d", "901")
    assert (stop, error.removeprefix("error: ") in printed) == ("1", True)
    assert preprocess(run)[0] == ""
    with pytest.raises(ValueError, match="is not a list of"):
        used(dataset)
    assert used(dataset, fold="all") == set(dataset.unlabeled)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (entry(unlabeled=["nope"]), r"have no data in .*\(nope\)"),
        (entry(unlabeled=["case_5.nii.gz"]), r"have no data in .*\(case_5.nii.gz\)"),
        (entry(unlabeled=[""]), "have no data in "),
        (entry(unlabeled=["case_0"]), r"also training, .*\(case_0\)"),
        (entry(unlabeled=["image_0"]), r"imagesUn cases \(image_0\)"),
        (entry(train=["nope"]), r"names cases that are not preprocessed \(nope\)"),
        (entry(val=["nope"]), r"names cases that are not preprocessed \(nope\)"),
        (entry(train=[]), "no labeled training case"),
        (entry(val=[]), "no validation case"),
    ],
)
def test_wrong_cases_in_splits(splits: Any, message: str, dataset: TinyDataset, run: Callable) -> None:
    dataset.splits_file.write_text(json.dumps(splits))
    stop, printed = run("doctor", "-d", "901", "-c", "3d_fullres")
    assert stop == "1"
    assert re.search(f"fold 0: .*{message}", printed), printed
    if "unlabeled" in splits[0]:
        with pytest.raises(ValueError, match=message):
            used(dataset)


# ------------------------------------------------------------------------------------------------- modes and mixtures


def add_files(dataset: TinyDataset, names: list[str]) -> tuple[set[str], set[str]]:
    """Add an image for each name in the tables above; return the sound and the useless cases."""
    for name in names:
        damage = SOUND_FILES[name] if name in SOUND_FILES else USELESS_FILES[name][0]
        damage(dataset.images / f"{name}_0000.nii.gz")
    return {name for name in names if name in SOUND_FILES}, {name for name in names if name in USELESS_FILES}


@pytest.mark.parametrize(("description", "fold"), [({}, 0), ({}, "all"), (REGIONS, 1), (IGNORE, "all"), (BOTH, 0)])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_damage_in_all_modes(
    description: dict[str, Any], fold: int | str, fresh: TinyDataset, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if description:
        relabel(fresh, description, annotated_slices=6 if "ignore" in description["labels"] else None)
    sound, useless = add_files(fresh, ["of uint8", "of one slice", "cut", "empty", "constant", "2D"])
    error, _ = run("preprocess", "-d", "901", "-np", "1")
    assert error == f"error: {len(useless)} images could not be preprocessed"
    hidden = {"case_1", "case_2", "case_5"} if fold == 1 else set()
    for configuration in ("2d", "3d_fullres"):
        expected = {*fresh.unlabeled, *sound, *hidden} | ({"2D"} if configuration == "2d" else set())
        assert train(fresh, configuration, fold) == expected


def spoil_splits(generator: np.random.Generator, dataset: TinyDataset) -> str:
    """Change ``splits_final.json`` at random; return what the error of a training says, "" if it is still sound."""
    values, message = (
        ({}, ""),
        ({"unlabeled": ["case_5"]}, ""),
        ({"unlabeled": []}, ""),
        ({"unlabeled": ["nope"]}, "nope"),
        ({"unlabeled": "case_5"}, "is not a list of"),
        ({"unlabeled": ["case_0"]}, "case_0"),
    )[generator.integers(6)]
    dataset.splits_file.write_text(json.dumps(entry(**values)))
    return message


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_random_damage(seed: int, dataset: TinyDataset, run: Callable) -> None:
    generator = np.random.default_rng(seed)
    configuration = ("2d", "3d_fullres")[generator.integers(2)]
    folder = dataset.unlabeled_folder(configuration)
    if generator.random() < 0.5:
        shutil.rmtree(folder)
    names = sorted({*SOUND_FILES, *USELESS_FILES} - {"a link to itself"})
    sound, useless = add_files(dataset, generator.choice(names, generator.integers(1, 9), replace=False).tolist())
    for name in generator.choice([name for name in SOUND_NAMES if name != "IMAGE_0"], 3, replace=False).tolist():
        add(dataset, f"{name}_0000.nii.gz")
        sound.add(name)
    for name in generator.choice(UNUSED_NAMES, 2, replace=False).tolist():
        add(dataset, name)
    if configuration == "2d" and "2D" in useless:
        useless.remove("2D")
        sound.add("2D")
    expected = {*dataset.unlabeled, *sound}

    def spoil(share: float) -> list[str]:
        made = sorted(path.stem for path in folder.glob("*.b2nd"))
        chosen = [case for case in made if generator.random() < share]
        for case in chosen:
            SPOILED_DATA[generator.choice(sorted(SPOILED_DATA))](folder / f"{case}.b2nd")
        return chosen

    spoil(0.3)
    error, printed = run("preprocess", "-d", "901", "-c", configuration, "-np", "1")
    assert error == f"error: {len(useless) + 2} images could not be preprocessed"  # and two that are not used
    assert all(f"{configuration}, {name}: " in printed for name in useless)
    assert train(dataset, configuration, "all") == expected

    message = spoil_splits(generator, dataset)
    if spoil(0.2) and message != "is not a list of":
        message = "are damaged"
    if message:
        with pytest.raises(ValueError, match=message) as failure:
            make_trainer(nnUNetTrainerMICD, dataset, configuration).on_train_start()
        assert "\n" not in str(failure.value)
    run("doctor", "-d", "901")
    run("preprocess", "-d", "901", "-c", configuration, "-np", "1")
    dataset.splits_file.write_text(json.dumps(entry()))
    assert train(dataset, configuration) == expected


@pytest.mark.parametrize("pixel_type", [np.uint8, np.int8, np.int16, np.uint16, np.float32, np.float64])
def test_a_cut_gipl_file(pixel_type: type, tmp_path: Path) -> None:
    """SimpleITK reads it, and leaves whatever the memory held in place of what is missing."""
    file = tmp_path / "a_0000.gipl"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(120).reshape(4, 5, 6).astype(pixel_type)), str(file))
    assert find_defect("a", [str(file)], 1) is None
    file.write_bytes(file.read_bytes()[:-1])
    assert find_defect("a", [str(file)], 1) == f"{file} is cut off; copy or export it again, or remove it"
