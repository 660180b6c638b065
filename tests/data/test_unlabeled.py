import shlex
import shutil
import warnings
from contextlib import suppress

import pytest
from helpers import make_volume, write_image

from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import preprocessing_fingerprint, unlabeled_folder
from nnunetv2_micd.data.splits import load_split_unlabeled
from nnunetv2_micd.data.unlabeled import UnlabeledCase, find_unlabeled_cases

TRAIN, VAL = ["case_0", "case_1"], ["case_2"]


@pytest.fixture
def find(dataset, plans):
    def call(train=TRAIN, val=VAL, split_unlabeled=()):
        planned = Dataset(dataset.name, plans.plans_manager, plans.dataset_json)
        return find_unlabeled_cases(planned, "3d_fullres", {"train": train, "val": val, "unlabeled": split_unlabeled})

    return call


def test_finds_both_sources_sorted_by_name(dataset, find):
    folder, labeled = str(dataset.unlabeled_folder()), str(dataset.labeled_folder())
    expected = [UnlabeledCase("case_4", labeled), UnlabeledCase("case_5", labeled)]
    expected += [UnlabeledCase(name, folder) for name in dataset.unlabeled]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(split_unlabeled=["case_5", "case_4"]) == expected
    shutil.rmtree(folder)
    shutil.rmtree(dataset.images)
    assert find(split_unlabeled=["case_5", "case_4"]) == expected[:2]


def test_needs_neither_labels_nor_raw_data(dataset, find, monkeypatch):
    for file in dataset.preprocessed.rglob("*_seg.b2nd"):
        file.unlink()
    shutil.rmtree(dataset.preprocessed / "gt_segmentations")
    shutil.rmtree(dataset.raw)
    assert len(find(split_unlabeled=["case_5"])) == 5
    monkeypatch.delenv("nnUNet_raw")
    assert len(find()) == 4


def test_raw_images_that_may_not_be_listed_are_not_needed(dataset, find, monkeypatch, capsys):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("nnunetv2_micd.data.raw_images._list_folder", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find()) == 4
    with suppress(SystemExit):
        main(["doctor", "-d", "901"])
    assert "unknown number of images in imagesUn" in capsys.readouterr().out


def test_a_trailing_slash_changes_nothing(dataset):
    assert unlabeled_folder(f"{dataset.labeled_folder()}/") == str(dataset.unlabeled_folder())


def test_the_command_for_images_not_preprocessed_is_exact(dataset, find):
    shutil.rmtree(dataset.unlabeled_folder())
    with pytest.raises(ValueError, match="unlabeled images are not preprocessed yet") as error:
        find()
    command = str(error.value).split("run: ")[1]
    assert command == "nnUNetv2_micd preprocess -d 901 -c 3d_fullres -p nnUNetPlans"
    main([*shlex.split(command)[1:], "-np", "1"])
    assert len(find()) == 4


def test_the_command_for_other_plans_is_exact(dataset, find, plans):
    plans.configuration_manager.configuration["normalization_schemes"] = ["RescaleTo01Normalization"]
    with pytest.raises(ValueError, match="with other plans") as error:
        find()
    assert str(error.value).endswith("nnUNetv2_micd preprocess -d 901 -c 3d_fullres -p nnUNetPlans --overwrite")
    (dataset.unlabeled_folder() / "unlabeled.json").write_text("{")
    with pytest.raises(ValueError, match="with other plans"):
        find()


def test_without_any_images_the_message_names_both_ways(dataset, find):
    shutil.rmtree(dataset.unlabeled_folder())
    shutil.rmtree(dataset.images)
    with pytest.raises(ValueError, match=r"put some into imagesUn .* preprocess -d 901 .* nnUNetv2_micd split"):
        find()


def test_new_raw_images_are_a_warning(dataset, find):
    write_image(dataset.images / "new_0000.nii.gz", make_volume(0, (8, 9, 10))[0])
    with pytest.warns(
        UserWarning, match=r"Images in imagesUn .*\(new\).* nnUNetv2_micd preprocess -d 901 -c 3d_fullres"
    ):
        assert len(find()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": ["image_1"]}, r"labeled cases of this fold \(image_1\)"),
        ({"val": ["image_3"]}, r"labeled cases of this fold \(image_3\)"),
        ({"split_unlabeled": ["case_5", "case_1"]}, r"also training, .* \(case_1\)"),
        ({"split_unlabeled": ["case_2"]}, r"also training, validation .* \(case_2\)"),
        ({"split_unlabeled": ["image_0"]}, r"imagesUn cases \(image_0\)"),
        ({"split_unlabeled": ["case_77", "case_5"]}, r"have no data in .* \(case_77\).* nnUNetv2_preprocess -d 901"),
    ],
)
def test_cases_that_cannot_be_unlabeled_are_named(find, arguments, message):
    with pytest.raises(ValueError, match=message):
        find(**arguments)


def test_load_split_unlabeled(dataset, tmp_path):
    file = str(dataset.splits_file)
    assert load_split_unlabeled(file, 0) == []
    assert load_split_unlabeled(file, 1) == ["case_1", "case_2", "case_5"]
    assert load_split_unlabeled(file, "all") == []
    with pytest.raises(ValueError, match=r"has no fold 2, but folds 0 to 1; train one of these"):
        load_split_unlabeled(file, 2)
    assert load_split_unlabeled(str(tmp_path / "missing.json"), 0) == []


def test_fingerprint_follows_what_the_voxels_depend_on(plans):
    def fingerprint():
        return preprocessing_fingerprint(plans.plans_manager, plans.configuration_manager, plans.dataset_json)

    before = fingerprint()
    configuration = plans.configuration_manager.configuration
    configuration.update(patch_size=[8, 8, 8], batch_size=7)
    plans.plans_manager.plans["plans_name"] = "other"
    plans.dataset_json["numTraining"] = 99
    assert fingerprint() == before
    changes = [
        (configuration, "spacing", [1.0, 1.0, 2.0]),
        (configuration, "normalization_schemes", ["CTNormalization"]),
        (configuration, "use_mask_for_norm", [True]),
        (configuration, "preprocessor_name", "Other"),
        (configuration, "resampling_fn_data", "other"),
        (configuration, "resampling_fn_data_kwargs", {"order": 1}),
        (plans.plans_manager.plans, "transpose_forward", [1, 0, 2]),
        (plans.plans_manager.plans, "image_reader_writer", "NibabelIO"),
        (plans.plans_manager.plans, "foreground_intensity_properties_per_channel", {}),
        (plans.dataset_json, "channel_names", {"0": "CT"}),
    ]
    for settings, key, value in changes:
        original, settings[key] = settings[key], value
        assert fingerprint() != before, key
        settings[key] = original
    plans.dataset_json["modality"] = plans.dataset_json.pop("channel_names")  # its name in older datasets
    assert fingerprint() == before
