"""The modes of nnU-Net: regions, ignore label, deep supervision off, all folds, several channels, masks, dummy 2D."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import (
    ABLATIONS,
    BOTH,
    IGNORE,
    REGIONS,
    TinyDataset,
    make_trainer,
    needs_cuda,
    preprocess_labeled,
    relabel,
    write_image,
)
from helpers import METHODS as ALL_METHODS
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainerCosAnneal import nnUNetTrainerCosAnneal
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessing import preprocess_unlabeled
from nnunetv2_micd.data.unlabeled import UnlabeledCase
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.micd_paper import nnUNetTrainerMICD_paper
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.methods.unimatch import nnUNetTrainerUniMatch
from nnunetv2_micd.training import cascade
from nnunetv2_micd.training.cascade import check_previous_stage, segment_for_next_stages
from nnunetv2_micd.training.loader import UnlabeledImages
from nnunetv2_micd.training.messages import next_commands
from nnunetv2_micd.training.monitor import PATCHES_FOLDER


def in_fast_tests(*methods: type) -> list[Any]:
    """Return all methods but the ablations, those that are not named here for the slow tests only."""
    others = [method for method in ALL_METHODS if method not in (*methods, *ABLATIONS)]
    return [*methods, *(pytest.param(method, marks=pytest.mark.slow) for method in others)]


def train(method: type, dataset: TinyDataset, configuration: str = "3d_fullres", **options: Any) -> Any:
    trainer = make_trainer(method, dataset, configuration, **options)
    trainer.run_training()
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    predict(trainer)
    return trainer


def predict(trainer: Any) -> None:
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(Path(trainer.output_folder).parent), use_folds=(trainer.fold,))
    image = torch.randn(trainer.num_input_channels, 1, *trainer.configuration_manager.patch_size)
    logits = predictor.predict_sliding_window_return_logits(image if image.ndim == 4 else image[:, 0])
    assert logits.isfinite().all()
    assert len(logits) == trainer.label_manager.num_segmentation_heads


@pytest.mark.parametrize(
    "description",
    [BOTH, *(pytest.param(labels, marks=pytest.mark.slow) for labels in (REGIONS, IGNORE))],
    ids=["regions and ignore", "regions", "ignore"],
)
@pytest.mark.parametrize(
    "method", in_fast_tests(nnUNetTrainerMICD_paper, nnUNetTrainerMeanTeacher, nnUNetTrainerUniMatch)
)
def test_regions_and_ignore_label(method: type, description: dict[str, Any], dataset: TinyDataset) -> None:
    relabel(dataset, description, annotated_slices=None if description is REGIONS else 6)
    train(method, dataset)


def test_ignored_voxels_have_no_supervised_loss_but_take_part_in_consistency(dataset: TinyDataset) -> None:
    relabel(dataset, IGNORE, annotated_slices=6)
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    for target in labeled["target"]:
        target.fill_(3)
    supervised, _, consistency = itertools.islice(trainer.compute_losses(labeled, unlabeled), 3)
    gradients = torch.autograd.grad(
        supervised.supervised["supervised"], list(trainer.network.parameters()), allow_unused=True
    )
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    gradients = torch.autograd.grad(
        sum(consistency.unsupervised.values()), list(trainer.network.parameters()), allow_unused=True
    )
    assert any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("method", in_fast_tests(nnUNetTrainerMICD, nnUNetTrainerCPS))
def test_without_deep_supervision(method: type, dataset: TinyDataset) -> None:
    trainer = make_trainer(type("Trainer", (nnUNetTrainerNoDeepSupervision, method), {}), dataset)
    trainer.run_training()
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    assert not trainer.teachers["a"].decoder.deep_supervision


def test_a_learning_rate_schedule_of_pytorch_holds_for_all_networks(dataset: TinyDataset) -> None:
    trainer = make_trainer(type("Trainer", (nnUNetTrainerCosAnneal, nnUNetTrainerMICD), {}), dataset)
    trainer.run_training()
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] == pytest.approx(trainer.initial_lr / 2)  # of the second of two epochs
    trained = {id(parameter) for network in trainer.students.values() for parameter in network.parameters()}
    assert trained == set(map(id, group["params"]))


def test_all_folds(dataset: TinyDataset) -> None:
    trainer = train(nnUNetTrainerMICD, dataset, fold="all")
    assert len(trainer.labeled_cases.identifiers) == len(dataset.labeled)


def test_several_channels_masks_and_dummy_2d(dataset: TinyDataset) -> None:
    for path in [*(dataset.raw / "imagesTr").iterdir(), *dataset.images.iterdir()]:
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        array[:2] = 0  # outside of the nonzero mask, but not cropped away:
        array[0, 0, 0] = 1
        write_image(path, array, image.GetSpacing())
        write_image(path.with_name(path.name.replace("_0000", "_0001")), array * 2, image.GetSpacing())
    for folder in (dataset.raw, dataset.preprocessed):
        description = json.loads((folder / "dataset.json").read_text())
        description["channel_names"] = {"0": "T1", "1": "T2"}
        (folder / "dataset.json").write_text(json.dumps(description))
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"] |= {
        "patch_size": [4, 20, 24],
        "use_mask_for_norm": [True, False],
        "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
    }
    plans["configurations"].pop("2d")
    properties = plans["foreground_intensity_properties_per_channel"]
    properties["1"] = properties["0"]
    dataset.plans_file.write_text(json.dumps(plans))
    preprocess_labeled(dataset)
    with pytest.raises(ValueError, match="preprocessed with other plans"):
        make_trainer(nnUNetTrainerMICD, dataset).on_train_start()
    assert preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], overwrite=True, num_processes=1) == []
    trainer = train(nnUNetTrainerMICD, dataset)
    _, dummy_2d, _, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert dummy_2d
    assert trainer.num_input_channels == 2


@pytest.mark.slow
def test_cascade(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.default_num_processes", 1)
    plans = json.loads(dataset.plans_file.read_text())
    configurations = plans["configurations"]
    configurations.pop("2d")
    configurations["3d_lowres"] = {
        **configurations["3d_fullres"],
        "spacing": [1.5, 1.5, 1.5],
        "data_identifier": "nnUNetPlans_3d_lowres",
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    dataset.plans_file.write_text(json.dumps(plans))
    preprocess_labeled(dataset)
    assert preprocess_unlabeled(Dataset.find(dataset.id), ["3d_lowres"], num_processes=1) == []

    first = make_trainer(nnUNetTrainerMICD, dataset, "3d_lowres", fold="all")
    first.run_training()
    second = make_trainer(nnUNetTrainerMICD, dataset, "3d_cascade_fullres")
    with pytest.raises(ValueError, match=r"5 labeled cases have no segmentation.*3d_lowres FOLD .*--val"):
        second.get_tr_and_val_datasets()
    first.perform_actual_validation()
    segmentations = Path(second.folder_with_segs_from_previous_stage)
    assert {path.name for path in segmentations.iterdir()} == {
        f"{n}.b2nd" for n in (*dataset.labeled, *dataset.unlabeled)
    }
    assert first.teachers["a"].decoder.deep_supervision
    (segmentations / "image_0.b2nd").rename(segmentations / "elsewhere.b2nd")
    with pytest.raises(ValueError, match=r"1 unlabeled images have no segmentation.*\(image_0\)"):
        second.get_tr_and_val_datasets()
    (segmentations / "elsewhere.b2nd").rename(segmentations / "image_0.b2nd")

    second = make_trainer(nnUNetTrainerMICD, dataset, "3d_cascade_fullres")
    second.run_training()
    patch = second._last_unlabeled
    assert patch.shape[1] == second.num_input_channels == 3  # the image and the two classes of the first stage
    assert set(patch[:, 1:].unique().tolist()) <= {0.0, 1.0}
    for name in dataset.unlabeled:
        image = second.unlabeled_images.load_image(name)
        assert second.unlabeled_images.load_previous_stage(name).shape == image.shape[1:]


def test_the_second_stage_takes_labeled_cases_in_the_older_format(dataset: TinyDataset) -> None:
    """Their segmentations of the first stage are in that format as well, those of unlabeled images are not."""
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"] |= {
        "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_last"},
        "3d_last": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    dataset.plans_file.write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerMICD, dataset, "3d_last")
    seen = Path(trainer.folder_with_segs_from_previous_stage)
    seen.mkdir(parents=True)
    folder = str(dataset.labeled_folder())
    for case in dataset.labeled:
        image, labels, _, properties = nnUNetDatasetBlosc2(folder, [case]).load_case(case)
        nnUNetDatasetNumpy.save_case(image[:], labels[:], properties, str(Path(folder, case)))
        nnUNetDatasetNumpy.save_seg(labels[0], str(seen / case))
        for name in (f"{case}.b2nd", f"{case}_seg.b2nd"):
            Path(folder, name).unlink()
    images = UnlabeledImages([UnlabeledCase(case, str(dataset.unlabeled_folder())) for case in dataset.unlabeled])
    for case in dataset.unlabeled:
        shape = images.load_image(case).shape[1:]
        nnUNetDatasetBlosc2.save_seg(np.ones(shape, np.uint8), str(seen / case), shape, shape)
    training, _ = trainer.get_tr_and_val_datasets()
    image, _, first_stage, _ = training.load_case(training.identifiers[0])
    assert first_stage.shape == image.shape[1:]


def test_a_middle_stage_of_a_cascade_sees_the_previous_one_as_well(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"] |= {
        "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_middle"},
        "3d_middle": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres", "next_stage": "3d_last"},
        "3d_last": {"inherits_from": "3d_fullres", "previous_stage": "3d_middle"},
    }
    dataset.plans_file.write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerMICD, dataset, "3d_middle")
    trainer.initialize()
    case = UnlabeledCase("image_3", str(dataset.unlabeled_folder()))  # the smallest
    shape = UnlabeledImages([case]).load_image("image_3").shape[1:]
    seen = Path(trainer.folder_with_segs_from_previous_stage)
    seen.mkdir(parents=True)
    nnUNetDatasetBlosc2.save_seg(np.ones(shape, np.uint8), str(seen / "image_3"), shape, shape)
    network = trainer.teachers["a"]
    network.decoder.deep_supervision = False
    segment_for_next_stages(trainer, network, [case])
    assert (Path(trainer.output_folder_base) / "predicted_next_stage" / "3d_last" / "image_3.b2nd").is_file()


def test_the_printed_commands_of_a_cascade_begin_with_the_stages_before(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"] |= {
        "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_middle"},
        "3d_middle": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres", "next_stage": "3d_last"},
        "3d_last": {"inherits_from": "3d_fullres", "previous_stage": "3d_middle"},
    }
    dataset.plans_file.write_text(json.dumps(plans))
    lines = next_commands(make_trainer(nnUNetTrainerMICD, dataset, "3d_last")).splitlines()
    commands = [line.split() for line in lines if "nnUNetv2_predict" in line]
    assert [[command[command.index(option) + 1] for option in ("-c", "-f", "-o")] for command in commands] == [
        ["3d_lowres", "FOLDS", "OUTPUT_FOLDER_3d_lowres"],
        ["3d_middle", "FOLDS", "OUTPUT_FOLDER_3d_middle"],
        ["3d_last", "0", "OUTPUT_FOLDER"],
    ]
    assert [command[command.index("-o") + 2 :] for command in commands] == [
        [],
        ["-prev_stage_predictions", "OUTPUT_FOLDER_3d_lowres"],
        ["-prev_stage_predictions", "OUTPUT_FOLDER_3d_middle"],
    ]
    (single,) = [
        line
        for line in next_commands(make_trainer(nnUNetTrainerMICD, dataset)).splitlines()
        if "nnUNetv2_predict" in line
    ]
    assert single.endswith("-c 3d_fullres -p nnUNetPlans -tr nnUNetTrainerMICD -f 0 -i INPUT_FOLDER -o OUTPUT_FOLDER")


def test_a_replaced_image_needs_a_new_segmentation(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    dataset.plans_file.write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerMICD, dataset, "3d_lowres")
    trainer.initialize()
    network, case = trainer.teachers["a"], UnlabeledCase("image_3", str(dataset.unlabeled_folder()))  # the smallest
    network.decoder.deep_supervision = False
    folder = Path(trainer.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres"
    preprocess = partial(preprocess_unlabeled, Dataset.find(dataset.id), ["3d_fullres"], num_processes=1)
    check = partial(check_previous_stage, UnlabeledImages([case], str(folder)), "unlabeled images", "COMMAND")
    changed = r"1 unlabeled images have changed since .*segmented them in .*\(image_3\); .*: COMMAND"

    segment_for_next_stages(trainer, network, [case])
    preprocess(overwrite=True)
    check()  # the same image once more is no other one
    raw = dataset.images / "image_3_0000.nii.gz"
    image = sitk.ReadImage(str(raw))
    write_image(raw, sitk.GetArrayFromImage(image) + 1, image.GetSpacing())
    preprocess()
    with pytest.raises(ValueError, match=changed):
        check()
    segment_for_next_stages(trainer, network, [case])
    check()
    (folder / "image_3.b2nd").unlink()
    nnUNetDatasetBlosc2.save_seg(np.zeros((5, 5, 5), np.uint8), str(folder / "image_3"), (5, 5, 5), (5, 5, 5))
    with pytest.raises(ValueError, match=changed):
        check()
    (folder / "image_3.b2nd").write_bytes(b"")
    with pytest.raises(ValueError, match="1 unlabeled images have no segmentation of the previous stage"):
        check()


def test_an_image_is_segmented_once_for_the_next_stage(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one of the folds, and by that one again only if its weights are others."""
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    dataset.plans_file.write_text(json.dumps(plans))
    preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], num_processes=1)  # records the raw files
    case = UnlabeledCase("image_3", str(dataset.unlabeled_folder()))  # the smallest
    segmented: list[int] = []
    save = cascade._save_segmentation
    monkeypatch.setattr(cascade, "_save_segmentation", lambda *args: segmented.append(args[0].fold) or save(*args))

    def segment(fold: int, change: float = 0) -> None:
        trainer = make_trainer(nnUNetTrainerMICD, dataset, "3d_lowres", fold=fold)
        trainer.initialize()
        network = trainer.teachers["a"]
        network.decoder.deep_supervision = False
        with torch.no_grad():
            for number, weight in enumerate(network.parameters()):
                weight.fill_(0.01 * (number + 1) + change)
        segment_for_next_stages(trainer, network, [case])

    segment(0)
    segment(0)
    segment(1)
    assert segmented == [0]
    segment(1, change=0.01)
    assert segmented == [0]
    segment(0, change=0.01)
    assert segmented == [0, 0]


def test_folds_of_cases_in_the_older_format(dataset: TinyDataset) -> None:
    dataset.splits_file.unlink()
    for path in dataset.labeled_folder().glob("*.b2nd"):
        path.unlink() if path.stem.endswith("_seg") else path.rename(path.with_suffix(".npz"))
    training, validation = make_trainer(nnUNetTrainerMICD, dataset).do_split()
    assert sorted([*training, *validation]) == list(dataset.labeled)


@pytest.mark.slow  # tracing takes a while
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("method", in_fast_tests())
def test_compiled(method: type, configuration: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and split as on CUDA but run without generating code; nnU-Net never compiles on the CPU by itself."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = take_one_step(method, dataset, configuration)
    monkeypatch.setattr(method, "_do_i_compile", lambda self: True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = take_one_step(method, dataset, configuration)
        assert_equal_networks(plain, compiled)
        compiled.run_training()  # validates during and after the training, where deep supervision is off
        compiled.perform_actual_validation()
    assert type(compiled.network).__name__ == "OptimizedModule"
    predict(compiled)
    resumed = make_trainer(method, dataset, configuration)
    resumed.load_checkpoint(str(Path(compiled.output_folder) / "checkpoint_final.pth"))


@needs_cuda
@pytest.mark.parametrize("method", ALL_METHODS)
def test_on_cuda(method: type, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """In mixed precision."""
    monkeypatch.setenv("nnUNet_compile", "f")
    check_on_gpu(method, dataset)


@needs_cuda
@pytest.mark.parametrize("method", in_fast_tests(nnUNetTrainerMICD, nnUNetTrainerUniMatch, nnUNetTrainerSelfTraining))
def test_compiled_on_cuda(method: type, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_compile", raising=False)  # nnU-Net compiles by default
    check_on_gpu(method, dataset)


def check_on_gpu(method: type, dataset: TinyDataset) -> None:
    trainer = make_trainer(method, dataset, device="cuda")
    trainer.run_training()
    trainer.perform_actual_validation()
    assert trainer.grad_scaler is not None
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    predict(trainer)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_continued_with_workers_and_pictures(
    device: str, configuration: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With loaders in processes of their own, from pinned memory on a GPU."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer(nnUNetTrainerSelfTraining, dataset, configuration, device=device, draws=True)
    trainer.run_training()
    checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
    continued = make_trainer(nnUNetTrainerSelfTraining, dataset, configuration, device=device, draws=True)
    continued.num_epochs = 3
    continued.load_checkpoint(str(checkpoint))
    continued.run_training()
    assert len(continued.monitor.history) == 3
    assert (Path(continued.output_folder) / PATCHES_FOLDER / "epoch_0002.png").is_file()


def assert_equal_networks(one: Any, other: Any) -> None:
    for kind in ("students", "teachers"):
        for name, network in getattr(one, kind).items():
            weights = getattr(other, kind)[name].state_dict()
            for key, tensor in network.state_dict().items():
                torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


def take_one_step(method: type, dataset: TinyDataset, configuration: str) -> Any:
    torch.manual_seed(3)
    np.random.seed(3)
    trainer = make_trainer(method, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    return trainer
