"""Self-training with pseudo-labels: its phases, what is written, which labels are used, and how it is continued."""

import csv
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, IGNORE, REGIONS, TinyDataset, make_trainer, needs_cuda, preprocess_labeled, relabel
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from torch import distributed, multiprocessing

from nnunetv2_micd.methods.pseudo_labels import files as pseudo_label_files
from nnunetv2_micd.methods.pseudo_labels import labeling as pseudo_labeling
from nnunetv2_micd.methods.pseudo_labels.labeling import copy_weights, label_images, mean_iou, most_stable
from nnunetv2_micd.methods.pseudo_labels.trainer import nnUNetTrainerPseudoLabels
from nnunetv2_micd.training.loader import UnlabeledImages


def prepare(
    dataset: TinyDataset,
    epochs: int = 2,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    method: type = nnUNetTrainerPseudoLabels,
    **changed: Any,
) -> Any:
    """Return a trainer of few epochs of two steps; all pseudo-labels are used unless ``stable_share`` is given."""
    torch.manual_seed(1)
    np.random.seed(1)
    trainer = make_trainer(method, dataset, configuration, fold)
    trainer.config = replace(trainer.config, **{"stable_share": 1.0} | changed)
    trainer.num_epochs = epochs
    return trainer


def at_the_end_of_a_phase(trainer: Any) -> Any:
    """Do everything but the steps of the first phase; its checkpoints are other networks."""
    trainer.on_train_start()
    for _ in range(trainer.config.checkpoints - 1):
        trainer.earlier.append({k: v + 0.05 * torch.randn_like(v) for k, v in trainer.initial_weights.items()})
    with torch.no_grad():
        for parameter in trainer.teachers["a"].parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    trainer.current_epoch = trainer.phase_length
    trainer.iteration = trainer.phase_length * trainer.num_iterations_per_epoch
    return trainer


def in_the_second_phase(trainer: Any) -> Any:
    at_the_end_of_a_phase(trainer).on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def folder_of(trainer: Any) -> Path:
    return Path(trainer.output_folder) / "pseudo_labels"


def read_label(trainer: Any, case: str) -> np.ndarray:
    return UnlabeledImages([pseudo_label_files.UnlabeledCase(case, str(folder_of(trainer)))]).load_image(case)[:]


def predict(trainer: Any, case: str, weights: Any) -> np.ndarray:
    """Segment a preprocessed image with nnU-Net's own predictor, from its folder."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    network = trainer.build_network_architecture(
        trainer.plans_manager,
        trainer.configuration_manager,
        trainer.num_input_channels,
        trainer.label_manager.num_segmentation_heads,
        enable_deep_supervision=False,
    )
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [weights],
        trainer.dataset_json,
        "",
        trainer.inference_allowed_mirroring_axes,
    )
    logits = predictor.predict_logits_from_preprocessed_data(
        torch.from_numpy(trainer.unlabeled_images.load_image(case)[:])
    )
    return np.asarray(trainer.label_manager.convert_logits_to_segmentation(logits))


# ------------------------------------------------------------------------------------------------------ pure functions


def test_mean_iou_by_hand() -> None:
    labels, others = np.array([[0, 1, 1, 2]]), np.array([[0, 1, 2, 2]])
    assert mean_iou(labels, labels) == 1
    assert mean_iou(labels, others) == 0.5  # one half of each class
    assert mean_iou(labels, np.array([[0, 1, 1, 0]])) == 0.5  # the second class is in one only
    assert mean_iou(np.array([[0, 3, 3]]), np.array([[0, 3, 0]])) == 0.5  # classes that are in neither do not count
    assert mean_iou(labels, 0 * labels) == 0
    assert mean_iou(0 * labels, 0 * labels) == 0  # no foreground, no evidence


def test_most_stable_share() -> None:
    stability = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.0, "e": 0.5}
    assert most_stable(stability, 0.5) == ["b", "c"]
    assert most_stable(stability, 0.1) == ["b"]
    assert most_stable(stability, 1.0) == ["a", "b", "c", "e"]
    assert most_stable({"a": 0.0}, 1.0) == []


def test_copied_weights_are_kept_once(dataset: TinyDataset) -> None:
    trainer = prepare(dataset)
    trainer.initialize()
    network = trainer.students["a"]
    copied = copy_weights(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in copied.items())
    assert len({tensor.data_ptr() for tensor in copied.values()}) == len(list(network.parameters()))


# -------------------------------------------------------------------------------------------------------------- phases


class WithAdamW(nnUNetTrainerPseudoLabels):
    """As users change the optimizer; notes what is there when an epoch begins."""

    def configure_optimizers(self) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        return optimizer, PolyLRScheduler(optimizer, 1e-3, self.num_epochs)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.seen = getattr(self, "seen", [])
        self.seen.append((self.phase, self.optimizer, copy_weights(self.students["a"]), len(self.earlier)))


def test_phases_are_trainings_of_their_own(dataset: TinyDataset) -> None:
    trainer = prepare(dataset, epochs=5, method=WithAdamW)
    trainer.run_training()
    assert [phase for phase, *_ in trainer.seen] == [0, 0, 0, 1, 1]
    assert trainer.iteration == 10
    first, second = ([1e-3 * (1 - step / length) ** 0.9 for step in range(length)] for length in (3, 2))
    assert trainer.logger.get_value("lrs", step=None) == pytest.approx([*first, *second])
    optimizers = [optimizer for _, optimizer, *_ in trainer.seen]
    assert optimizers[0] is optimizers[2] is not optimizers[3] is optimizers[4] is trainer.optimizer
    assert isinstance(optimizers[3], torch.optim.AdamW)
    weights = [weights for *_, weights, _ in trainer.seen]
    assert all(torch.equal(tensor, weights[3][name]) for name, tensor in weights[0].items())
    assert not all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())
    assert [number for *_, number in trainer.seen] == [0, 1, 2, 0, 0]  # checkpoints after steps 2 and 4 of 6
    assert ["pseudo_label" in row for row in trainer.monitor.history] == [False, False, False, True, True]
    assert [row["b"] for row in trainer.monitor.history] == [0, 0, 0, 1, 1]
    assert trainer.method_state()["initial_weights"] == {}  # not needed any more
    log = Path(trainer.log_file).read_text()
    assert "Phase 1 of 2 is done; its network labels 4 unlabeled images." in log
    assert "from 4 of 4 pseudo-labels (stability 0." in log
    assert "WARNING" not in log


def test_given_weights_are_those_of_all_phases(dataset: TinyDataset) -> None:
    trainer = prepare(dataset)
    trainer.initialize()
    with torch.no_grad():
        for parameter in trainer.network.parameters():  # as -pretrained_weights does
            parameter += 0.01
    given = copy_weights(trainer.network)
    in_the_second_phase(trainer)
    for network in (trainer.students["a"], trainer.teachers["a"]):
        assert all(torch.equal(tensor, given[name]) for name, tensor in network.state_dict().items())


def test_full_length_trains_each_phase_in_full(dataset: TinyDataset) -> None:
    trainer = prepare(dataset, epochs=2, full_length=True)
    trainer.run_training()
    assert ["pseudo_label" in row for row in trainer.monitor.history] == [False, False, True, True]
    rates = trainer.logger.get_value("lrs", step=None)
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9] * 2)


def test_more_epochs_lengthen_the_phase_and_its_schedule(dataset: TinyDataset) -> None:
    """A training of 2 epochs, continued to 6: its second phase, from epoch 1 on, has 5 of them."""
    trainer = prepare(dataset, epochs=2)
    trainer.run_training()
    longer = prepare(dataset, epochs=6)
    longer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    longer.run_training()
    decay = [0.01 * (1 - step / 5) ** 0.9 for step in range(1, 5)]
    assert longer.logger.get_value("lrs", step=None) == pytest.approx([0.01, 0.01, *decay])
    assert longer.phase == 1
    assert all(np.isfinite(value) for row in longer.monitor.history for value in row.values())


@pytest.mark.slow
def test_two_rounds(dataset: TinyDataset) -> None:
    trainer = prepare(dataset, epochs=3, rounds=2, stable_share=0.5)
    networks, used = [], []
    start = trainer._start_next_phase

    def start_next_phase() -> None:
        start()
        records = [pseudo_label_files.read_record(str(folder_of(trainer) / case)) for case in dataset.unlabeled]
        networks.append({record["network"] for record in records})
        used.append(len(trainer.used))

    trainer._start_next_phase = start_next_phase
    trainer.run_training()
    assert used == [2, 4]
    assert [len(names) for names in networks] == [1, 1]
    assert networks[0] != networks[1]
    assert ["pseudo_label" in row for row in trainer.monitor.history] == [False, True, True]


def test_too_few_epochs(dataset: TinyDataset) -> None:
    for epochs, rounds in ((1, 1), (2, 2)):
        with pytest.raises(ValueError, match=f"{epochs} epochs cannot be divided into {rounds + 1} trainings"):
            prepare(dataset, epochs, rounds=rounds).initialize()


def test_without_unlabeled_images_it_is_stock_nnunet(dataset: TinyDataset) -> None:
    def train(trainer: Any) -> dict[str, torch.Tensor]:
        trainer.run_training()
        return trainer.network.state_dict()

    expected = train(prepare_stock(dataset))
    trained = train(prepare(dataset, ramp_peak=0.0))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in expected.items())


def prepare_stock(dataset: TinyDataset) -> Any:
    torch.manual_seed(1)
    np.random.seed(1)
    return make_trainer(nnUNetTrainer, dataset)


# ------------------------------------------------------------------------------------------------------- pseudo-labels


@pytest.mark.parametrize("description", [None, REGIONS, BOTH], ids=["classes", "regions", "regions and ignore"])
def test_labels_are_those_of_the_last_network(description: dict[str, Any] | None, dataset: TinyDataset) -> None:
    if description is not None:
        relabel(dataset, description)
    trainer = at_the_end_of_a_phase(prepare(dataset))
    networks = [*trainer.earlier, copy_weights(trainer.teachers["a"])]
    trainer.on_epoch_start()
    with (folder_of(trainer) / "stability.csv").open() as file:
        stability = {row["case"]: float(row["stability"]) for row in csv.DictReader(file)}
    assert set(stability) == set(dataset.unlabeled)
    for case in ("image_0", "image_3"):
        label = read_label(trainer, case)
        assert label.shape == (1, *trainer.unlabeled_images.load_image(case).shape[1:])
        # nnU-Net's sums of windows are in half precision, by which a voxel between two classes may differ.
        assert (label[0] != predict(trainer, case, networks[-1])).mean() < 0.02
        first, second, last = (predict(trainer, case, weights) for weights in networks)
        assert stability[case] == pytest.approx((mean_iou(first, last) + mean_iou(second, last)) / 2, abs=0.02)
        places = pickle.loads((folder_of(trainer) / f"{case}.pkl").read_bytes())["class_locations"]
        regions = {1: (1,), 2: (2,)} if description is None else {(1, 2): (1, 2), 2: (2,)}
        if description is BOTH:
            regions[-1, 0, 1, 2] = (0, 1, 2)
        assert set(places) == set(regions)
        for name, values in regions.items():
            assert len(places[name]) == min(10_000, np.isin(label, values).sum())
            assert all(label[tuple(place)] in values for place in places[name][:50])


def test_unstable_labels_and_empty_ones_are_not_used(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # what both halves of each image are for two checkpoints and the last network
    seen = iter(
        [
            {"image_0": (0, 0), "image_1": (1, 1), "image_2": (0, 0), "image_3": (1, 0)},
            {"image_0": (1, 1), "image_1": (1, 1), "image_2": (0, 0), "image_3": (1, 2)},
            {"image_0": (1, 1), "image_1": (0, 0), "image_2": (1, 0), "image_3": (1, 2)},
        ]
    )

    def segment(_: Any, __: Any, images: UnlabeledImages, cases: list[str]) -> dict[str, np.ndarray]:
        labels, halves = {}, next(seen)
        for case in cases:
            label = np.zeros(images.load_image(case).shape[1:], np.int16)
            label[:, : label.shape[1] // 2], label[:, label.shape[1] // 2 :] = halves[case]
            labels[case] = label
        return labels

    monkeypatch.setattr(pseudo_labeling, "_segment", segment)
    trainer = in_the_second_phase(prepare(dataset, stable_share=0.8))
    table = (folder_of(trainer) / "stability.csv").read_text().splitlines()
    # image_0: one checkpoint agrees; image_3: one agrees, one in one of two classes; the others have no foreground
    # in the label, or in no checkpoint
    assert table[:3] == ["case,stability,used", "image_3,0.750000,True", "image_0,0.500000,True"]
    assert table[3:] == ["image_1,0.000000,False", "image_2,0.000000,False"]
    assert trainer.used == ["image_0", "image_3"]
    assert {key for _ in range(10) for key in next(trainer.dataloader_unlabeled)["keys"]} == {"image_0", "image_3"}
    assert np.array_equal(np.unique(read_label(trainer, "image_3")), [1, 2])


def test_no_label_can_be_used(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(_: Any, __: Any, images: UnlabeledImages, cases: list[str]) -> dict[str, np.ndarray]:
        return {case: np.zeros(images.load_image(case).shape[1:], np.int16) for case in cases}

    monkeypatch.setattr(pseudo_labeling, "_segment", segment)
    trainer = prepare(dataset)
    trainer.run_training()
    assert trainer.phase == 1
    assert all("pseudo_label" not in row and row["b"] == 0 for row in trainer.monitor.history)
    assert "WARNING: no pseudo-label has stable foreground" in Path(trainer.log_file).read_text()


def test_outside_of_the_nonzero_mask_is_marked_where_nnunet_marks_it(dataset: TinyDataset) -> None:
    trainer = at_the_end_of_a_phase(prepare(dataset))
    image = trainer.unlabeled_images.load_image("image_0")[:]
    image[:, :3] = 0
    trainer.unlabeled_images = UnlabeledImages([pseudo_label_files.UnlabeledCase("image_0", "")])
    trainer.unlabeled_images.load_image = lambda case: image
    network = trainer.teachers["a"]
    network.decoder.deep_supervision = False

    def label(use_mask: bool) -> np.ndarray:
        trainer.configuration_manager.configuration["use_mask_for_norm"] = [use_mask]
        shutil.rmtree(folder_of(trainer), ignore_errors=True)
        label_images(trainer, network, trainer.earlier, trainer.unlabeled_images, str(folder_of(trainer)))
        return read_label(trainer, "image_0")[0]

    plain, marked = label(False), label(True)
    assert plain.min() == 0
    assert (plain[:3] == 0).any()
    assert np.array_equal(marked[:3], np.where(plain[:3] == 0, -1, plain[:3]))
    assert np.array_equal(marked[3:], plain[3:])


def test_truth_of_unlabeled_cases_is_never_read(dataset: TinyDataset) -> None:
    cases = json.loads(dataset.splits_file.read_text())[1]["unlabeled"]
    for case in cases:
        (dataset.labeled_folder() / f"{case}_seg.b2nd").write_bytes(b"not a label")
        (dataset.labeled_folder() / f"{case}.pkl").write_bytes(b"no properties")
        (dataset.preprocessed / "gt_segmentations" / f"{case}.nii.gz").write_bytes(b"not an image")
    trainer = prepare(dataset, fold=1)
    trainer.run_training()
    assert set(cases) <= {path.name.removesuffix(".b2nd") for path in folder_of(trainer).glob("*.b2nd")}
    assert set(trainer.used) == {*cases, *dataset.unlabeled}


# ------------------------------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize("description", [None, BOTH], ids=["classes", "regions and ignore"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_pseudo_labeled_batches_are_like_labeled_ones_and_teach(
    configuration: str, description: dict[str, Any] | None, dataset: TinyDataset
) -> None:
    if description is not None:
        relabel(dataset, description)
    trainer = in_the_second_phase(prepare(dataset, configuration=configuration))
    labeled = next(trainer.dataloader_train)
    unlabeled = trainer.next_unlabeled()
    assert len(trainer.unlabeled_origin.keys) == len(unlabeled)
    assert set(trainer.unlabeled_origin.keys) <= set(trainer.used)
    assert unlabeled.shape == labeled["data"].shape
    for target, other in zip(trainer.pseudo_target, labeled["target"], strict=True):
        assert (target.shape, target.dtype) == (other.shape, other.dtype)
    assert trainer.pseudo_target[0][1].any()  # foreground in the second patch, as nnU-Net oversamples it
    _, losses = (losses.named for losses in trainer.compute_losses(labeled, unlabeled))
    assert list(losses) == ["pseudo_label"]
    torch.testing.assert_close(
        losses["pseudo_label"], 1 + trainer.loss(trainer.network(unlabeled), trainer.pseudo_target)
    )
    losses["pseudo_label"].backward()
    assert next(iter(trainer.network.encoder.parameters())).grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in trainer.teachers["a"].parameters())
    assert 0 < trainer.metrics["foreground_pseudo_label"] <= 1
    panels = trainer.picture_panels(unlabeled)
    assert {panel.shape for panel in panels.values()} == {unlabeled[:, 0].shape}


def test_labeled_batches_do_not_depend_on_pseudo_labels(dataset: TinyDataset) -> None:
    def batches(**changed: Any) -> list[torch.Tensor]:
        trainer = in_the_second_phase(prepare(dataset, **changed))
        torch.manual_seed(2)
        np.random.seed(2)
        drawn = []
        for _ in range(2):
            if trainer.dataloader_unlabeled is not None:
                trainer.next_unlabeled()
            drawn.append(next(trainer.dataloader_train)["data"])
        return drawn

    few = batches(stable_share=0.25)
    assert all(torch.equal(one, other) for one, other in zip(few, batches(), strict=True))


def test_the_deployed_network_is_the_student(dataset: TinyDataset) -> None:
    trainer = in_the_second_phase(prepare(dataset))
    trainer.train_step(next(trainer.dataloader_train))
    assert all(map(torch.equal, trainer.teachers["a"].parameters(), trainer.students["a"].parameters()))


# -------------------------------------------------------------------------------------------------------------- resume


class Killed(BaseException):
    """Not caught by anything."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Kill a training in a phase or while an image is labeled; counts how many images are labeled."""
    write, step = pseudo_label_files.write_pickle, nnUNetTrainerPseudoLabels.train_step
    kill = type("Kill", (), {"at": None, "labeled": 0})()

    def write_pickle(content: Any, path: str) -> None:
        kill.labeled += 1
        if kill.at == "labeling" and kill.labeled == 3:
            raise Killed
        write(content, path)

    def train_step(self: Any, batch: dict) -> dict:
        if kill.at == (self.phase, self.current_epoch):
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(pseudo_label_files, "write_pickle", write_pickle)
    monkeypatch.setattr(nnUNetTrainerPseudoLabels, "train_step", train_step)
    return kill


@pytest.mark.slow
def test_continued_equals_uninterrupted(kill: Any, dataset: TinyDataset) -> None:
    def start() -> Any:
        trainer = prepare(dataset, epochs=4)
        trainer.save_every = 50 if kill.at == "labeling" else 1  # a checkpoint of its own
        return trainer

    expected = start()
    expected.run_training()
    for at, before, after in (((0, 1), 0, 4), ("labeling", 3, 2), ((1, 3), 4, 0)):
        shutil.rmtree(expected.output_folder_base)
        kill.at, kill.labeled = at, 0
        with pytest.raises(Killed):
            start().run_training()
        assert kill.labeled == before
        kill.at, kill.labeled = None, 0
        continued = start()
        continued.load_checkpoint(str(Path(continued.output_folder) / "checkpoint_latest.pth"))
        continued.run_training()
        assert kill.labeled == after
        assert continued.monitor.history == expected.monitor.history
        assert continued.logger.get_value("lrs", None) == expected.logger.get_value("lrs", None)
        weights = continued.network.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.network.state_dict().items())
        assert not list(folder_of(continued).glob("*.incomplete*"))


def test_labels_of_another_training_are_written_anew(dataset: TinyDataset) -> None:
    in_the_second_phase(prepare(dataset))
    trainer = at_the_end_of_a_phase(prepare(dataset))
    with torch.no_grad():
        trainer.teachers["a"].decoder.seg_layers[-1].bias[1] += 0.5
    weights = copy_weights(trainer.teachers["a"])
    trainer.on_epoch_start()
    assert (read_label(trainer, "image_0")[0] != predict(trainer, "image_0", weights)).mean() < 0.02


def test_missing_labels_are_named_when_a_training_is_continued(dataset: TinyDataset) -> None:
    trainer = in_the_second_phase(prepare(dataset))
    checkpoint = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(checkpoint)
    (folder_of(trainer) / "image_2.json").unlink()
    continued = prepare(dataset)
    continued.load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"1 unlabeled images that are missing now.*\(image_2\)"):
        continued.on_train_start()


def test_an_image_that_was_replaced_does_not_keep_its_label(dataset: TinyDataset) -> None:
    trainer = in_the_second_phase(prepare(dataset))
    checkpoint = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(checkpoint)
    sources = dataset.unlabeled_folder() / "sources.json"
    recorded = json.loads(sources.read_text())
    files = recorded["image_2"][1]
    files["image_2_0000.nii.gz"][0] += 1  # its size, as of other raw files that were preprocessed since
    sources.write_text(json.dumps(recorded))
    continued = prepare(dataset)
    continued.load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"1 unlabeled images that were replaced since they were labeled \(image_2\)"):
        continued.on_train_start()

    trainer = at_the_end_of_a_phase(prepare(dataset))
    with trainer.deployed():
        trainer.set_deep_supervision_enabled(False)
    weights = trainer.teachers["a"].state_dict()
    write_pseudo_label = pseudo_labeling.write_pseudo_label
    labeled = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                pseudo_labeling,
                "write_pseudo_label",
                lambda *given: (labeled.append(Path(given[-1]).name), write_pseudo_label(*given)),
            )
            arguments = trainer.teachers["a"], [weights], trainer.unlabeled_images, trainer.pseudo_label_folder
            pseudo_labeling.label_images(trainer, *arguments)
        files["image_2_0000.nii.gz"][0] += 1
        sources.write_text(json.dumps(recorded))
    assert labeled.count("image_2") == 2
    assert "image_1" not in labeled  # the same network has labeled it in the first training


# --------------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    "description",
    [BOTH, *(pytest.param(labels, marks=pytest.mark.slow) for labels in (REGIONS, IGNORE))],
    ids=["regions and ignore", "regions", "ignore"],
)
def test_regions_and_ignore_label(description: dict[str, Any], dataset: TinyDataset) -> None:
    relabel(dataset, description, annotated_slices=None if description is REGIONS else 6)
    trainer = prepare(dataset)
    trainer.run_training()
    assert "pseudo_label" in trainer.monitor.history[-1]
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())


@pytest.mark.slow
@pytest.mark.parametrize("fold", [0, "all"])
def test_without_deep_supervision_and_all_folds(fold: int | str, dataset: TinyDataset) -> None:
    method = type("Trainer", (nnUNetTrainerNoDeepSupervision, nnUNetTrainerPseudoLabels), {})
    trainer = prepare(dataset, fold=fold, method=method)
    trainer.run_training()
    assert "pseudo_label" in trainer.monitor.history[-1]
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())


@pytest.mark.slow
def test_second_stage_of_a_cascade(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    configurations = plans["configurations"]
    configurations.pop("2d")
    configurations["3d_lowres"] = {**configurations["3d_fullres"], "next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    dataset.plans_file.write_text(json.dumps(plans))
    preprocess_labeled(dataset)
    trainer = prepare(dataset, configuration="3d_cascade_fullres")
    first_stage = Path(trainer.folder_with_segs_from_previous_stage)
    first_stage.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for case in (*dataset.labeled, *dataset.unlabeled):
        folder = dataset.labeled_folder() if case in dataset.labeled else dataset.unlabeled_folder()
        shape = UnlabeledImages([pseudo_label_files.UnlabeledCase(case, str(folder))]).load_image(case).shape[1:]
        seen = generator.integers(0, 3, shape).astype(np.uint8)
        nnUNetDatasetBlosc2.save_seg(seen, str(first_stage / case), chunks_seg=shape, blocks_seg=shape)
    trainer.run_training()
    assert "pseudo_label" in trainer.monitor.history[-1]
    patches = trainer._last_unlabeled
    assert patches.shape[1] == trainer.num_input_channels == 3
    assert set(patches[:, 1:].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.slow  # tracing takes a while
def test_compiled(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_modes.py: traced and split as on CUDA, without generating code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(nnUNetTrainerPseudoLabels, "_do_i_compile", lambda self: True)
    torch._dynamo.reset()
    trainer = prepare(dataset)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        trainer.run_training()
    assert type(trainer.network).__name__ == "OptimizedModule"
    assert "pseudo_label" in trainer.monitor.history[-1]


@needs_cuda
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("description", [None, REGIONS], ids=["classes", "regions"])
def test_on_cuda(
    description: dict[str, Any] | None, compiled: bool, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", "f")
    if compiled:
        monkeypatch.delenv("nnUNet_compile")  # nnU-Net compiles by default
    if description is not None:
        relabel(dataset, description)
    trainer = make_trainer(nnUNetTrainerPseudoLabels, dataset, device="cuda")
    trainer.run_training()
    assert trainer.phase == 1
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())


@pytest.mark.slow
def test_worker_processes_are_shared_out_anew(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = prepare(dataset)
    watch, numbers = trainer._watch_workers, []

    def watch_workers() -> None:
        watch()
        numbers.append([len(processes) for processes in trainer._workers.values()])

    trainer._watch_workers = watch_workers
    trainer.run_training()
    assert numbers == [[2, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert "pseudo_label" in trainer.monitor.history[-1]


def run_training(rank: int, dataset: TinyDataset, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    trainer = prepare(dataset)
    labeled = []
    write = pseudo_labeling.write_pseudo_label
    pseudo_labeling.write_pseudo_label = lambda *given: (labeled.append(Path(given[-1]).name), write(*given))
    trainer.run_training()
    torch.save((trainer.network.state_dict(), trainer.used, labeled), folder / f"{rank}.pth")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_images(dataset: TinyDataset, tmp_path: Path) -> None:
    multiprocessing.spawn(run_training, (dataset, tmp_path), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    assert [labeled for *_, labeled in results] == [["image_0", "image_2"], ["image_1", "image_3"]]
    assert results[0][1] == results[1][1] == list(dataset.unlabeled)
    assert all(torch.equal(tensor, results[1][0][name]) for name, tensor in results[0][0].items())
