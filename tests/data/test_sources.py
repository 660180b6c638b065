"""Raw images that are deleted, replaced or moved after they were preprocessed."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
from helpers import TinyDataset, make_volume, write_image

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import FINGERPRINT_FILE, list_preprocessed
from nnunetv2_micd.data.preprocessing import Part, preprocess_unlabeled
from nnunetv2_micd.data.sources import SOURCES_FILE, describe, read_sources
from nnunetv2_micd.data.unlabeled import find_unlabeled_cases

ENTRY = {"train": ["case_0"], "val": ["case_1"]}
IMAGES = ["image_0", "image_1", "image_2", "image_3"]


@pytest.fixture
def preprocessed(dataset: TinyDataset) -> TinyDataset:
    run(dataset)
    return dataset


def run(dataset: TinyDataset, **options: object) -> None:
    assert preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], num_processes=1, **options) == []


def file_of(dataset: TinyDataset, case: str) -> Path:
    return dataset.images / f"{case}_0000.nii.gz"


def used(dataset: TinyDataset) -> list[str]:
    return [case.identifier for case in find_unlabeled_cases(Dataset.find(dataset.id), "3d_fullres", ENTRY)]


def preprocessed_at(dataset: TinyDataset) -> dict[str, int]:
    return {file.stem: file.stat().st_mtime_ns for file in dataset.unlabeled_folder().glob("*.b2nd")}


def test_untouched_images(preprocessed: TinyDataset) -> None:
    before = preprocessed_at(preprocessed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert used(preprocessed) == IMAGES
    run(preprocessed)
    assert preprocessed_at(preprocessed) == before


def test_a_deleted_image_is_not_used_and_removed_by_preprocess(
    preprocessed: TinyDataset, capsys: pytest.CaptureFixture
) -> None:
    file_of(preprocessed, "image_1").unlink()
    with pytest.warns(UserWarning, match=r"Preprocessed images are not used, .* gone \(image_1\).*preprocess -d 901"):
        assert used(preprocessed) == ["image_0", "image_2", "image_3"]
    run(preprocessed)
    assert "as their raw files are gone: image_1" in capsys.readouterr().out
    assert list_preprocessed(preprocessed.unlabeled_folder()) == ["image_0", "image_2", "image_3"]
    assert "image_1" not in read_sources(preprocessed.unlabeled_folder())


def test_a_link_whose_file_was_deleted(preprocessed: TinyDataset, capsys: pytest.CaptureFixture) -> None:
    file = file_of(preprocessed, "image_1")
    file.unlink()
    file.symlink_to("nowhere.nii.gz")
    failures = preprocess_unlabeled(Dataset.find(preprocessed.id), ["3d_fullres"], num_processes=1)
    assert [failure.case for failure in failures] == ["image_1"]
    assert list_preprocessed(preprocessed.unlabeled_folder()) == ["image_0", "image_2", "image_3"]
    with pytest.warns(
        UserWarning,
        match=r"Images in imagesUn could not be preprocessed .*image_1 \(.*link to a file that does not exist",
    ):
        assert used(preprocessed) == ["image_0", "image_2", "image_3"]
    file.unlink()
    shutil.copy(file_of(preprocessed, "image_0"), file)
    with pytest.warns(UserWarning, match=r"Images in imagesUn are not preprocessed.*run: nnUNetv2_micd"):
        used(preprocessed)


def test_a_replaced_image_is_noticed_and_preprocessed_again(
    preprocessed: TinyDataset, capsys: pytest.CaptureFixture
) -> None:
    before = preprocessed_at(preprocessed)
    write_image(file_of(preprocessed, "image_2"), make_volume(77, (20, 22, 26))[0])
    with pytest.warns(UserWarning, match=r"Raw files have changed .*\(image_2\).*preprocess -d 901"):
        assert used(preprocessed) == IMAGES
    run(preprocessed)
    assert "Preprocessed again, as their files have changed: image_2" in capsys.readouterr().out
    after = preprocessed_at(preprocessed)
    assert [case for case in IMAGES if after[case] != before[case]] == ["image_2"]
    test_untouched_images(preprocessed)


def test_a_replaced_image_that_is_not_preprocessed_again_yet_is_noticed(preprocessed: TinyDataset) -> None:
    """As preprocess leaves it when it is stopped: the record knows the new file, and the properties are removed."""
    case = preprocessed.unlabeled[0]
    (preprocessed.unlabeled_folder() / f"{case}.pkl").unlink()
    with pytest.warns(UserWarning, match=rf"Raw files have changed .* \({case}\)"):
        used(preprocessed)


def test_raw_images_that_are_not_on_this_machine_are_not_missed(preprocessed: TinyDataset) -> None:
    shutil.move(preprocessed.images, preprocessed.root / "elsewhere")
    assert used(preprocessed) == IMAGES
    preprocessed.images.mkdir()  # emptied to make room
    assert used(preprocessed) == IMAGES


def test_images_that_were_all_exchanged_are_removed(preprocessed: TinyDataset, capsys: pytest.CaptureFixture) -> None:
    for case in IMAGES:
        file_of(preprocessed, case).rename(file_of(preprocessed, case.replace("image", "pseudonym")))
    run(preprocessed)
    assert "as their raw files are gone: image_0" in capsys.readouterr().out
    assert used(preprocessed) == [case.replace("image", "pseudonym") for case in IMAGES]


def test_other_plans_remove_images_of_other_folders_by_name(
    preprocessed: TinyDataset, capsys: pytest.CaptureFixture
) -> None:
    other = preprocessed.root / "other site"
    write_image(other / "image_9_0000.nii.gz", make_volume(5, (20, 22, 26))[0])
    run(preprocessed, folders=[str(other)])
    record = preprocessed.unlabeled_folder() / FINGERPRINT_FILE
    record.write_text(json.dumps({"fingerprint": "of other plans"}))
    with pytest.raises(ValueError, match=rf"other plans .*preprocess -d 901 .* -i '{other}' .*imagesUn --overwrite"):
        used(preprocessed)
    run(preprocessed, overwrite=True)
    printed = capsys.readouterr().out
    assert (
        f"not among the images of this command: image_9; to have them again, name their folders, too: -i '{other}'"
        in printed
    )
    assert used(preprocessed) == IMAGES
    record.write_text(json.dumps({"fingerprint": "of other plans again"}))
    with pytest.raises(ValueError, match=r"other plans .*preprocess -d 901 -c 3d_fullres -p nnUNetPlans --overwrite"):
        used(preprocessed)


def test_moved_images_are_not_preprocessed_again(preprocessed: TinyDataset) -> None:
    before = preprocessed_at(preprocessed)
    shutil.move(preprocessed.images, preprocessed.root / "elsewhere")
    run(preprocessed, folders=[str(preprocessed.root / "elsewhere")])
    assert preprocessed_at(preprocessed) == before


def test_images_of_other_parts_and_folders_stay(preprocessed: TinyDataset) -> None:
    before = preprocessed_at(preprocessed)
    other = preprocessed.root / "other"
    write_image(other / "image_9_0000.nii.gz", make_volume(5, (20, 22, 26))[0])
    run(preprocessed, folders=[str(other)])
    run(preprocessed, part=Part(1, of=3))
    assert {name: time for name, time in preprocessed_at(preprocessed).items() if name != "image_9"} == before
    assert set(read_sources(preprocessed.unlabeled_folder())) == {*IMAGES, "image_9"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"image_0": 5}', '{"image_0": ["folder", 5]}'])
def test_a_damaged_record_is_written_anew(content: str, preprocessed: TinyDataset) -> None:
    record = preprocessed.unlabeled_folder() / SOURCES_FILE
    record.write_text(content)
    assert used(preprocessed) == IMAGES
    run(preprocessed)
    assert read_sources(record.parent)["image_0"] == describe([str(file_of(preprocessed, "image_0"))])


def test_a_changed_channel_is_a_changed_image(tmp_path: Path) -> None:
    files = [tmp_path / f"image_000{channel}.nii.gz" for channel in (0, 1)]
    for file in files:
        file.write_text("old")
    source = describe([str(file) for file in files])
    assert not source.is_replaced()
    os.utime(files[1], ns=(0, 0))
    assert source.is_replaced()
    assert not source.is_gone()
    files[1].unlink()
    assert source.is_gone()
    assert not source.is_replaced()


def test_nobody_is_sent_to_preprocess_the_same_damaged_image_again(dataset: TinyDataset) -> None:
    file = file_of(dataset, "image_1")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    parts = [
        preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], num_processes=1, part=Part(i, 2)) for i in (1, 0)
    ]
    assert [failure.case for failures in parts for failure in failures] == ["image_1"]
    with pytest.warns(UserWarning, match=r"could not be preprocessed.*image_1 \(.*damaged; copy or export"):
        assert used(dataset) == ["image_0", "image_2", "image_3"]
    file.write_bytes(whole)
    with pytest.warns(UserWarning, match=r"Images in imagesUn are not preprocessed.*run: nnUNetv2_micd"):
        used(dataset)
    run(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert used(dataset) == IMAGES


def test_no_image_could_be_preprocessed(dataset: TinyDataset) -> None:
    for image in IMAGES:
        file_of(dataset, image).write_bytes(b"")
    preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], num_processes=1)
    with pytest.raises(ValueError, match=r"None of the unlabeled images could be preprocessed; .*image_0 \(.*is empty"):
        used(dataset)
