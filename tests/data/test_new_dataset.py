"""From ordinary folders to a raw dataset."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from helpers import TinyDataset, write_image
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from skimage.io import imread, imsave

from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.new_dataset_content import read_content
from nnunetv2_micd.data.new_dataset_files import Sources, find_files

VOLUME = np.random.RandomState(0).randint(0, 250, (6, 8, 10)).astype(np.int16)
LABEL = (VOLUME > 125).astype(np.uint8) + (VOLUME > 200)


@pytest.fixture
def home(dataset: TinyDataset) -> Path:
    """A folder with two labeled and one unlabeled image, beside nnU-Net's folders."""
    home = dataset.root / "home"
    for name in "ab":
        write_image(home / "images" / f"{name}.nii.gz", VOLUME)
        write_image(home / "labels" / f"{name}.nii.gz", LABEL)
    write_image(home / "more" / "c.nii.gz", VOLUME)
    return home


def call(home: Path, *options: str) -> None:
    folders = [f"-{key}={home / name}" for key, name in (("i", "images"), ("l", "labels"), ("u", "more"))]
    main(["dataset", "-d", "42", "-n", "New", *folders, *options])


def made(home: Path) -> Path:
    return home.parent / "raw" / "Dataset042_New"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_from_folders_to_commands(home: Path, capsys: pytest.CaptureFixture) -> None:
    call(home, "--channels", "MR", "--classes", "edema", "tumor")
    folder = made(home)
    assert names(folder / "imagesTr") == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert names(folder / "labelsTr") == ["a.nii.gz", "b.nii.gz"]
    assert names(folder / "imagesUn") == ["c_0000.nii.gz"]
    assert (folder / "labelsTr" / "a.nii.gz").resolve() == (home / "labels" / "a.nii.gz").resolve()
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "edema": 1, "tumor": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    verify_dataset_integrity(str(folder), 1)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("images: 2 labeled, 1 unlabeled; labels: 0, 1, 2") for line in lines)
    assert "nnUNetv2_micd preprocess -d 42 -c 3d_fullres" in lines
    assert "nnUNetv2_train 42 3d_fullres 0 -tr nnUNetTrainerSelfTraining" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-d", "901"), "The number 901 belongs to Dataset901_Tiny already"),
        (("-n", "../x"), "letters, digits, - and _ only"),
        (("--classes", "liver", "liver"), "The classes need different names"),
        (("--channels", "T1", "T1"), "The channels need different names"),
        ((), "give them: --channels CT"),  # nobody can be asked
        (("--channels", "T1", "T2"), "The number of channels of the images is 1; they need as many names, not T1 T2"),
        (("--channels", ""), "The channels need names, and one of them is empty"),
    ],
)
def test_wrong_words_of_a_command_are_said_before_any_label_is_read(
    options: tuple[str, ...], message: str, home: Path
) -> None:
    (home / "labels" / "b.nii.gz").write_bytes(b"")
    with pytest.raises(SystemExit, match=message):
        call(home, *options)


def test_nothing_is_overwritten(home: Path) -> None:
    call(home, "--channels", "MR")
    before = (made(home) / "dataset.json").stat().st_mtime_ns
    with pytest.raises(SystemExit, match="The number 42 belongs to Dataset042_New already"):
        call(home, "--channels", "MR")
    assert (made(home) / "dataset.json").stat().st_mtime_ns == before


def test_copies(home: Path) -> None:
    call(home, "--channels", "MR", "--copy")
    file = made(home) / "imagesTr" / "a_0000.nii.gz"
    assert not file.is_symlink()
    assert file.read_bytes() == (home / "images" / "a.nii.gz").read_bytes()


def test_several_channels(home: Path) -> None:
    for name in ("images", "more"):
        for file in (home / name).iterdir():
            write_image(home / f"{name}2" / file.name, VOLUME + 1)
    folders = [str(home / name) for name in ("images", "images2", "labels", "more", "more2")]
    options = ["-i", *folders[:2], "-l", folders[2], "-u", *folders[3:], "--channels", "T1", "T2"]
    main(["dataset", "-d", "42", "-n", "New", *options])
    assert names(made(home) / "imagesUn") == ["c_0000.nii.gz", "c_0001.nii.gz"]
    second = sitk.GetArrayFromImage(sitk.ReadImage(str(made(home) / "imagesTr" / "a_0001.nii.gz")))
    np.testing.assert_array_equal(second, VOLUME + 1)
    verify_dataset_integrity(str(made(home)), 1)


def test_names_as_in_nnunet_and_labels_with_an_addition(home: Path) -> None:
    for folder, addition in (("images", "_0000"), ("more", "_0000"), ("labels", "_seg")):
        for file in list((home / folder).iterdir()):
            file.rename(file.with_name(file.name.replace(".nii", f"{addition}.nii")))
    call(home, "--channels", "MR")
    assert names(made(home) / "imagesTr") == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert names(made(home) / "labelsTr") == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("part", ["images", "more"])
@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ({"a": "012", "b": "01"}, r"others: b \(b_0000.png, b_0001.png\); add or rename their files"),
        (
            {"a": "012", "b": "02"},
            r"are CASE_0000.png, CASE_0001.png, CASE_0002.png, .*: b \(b_0000.png, b_0002",
        ),
        ({"a": "012", "b": "12", "c": "2"}, r"others: b \(b_0001.png, b_0002.png\), c \(c_0002.png\)"),
    ],
)
def test_cases_that_lack_channels_are_named(part: str, cases: dict[str, str], message: str, tmp_path: Path) -> None:
    whole = {"x": "012", "y": "012"}
    folders = {"images": {**whole, **cases} if part == "images" else whole, "more": cases if part == "more" else {}}
    for folder, content in folders.items():
        (tmp_path / folder).mkdir()
        for case, channels in content.items():
            for channel in channels:
                (tmp_path / folder / f"{case}_000{channel}.png").touch()
    (tmp_path / "labels").mkdir()
    for case in folders["images"]:
        (tmp_path / "labels" / f"{case}.png").touch()
    images, labels, unlabeled = (str(tmp_path / name) for name in ("images", "labels", "more"))
    sources = Sources([images], labels, [unlabeled] if part == "more" else ())
    with pytest.raises(ValueError, match=message):
        find_files(sources)
    if part == "more":
        (tmp_path / "more" / "a.png").touch()
        with pytest.raises(ValueError, match=r"others: a \(a_0000.png, a_0001.png, a_0002.png, a.png\), b"):
            find_files(sources)


def test_a_channel_that_all_cases_lack(tmp_path: Path) -> None:
    for name in ("images/a_0000", "images/a_0002", "images/b_0000", "images/b_0002", "labels/a", "labels/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    with pytest.raises(ValueError, match=r"are CASE_0000.png, CASE_0001.png, but .* others: a \(a_0000.png, a_0002"):
        find_files(Sources([str(tmp_path / "images")], str(tmp_path / "labels")))


def test_unlabeled_images_of_one_channel_may_have_numbers_of_their_own(tmp_path: Path) -> None:
    for name in ("images/a_0000", "labels/a", "more/slice_0005", "more/slice_0007"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    images, labels, more = (str(tmp_path / name) for name in ("images", "labels", "more"))
    assert find_files(Sources([images], labels, [more])).unlabeled.keys() == {"slice_0005", "slice_0007"}
    for name in ("c_0000", "d_0000", "d_0001"):
        (tmp_path / "more" / f"{name}.png").touch()
    for name in ("slice_0005", "slice_0007"):
        (tmp_path / "more" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=r"are CASE_0000.png, but these images have others: d \(d_0000.png, d_0001"):
        find_files(Sources([images], labels, [more]))


def test_a_label_in_another_orientation_is_named(home: Path, capsys: pytest.CaptureFixture) -> None:
    label = sitk.GetImageFromArray(LABEL)
    label.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(label, str(home / "labels" / "b.nii.gz"))
    call(home, "--channels", "MR")
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "orientation" in line]
    assert f"the label {home / 'labels' / 'b.nii.gz'} lies in another orientation than its image" in warning


def test_masks_with_soft_edges_are_refused(home: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("png", "masks"):
        (home / folder).mkdir()
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (12, 1))
    for folder in ("png", "masks"):
        imsave(home / folder / "x.png", ramp, check_contrast=False)
    with pytest.raises(
        SystemExit, match=r"x.png has 40 different gray values, .* soft edges; save it without smoothing"
    ):
        main(["dataset", "-d", "42", "-n", "New", "-i", str(home / "png"), "-l", str(home / "masks")])
    assert not made(home).exists()


def test_photographs_with_masks_of_255(home: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("png", "masks"):
        (home / folder).mkdir()
    image = np.random.RandomState(1).randint(0, 255, (12, 14, 3)).astype(np.uint8)
    mask = (image[..., 0] > 99).astype(np.uint8) * 255
    for name in ("x", "y"):
        imsave(home / "png" / f"{name}.png", image, check_contrast=False)
        imsave(home / "masks" / f"{name}.png", mask, check_contrast=False)
    main(["dataset", "-d", "42", "-n", "New", "-i", str(home / "png"), "-l", str(home / "masks")])
    np.testing.assert_array_equal(imread(made(home) / "labelsTr" / "x.png"), mask // 255)
    assert imread(home / "masks" / "x.png").max() == 255  # the user's file stays
    description = json.loads((made(home) / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert description["labels"] == {"background": 0, "class_255": 1}
    verify_dataset_integrity(str(made(home)), 1)
    out = capsys.readouterr().out
    assert "nnUNetv2_train 42 2d 0" in out
    assert "nnUNetv2_micd preprocess" not in out


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    imsave(path, array.astype(np.uint8), check_contrast=False)


PHOTO = np.random.RandomState(2).randint(0, 255, (12, 14))


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_gray_labels_with_colors_get_one_channel(ending: str, home: Path) -> None:
    colors = np.repeat((PHOTO > 99)[..., None], 3, axis=2)
    write_png(home / "photos" / f"a{ending}", np.stack([PHOTO] * 3, -1))
    write_png(home / "masks" / f"a{ending}", colors)
    main(["dataset", "-d", "42", "-n", "New", "-i", str(home / "photos"), "-l", str(home / "masks")])
    np.testing.assert_array_equal(imread(made(home) / "labelsTr" / f"a{ending}"), PHOTO > 99)
    assert json.loads((made(home) / "dataset.json").read_text())["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    verify_dataset_integrity(str(made(home)), 1)


def test_images_to_predict(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_image(home / "new" / "d.nii.gz", VOLUME)
    call(home, "--channels", "MR", "-t", str(home / "new"))
    assert names(made(home) / "imagesTs") == ["d_0000.nii.gz"]
    command = f"nnUNetv2_predict -i {made(home) / 'imagesTs'} -o PREDICTIONS -d 42 -c 3d_fullres -f 0 -tr"
    assert command in capsys.readouterr().out


def test_the_folder_of_raw_datasets_is_needed_before_any_label_is_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "labels" / "b.nii.gz").write_bytes(b"")
    monkeypatch.setenv("nnUNet_raw", str(home / "nowhere"))
    with pytest.raises(SystemExit, match=r"nnUNet_raw names the folder .*nowhere, which does not exist"):
        call(home, "--channels", "MR")


@pytest.mark.parametrize("addition", ["", "_seg"])
def test_photographs_with_numbers_in_their_names(home: Path, addition: str) -> None:
    for number in (0, 1):
        write_png(home / "png" / f"img_000{number}.png", PHOTO)
        write_png(home / "masks" / f"img_000{number}{addition}.png", PHOTO > 99)
        write_png(home / "frames" / f"frame_000{number}.png", PHOTO)
    options = ["-i", str(home / "png"), "-l", str(home / "masks"), "-u", str(home / "frames")]
    main(["dataset", "-d", "42", "-n", "New", *options])
    assert names(made(home) / "imagesTr") == ["img_0000_0000.png", "img_0001_0000.png"]
    assert names(made(home) / "imagesUn") == ["frame_0000_0000.png", "frame_0001_0000.png"]
    verify_dataset_integrity(str(made(home)), 1)


def test_names_that_begin_alike(home: Path) -> None:
    for case in ("a", "a_b"):
        write_image(home / "two" / f"{case}.nii.gz", VOLUME)
        write_image(home / "two_labels" / f"{case}_seg.nii.gz", LABEL)
    main(["dataset", "-d", "42", "-n", "New", f"-i={home / 'two'}", f"-l={home / 'two_labels'}", "--channels", "MR"])
    assert (made(home) / "labelsTr" / "a.nii.gz").resolve().name == "a_seg.nii.gz"
    assert (made(home) / "labelsTr" / "a_b.nii.gz").resolve().name == "a_b_seg.nii.gz"


def test_colored_masks_are_refused(home: Path) -> None:
    colors = np.stack([PHOTO > 99, PHOTO > 50, PHOTO < 0], -1) * 128
    write_png(home / "png" / "a.png", PHOTO)
    write_png(home / "masks" / "a.png", colors)
    with pytest.raises(ValueError, match=r"a\.png is a colored image; export it with the number of the class"):
        read_content(find_files(Sources([str(home / "png")], str(home / "masks"))))


def test_endings_in_capitals_are_named(home: Path) -> None:
    write_png(home / "png" / "a.png", PHOTO)
    (home / "png" / "a.png").rename(home / "png" / "B.PNG")
    write_png(home / "png" / "a.png", PHOTO)
    with pytest.raises(ValueError, match=r"wants the ending \.png in small letters; rename B\.PNG"):
        read_content(find_files(Sources([str(home / "png")], str(home / "labels"))))


def test_spacing_of_tiffs(home: Path) -> None:
    for folder, array in (("tif", VOLUME), ("tif_labels", LABEL)):
        (home / folder).mkdir()
        tifffile.imwrite(home / folder / "x.tif", array)
        (home / folder / "x.json").write_text('{"spacing": [2, 1, 1]}')
    options = ["-i", str(home / "tif"), "-l", str(home / "tif_labels"), "--channels", "EM"]
    main(["dataset", "-d", "42", "-n", "New", *options])
    assert names(made(home) / "imagesTr") == ["x.json", "x_0000.tif"]
    assert names(made(home) / "labelsTr") == ["x.json", "x.tif"]


@pytest.mark.parametrize("factor", [1, 255])  # as they are, written anew
def test_a_tiff_label_without_spacing_has_that_of_its_image(factor: int, home: Path) -> None:
    for folder, array in (("tif", VOLUME), ("tif_labels", (factor * (LABEL > 0)).astype(np.uint8))):
        (home / folder).mkdir()
        tifffile.imwrite(home / folder / "x.tif", array)
    (home / "tif" / "x.json").write_text('{"spacing": [2, 1, 1]}')
    options = ["-i", str(home / "tif"), "-l", str(home / "tif_labels"), "--channels", "EM"]
    main(["dataset", "-d", "42", "-n", "New", *options])
    verify_dataset_integrity(str(made(home)), 1)
    assert json.loads((made(home) / "labelsTr" / "x.json").read_text()) == {"spacing": [2, 1, 1]}


def test_spacings_are_compared_as_nnunet_does(home: Path) -> None:
    write_image(home / "labels" / "b.nii.gz", LABEL, spacing=(1.0005, 1, 1))
    with pytest.raises(SystemExit, match=r"b has the spacing .*; save the label with that of its image"):
        call(home, "--channels", "MR")


@pytest.mark.parametrize("error", ["ITK ERROR: no space left", None])
def test_a_full_disk_leaves_no_half_label(error: str | None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(home / "labels" / "b.nii.gz", (255 * (LABEL > 0)).astype(np.uint8))
    write_image(home / "labels" / "a.nii.gz", (255 * (LABEL > 0)).astype(np.uint8))

    def write(reader: object, label: np.ndarray, file: str, properties: object) -> None:
        if error:
            raise RuntimeError(error)
        Path(file).write_bytes((home / "labels" / "a.nii.gz").read_bytes()[:50])  # as SimpleITK leaves it

    monkeypatch.setattr("nnunetv2.imageio.simpleitk_reader_writer.SimpleITKIO.write_seg", write)
    monkeypatch.setattr("nnunetv2.imageio.nibabel_reader_writer.NibabelIO.write_seg", write)
    with pytest.raises(SystemExit, match=r"error: Cannot write .*a.nii.gz .*most often because the disk is full"):
        call(home, "--channels", "MR")
    assert not made(home).exists()


def test_a_disk_without_links(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(SystemExit, match=r"error: The disk of .* has no links to files; add --copy to copy them"):
        call(home, "--channels", "MR")


def test_numbers_at_the_end_of_the_names_of_tiffs(home: Path) -> None:
    for folder, array in (("tif", VOLUME), ("tif_labels", LABEL)):
        (home / folder).mkdir()
        tifffile.imwrite(home / folder / "x_0001.tif", array)
        (home / folder / "x_0001.json").write_text('{"spacing": [2, 1, 1]}')
    options = ["-i", str(home / "tif"), "-l", str(home / "tif_labels"), "--channels", "EM"]
    main(["dataset", "-d", "42", "-n", "New", *options])
    assert names(made(home) / "imagesTr") == ["x_0001.json", "x_0001_0000.tif"]
    assert names(made(home) / "labelsTr") == ["x_0001.json", "x_0001.tif"]
    verify_dataset_integrity(str(made(home)), 1)


def test_channels_are_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="give them: --channels CT for CT"):
        call(home)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def leave(question: str) -> str:
        raise EOFError  # Ctrl-D

    monkeypatch.setattr("builtins.input", leave)
    with pytest.raises(SystemExit, match="give them: --channels CT for CT"):
        call(home)
    monkeypatch.setattr("builtins.input", lambda question: "CT")
    call(home)
    assert json.loads((made(home) / "dataset.json").read_text())["channel_names"] == {"0": "CT"}


def remove(name: str) -> Callable[[Path], None]:
    return lambda home: (home / name).unlink()


def cut(name: str) -> Callable[[Path], object]:
    return lambda home: (home / name).write_bytes((home / name).read_bytes()[:-20])


def put(name: str, array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> Callable[[Path], None]:
    return lambda home: write_image(home / name, array, spacing)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("labels/a.nii.gz"), r"have no label in .*: a; name the labels like the images, and move .* \(-u\)"),
        (remove("images/a.nii.gz"), r"labels in .* have no image: a; rename or remove them"),
        (put("more/a.nii.gz", VOLUME), r"labeled and unlabeled \(a\); rename or remove"),
        (put("labels/a.nii.gz", LABEL[1:]), r"a has 6 x 8 x 10 voxels, but its label .* has 5 x 8 x 10"),
        (put("labels/a.nii.gz", LABEL, (2, 1, 1)), "a has the spacing .* but its label"),
        (put("labels/a.nii.gz", VOLUME / 3), "a.nii.gz is no label: its values are not whole numbers from 0 on"),
        (put("labels/a.nii.gz", LABEL - 1.0), "a.nii.gz is no label: its values are not whole numbers from 0 on"),
        (
            put("labels/a.nii.gz", np.arange(480).reshape(VOLUME.shape)),
            "The labels have more than 255 values up to .*a.nii.gz; are they images",
        ),
        (cut("images/a.nii.gz"), r"images/a.nii.gz is cut off or damaged; copy or export it again"),
        (cut("labels/b.nii.gz"), r"labels/b.nii.gz is cut off or damaged; copy or export it again"),
        (put("images/a.mha", VOLUME), r"files of several kinds \(.mha, .nii.gz\); keep one kind"),
        (
            lambda home: (home / "images" / "a.nii.gz").write_bytes(b"no image"),
            r"a\.nii\.gz cannot be read .*; copy or export it again",
        ),
        (lambda home: os.rename(home / "more", home / "less"), "There is no folder .*more; name an existing one"),
        (lambda home: [path.unlink() for path in (home / "more").iterdir()], "There are no images in .*more"),
    ],
)
def test_wrong_folders(damage: Callable[[Path], object], message: str, home: Path) -> None:
    damage(home)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        call(home, "--channels", "MR")
    assert not made(home).exists()
    assert not list(made(home).parent.glob("incomplete*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--channels", "T1", "T2"),
            "The number of channels of the images is 1; they need as many names, not T1 T2",
        ),
        (
            ("--channels", "MR", "--classes", "liver"),
            r"The number of values of the labels \(1, 2\) is 2; they need as many",
        ),
        (("--channels", "MR", "--classes", "liver", "liver"), "The classes need different names, not liver liver"),
        (("--channels", "MR", "--classes", "background", "liver"), "The value 0 is called background"),
        (("--channels", "MR", "-n", "../x"), "letters, digits, - and _ only, not '../x'"),
        (("--channels", "MR", "-d", "1000"), "needs a number from 1 to 999, not 1000"),
    ],
)
def test_wrong_options(options: tuple[str, ...], message: str, home: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        call(home, *options)


def test_jpegs_are_refused(home: Path) -> None:
    (home / "jpg").mkdir()
    (home / "jpg" / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"are \.jpg files, which nnU-Net does not read; convert them"):
        read_content(find_files(Sources([str(home / "jpg")], str(home / "labels"))))
