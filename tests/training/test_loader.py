import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform
from helpers import PATCH_SIZE, TinyDataset, make_trainer, relabel
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from nnunetv2_micd.data.preprocessed import list_preprocessed
from nnunetv2_micd.data.unlabeled import UnlabeledCase
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.pseudo_labels.trainer import nnUNetTrainerPseudoLabels
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.training.loader import (
    IsolatedAugmenter,
    UnlabeledDataLoader,
    UnlabeledImages,
    build_unlabeled_loader,
    start_unlabeled_loader,
    without_intensity_changes,
)
from nnunetv2_micd.training.predictors import predict_in_batches
from nnunetv2_micd.training.workers import processes_of


class Nothing(BasicTransform):
    def apply(self, data_dict: dict, **params: Any) -> dict:
        return data_dict


def find_images(dataset: TinyDataset, names: list[str]) -> UnlabeledImages:
    return UnlabeledImages([UnlabeledCase(name, str(dataset.unlabeled_folder())) for name in names])


def build(dataset: TinyDataset, cases: list[str] | None = None, **options: Any) -> UnlabeledDataLoader:
    names = cases or list_preprocessed(str(dataset.unlabeled_folder()))
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    options = {"transforms": Nothing(), **options}
    return UnlabeledDataLoader(find_images(dataset, names), 3, PATCH_SIZE, PATCH_SIZE, trainer.label_manager, **options)


def test_patches_come_from_the_images(dataset: TinyDataset) -> None:
    batch = build(dataset, ["image_0"]).generate_train_batch()
    assert batch["data"].shape == (3, 1, *PATCH_SIZE)
    assert list(batch["keys"]) == ["image_0"] * 3
    whole = torch.from_numpy(find_images(dataset, ["image_0"]).load_image("image_0")[:])[0]
    windows = whole.unfold(0, 16, 1).unfold(1, 20, 1).unfold(2, 24, 1).reshape(-1, *PATCH_SIZE)
    assert all((windows == patch[0]).flatten(1).all(1).any() for patch in batch["data"])


def test_positions_are_the_centres_of_the_patches(dataset: TinyDataset) -> None:
    batch = build(dataset, ["image_0"]).generate_train_batch()
    whole = torch.from_numpy(find_images(dataset, ["image_0"]).load_image("image_0")[:])[0]
    windows = whole.unfold(0, 16, 1).unfold(1, 20, 1).unfold(2, 24, 1)
    for patch, position in zip(batch["data"][:, 0], batch["positions"], strict=True):
        start = (windows == patch).flatten(3).all(3).nonzero()[0]
        assert torch.allclose(position, (start + torch.tensor(PATCH_SIZE) / 2) / torch.tensor(whole.shape))


def test_the_first_position_of_a_2d_patch_is_its_slice(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset, "2d")
    trainer.on_train_start()
    assert trainer.next_unlabeled().ndim == 4
    keys, positions = trainer.unlabeled_origin
    assert positions.shape == (len(keys), 3)
    for key, position in zip(keys, positions, strict=True):
        slices = trainer.unlabeled_images.load_image(key).shape[1]
        assert float(position[0] * slices - 0.5) == pytest.approx(round(float(position[0] * slices - 0.5)), abs=1e-4)


def test_2d_patches_have_the_labels_of_the_previous_stage(dataset: TinyDataset, tmp_path: Path) -> None:
    class Together(BasicTransform):
        def apply(self, data_dict: dict, **params: Any) -> dict:
            return {"image": torch.cat((data_dict["image"], data_dict["segmentation"]))}

    case = UnlabeledCase("image_0", str(dataset.unlabeled_folder("2d")))
    image = UnlabeledImages([case]).load_image("image_0")[0]
    nnUNetDatasetBlosc2.save_seg((image > 0).astype(np.uint8), str(tmp_path / "image_0"), image.shape, image.shape)
    images, size = UnlabeledImages([case], str(tmp_path)), PATCH_SIZE[1:]
    manager = make_trainer(nnUNetTrainerMICD, dataset, "2d").label_manager
    batch = UnlabeledDataLoader(images, 3, size, size, manager, transforms=Together()).generate_train_batch()
    intensities, _, labels = batch["data"].unbind(1)
    assert torch.equal(labels == 1, intensities > 0)


def spoil(path: Path) -> None:
    """Change bytes behind the header, which nobody sees before they are decompressed."""
    content = path.read_bytes()
    begin, end = len(content) // 3, 2 * len(content) // 3
    path.write_bytes(content[:begin] + bytes(byte ^ 255 for byte in content[begin:end]) + content[end:])


def test_a_damaged_image_is_named_by_all_that_read_it(dataset: TinyDataset) -> None:
    spoil(dataset.unlabeled_folder() / "image_2.b2nd")
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.initialize()
    network, images = trainer.teachers["a"], find_images(dataset, ["image_2"])
    network.decoder.deep_supervision = False
    for read in (
        build(dataset, ["image_2"]).generate_train_batch,
        lambda: list(predict_in_batches(trainer, network, images, ["image_2"], 2)),
        lambda: images.read_image("image_2"),
    ):
        with pytest.raises(ValueError, match=r"image_2.b2nd is damaged .*; delete it and its .pkl file, and preproc"):
            read()


def test_a_damaged_segmentation_of_the_previous_stage_is_named(dataset: TinyDataset, tmp_path: Path) -> None:
    case = UnlabeledCase("image_0", str(dataset.unlabeled_folder()))
    shape = UnlabeledImages([case]).load_image("image_0").shape[1:]
    labels = np.random.default_rng(0).integers(0, 3, shape, np.uint8)
    nnUNetDatasetBlosc2.save_seg(labels, str(tmp_path / "image_0"), shape, shape)
    spoil(tmp_path / "image_0.b2nd")
    images = UnlabeledImages([case], str(tmp_path))
    manager = make_trainer(nnUNetTrainerMICD, dataset).label_manager
    loader = UnlabeledDataLoader(images, 3, PATCH_SIZE, PATCH_SIZE, manager, transforms=Nothing())
    for read in (loader.generate_train_batch, lambda: images.read_previous_stage("image_0")):
        with pytest.raises(ValueError, match=r"image_0.b2nd is damaged .*; .* validation of the previous stage again"):
            read()


def test_images_smaller_than_the_patch_are_padded(dataset: TinyDataset) -> None:
    patch = build(dataset, ["image_3"]).generate_train_batch()["data"]
    assert patch.shape == (3, 1, *PATCH_SIZE)
    assert (patch[:, :, 0] == 0).all()


def test_only_the_image_file_is_opened(dataset: TinyDataset) -> None:
    for path in dataset.unlabeled_folder().iterdir():
        if path.suffix != ".b2nd":
            path.unlink()
    assert build(dataset).generate_train_batch()["data"].isfinite().all()


@pytest.mark.parametrize("name", ["SelfTraining", "UniMatch", "CAD", "ERSR"])
def test_weak_views_are_deformed_and_mirrored_only(name: str, dataset: TinyDataset) -> None:
    def names(trainer: Any) -> set[str]:
        trainer.initialize()
        transforms = build_unlabeled_loader(trainer, find_images(dataset, ["image_0"])).transforms.transforms
        return {type(getattr(one, "transform", one)).__name__ for one in transforms}

    intensities = {"GaussianNoiseTransform", "GaussianBlurTransform", "GammaTransform", "ContrastTransform"}
    if name == "ERSR":  # which is for a single class in 2D
        relabel(dataset, {"labels": {"background": 0, "foreground": 1}})
    configuration = "2d" if name == "ERSR" else "3d_fullres"
    weak = names(make_trainer(getattr(exported, f"nnUNetTrainer{name}"), dataset, configuration))
    assert "SpatialTransform" in weak
    assert not weak & intensities
    assert intensities < names(make_trainer(nnUNetTrainerMICD, dataset))


def test_weak_views_leave_out_one_of_several_changes_of_intensities() -> None:
    transforms = nnUNetTrainerDA5.get_training_transforms(
        PATCH_SIZE, (-0.5, 0.5), None, (0, 1, 2), False, use_mask_for_norm=[False]
    )
    alternatives = [one for one in transforms.transforms if isinstance(getattr(one, "transform", one), OneOfTransform)]
    assert alternatives
    weak = without_intensity_changes(transforms).transforms
    assert not any(one in weak for one in alternatives)
    assert any("Spatial" in type(getattr(one, "transform", one)).__name__ for one in weak)


def test_outside_the_nonzero_mask_stays_zero_after_augmentation(dataset: TinyDataset) -> None:
    class Brighten(BasicTransform):
        def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
            return img + 100

        def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
            return segmentation

    class Both(BasicTransform):
        def __call__(self, **data_dict: Any) -> dict:
            return MaskImageTransform([0], 0, 0)(**Brighten()(**data_dict))

    loader = build(dataset, ["image_3"], transforms=Both(), masked_channels=[0])
    patch = loader.generate_train_batch()["data"]
    assert (patch[:, :, 0] == 0).all()
    assert patch.max() > 50


def test_in_the_main_process_no_other_randomness_is_touched(dataset: TinyDataset) -> None:
    loader = start_unlabeled_loader(build(dataset), 0, pin_memory=False)
    assert isinstance(loader, IsolatedAugmenter)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    batches = [next(loader)["data"] for _ in range(2)]
    assert (random.random(), np.random.random(), torch.rand(1)) == expected
    assert not torch.equal(*batches)


@pytest.mark.parametrize(
    ("method", "allowed", "unlabeled"),
    [
        *((nnUNetTrainerMICD, allowed, workers) for allowed, workers in ((1, 0), (2, 1), (4, 2), (12, 5))),
        *((nnUNetTrainerSelfTraining, allowed, workers) for allowed, workers in ((1, 0), (2, 1), (4, 1), (12, 2))),
        (nnUNetTrainerPseudoLabels, 12, 6),
    ],
)
def test_workers_are_divided_by_the_time_of_loading(
    method: type, allowed: int, unlabeled: int, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nnU-Net allows no more than there are cores.
    monkeypatch.setattr("nnunetv2_micd.training.unlabeled_trainer.get_allowed_n_proc_DA", lambda: allowed)
    trainer = make_trainer(method, dataset)
    trainer.initialize()
    trainer.used = ["image_0"]  # of pseudo-labels
    assert trainer._unlabeled_workers == unlabeled


def test_a_loader_that_is_started_anew_does_not_repeat_its_patches(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.on_train_start()
    key = np.random.get_state(legacy=False)["state"]["key"].copy()
    batches = []
    for _ in range(2):
        state = np.random.get_state(legacy=False)
        state["state"]["key"] = key  # as where labeled patches come from a worker: nothing is drawn in this process
        np.random.set_state(state)
        trainer.restart_unlabeled_loader()
        batches.append(trainer.next_unlabeled())
    assert not torch.equal(*batches)


@pytest.mark.parametrize(("allowed", "labeled", "unlabeled"), [("1", 1, 0), ("2", 1, 1)])
def test_workers_are_shared_and_stopped(
    allowed: str, labeled: int, unlabeled: int, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", allowed)
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.on_train_start()
    assert trainer.dataloader_train.num_processes == labeled
    assert getattr(trainer.dataloader_unlabeled, "num_processes", 0) == unlabeled
    assert next(trainer.dataloader_unlabeled)["data"].shape == (2, 1, *PATCH_SIZE)
    processes = processes_of(trainer.dataloader_unlabeled)
    assert len(processes) == unlabeled
    trainer.on_train_epoch_start()
    trainer.logger.log("mean_fg_dice", 0.0, 0)
    trainer.current_epoch = 1
    trainer.on_train_end()
    assert trainer.dataloader_unlabeled is None
    assert not any(process.is_alive() for process in processes)
    assert Path(trainer.output_folder, "checkpoint_final.pth").exists()


def test_loader_reaches_workers_that_are_not_forked(dataset: TinyDataset) -> None:
    copy = pickle.loads(pickle.dumps(build(dataset, ["image_0"], transforms=make_transforms(dataset))))
    assert copy.generate_train_batch()["data"].shape == (3, 1, *PATCH_SIZE)


def make_transforms(dataset: TinyDataset) -> BasicTransform:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    return trainer.get_training_transforms(PATCH_SIZE, (-0.5, 0.5), None, (0, 1, 2), False, use_mask_for_norm=[False])


class Numbers(SlimDataLoaderBase):
    """What PyTorch draws in a worker."""

    def generate_train_batch(self) -> dict:
        time.sleep(0.05)  # so that no worker is ahead of the others
        return {"worker": self.thread_id, "number": torch.rand(()).item()}


def test_workers_draw_different_numbers_and_others_after_a_restart() -> None:
    drawn: list[tuple[int, float]] = []
    for _ in range(2):
        workers = start_unlabeled_loader(Numbers(None, 1), 2, pin_memory=False)  # type: ignore[arg-type]
        drawn += [(batch["worker"], batch["number"]) for batch in (next(workers) for _ in range(6))]
        workers._finish()  # type: ignore[union-attr]
    assert len({worker for worker, _ in drawn}) == 2
    assert len({number for _, number in drawn}) == len(drawn)


def test_worker_errors_surface(dataset: TinyDataset) -> None:
    loader = build(dataset, ["missing"])
    with pytest.raises(FileNotFoundError):
        next(start_unlabeled_loader(loader, 0, pin_memory=False))
    with pytest.raises(RuntimeError, match="workers are no longer alive"):
        start_unlabeled_loader(loader, 1, pin_memory=False)
