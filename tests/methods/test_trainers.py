"""Every trainer trains, is deployed and predicts through nnU-Net's own code; what only MICD does is in test_micd.py."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ABLATIONS, FIGURES, METHODS, TinyDataset, make_trainer
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_micd import TRAINER_FOLDER, Losses, SemiSupervisedTrainer
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported
from nnunetv2_micd.losses.dice import hard_dice
from nnunetv2_micd.losses.fused import hard_cross_entropy
from nnunetv2_micd.methods.bcp import nnUNetTrainerBCP
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.pseudo_labels.trainer import nnUNetTrainerPseudoLabels
from nnunetv2_micd.methods.spcl import nnUNetTrainerSPCL_pretrained
from nnunetv2_micd.methods.uamt import nnUNetTrainerUAMT
from nnunetv2_micd.training.networks import full_resolution

SLOW = [pytest.mark.slow]


@pytest.mark.parametrize("name", exported.__all__)
def test_nnunet_finds_the_very_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", TRAINER_FOLDER)
    assert recursive_find_trainer_class_by_name(name) is getattr(exported, name)


@pytest.mark.parametrize(
    ("name", "epochs", "mirrors"),
    [
        ("nnUNetTrainerMICD", 1000, True),
        ("nnUNetTrainerMICD_5epochs", 5, True),
        ("nnUNetTrainerMICD_50epochs", 50, True),
        ("nnUNetTrainerMICD_100epochs", 100, True),
        ("nnUNetTrainerMICD_250epochs", 250, True),
        ("nnUNetTrainerMICD_NoMirroring", 1000, False),
        ("nnUNetTrainerMICD_250epochs_NoMirroring", 250, False),
        ("nnUNetTrainerMICD_2000epochs_NoMirroring", 2000, False),
        ("nnUNetTrainerMICD_4000epochs_NoMirroring", 4000, False),
        ("nnUNetTrainerMICD_8000epochs_NoMirroring", 8000, False),
    ],
)
def test_variants_change_length_and_mirroring(name: str, epochs: int, mirrors: bool, dataset: TinyDataset) -> None:
    trainer = make_trainer(getattr(exported, name), dataset, shortened=False)
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.num_epochs == epochs
    assert bool(trainer.inference_allowed_mirroring_axes) == mirrors


@pytest.mark.parametrize(
    ("method", "configuration"),
    [
        *((method, "3d_fullres") for method in METHODS),
        *((method, "2d") for method in METHODS if method not in ABLATIONS),
    ],
)
def test_trains_and_predicts(method: type, configuration: str, dataset: TinyDataset) -> None:
    draws = configuration == "3d_fullres" and method not in ABLATIONS  # which takes longer than the training
    trainer = make_trainer(method, dataset, configuration, draws=draws)
    trainer.run_training()
    output = Path(trainer.output_folder)

    start = make_trainer(method, dataset, configuration)
    start.initialize()
    for name, student in trainer.students.items():
        assert any(
            not torch.equal(new, old)
            for new, old in zip(student.parameters(), start.students[name].parameters(), strict=True)
        )
        assert all(parameter.grad is None for parameter in trainer.teachers[name].parameters())
    assert set(trainer.monitor.history[-1]) >= FIGURES[method] | {
        "supervised",
        "b",
        "unsupervised_share",
        "mean_fg_dice",
    }
    assert [row["epoch"] for row in trainer.monitor.history] == [0, 1]
    if trainer.config.ema_decay == 0:  # there is no teacher: the student itself is deployed
        for name, teacher in trainer.teachers.items():
            assert all(map(torch.equal, teacher.parameters(), trainer.students[name].parameters()))
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    assert all(0 <= row["unsupervised_share"] <= 1 for row in trainer.monitor.history)
    if draws:
        assert (output / "semi_supervised.csv").read_text().count("\n") == 3
        assert (output / "semi_supervised.png").stat().st_size > 0
        if method.config.ramp_peak > 0:
            epochs = [1] if method is nnUNetTrainerPseudoLabels else [0, 1]  # there are no pseudo-labels before
            pictures = {path.name for path in (output / "unlabeled_patches").iterdir()}
            assert pictures == {f"epoch_000{epoch}.png" for epoch in epochs}
    log = Path(trainer.log_file).read_text()
    assert f"nnUNetv2_predict -d {dataset.name} -c {configuration}" in log
    assert "nnUNetv2_find_best_configuration" in log

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(output.parent), use_folds=(0,))
    deployed = trainer.teachers["a"].state_dict()
    assert all(torch.equal(tensor, deployed[name]) for name, tensor in predictor.list_of_parameters[0].items())
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    predicted = predictor.predict_sliding_window_return_logits(image if configuration == "2d" else image[0])
    assert predicted.isfinite().all()


OTHER_BATCHES = [  # of mixed images, of two trainings, of unlabeled images only, or with fewer labeled images
    method
    for method in METHODS
    if issubclass(
        method, (nnUNetTrainerBCP, nnUNetTrainerPseudoLabels, nnUNetTrainerSPCL_pretrained, nnUNetTrainerMandN)
    )
]


@pytest.fixture(scope="module")
def stock_weights() -> dict[str, torch.Tensor]:
    """Return the weights that nnU-Net's own trainer ends with, kept from the first test that asks for them."""
    return {}


def train_seeded(trainer_class: type, dataset: TinyDataset) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    np.random.seed(1)
    trainer = make_trainer(trainer_class, dataset)
    trainer.run_training()
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


@pytest.mark.parametrize(
    "method",
    [
        # in the fast tests one method of each kind: one network, two equal ones, two different ones
        pytest.param(method, marks=[] if method in (nnUNetTrainerUAMT, nnUNetTrainerCPS, nnUNetTrainerMICD) else SLOW)
        for method in METHODS
        if method not in (*OTHER_BATCHES, *ABLATIONS)
    ],
)
def test_weight_zero_is_stock_nnunet(
    method: type, dataset: TinyDataset, stock_weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all networks, unlabeled images and masks in place: nothing but the weight keeps them apart."""
    if not stock_weights:
        stock_weights |= train_seeded(nnUNetTrainer, dataset)
    monkeypatch.setattr(method, "unsupervised_weight", 0.0)
    trained = train_seeded(method, dataset)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in stock_weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in METHODS if method not in ABLATIONS])
def test_fits_one_volume(method: type, dataset: TinyDataset) -> None:
    """The same patches in each step, of one labeled case."""
    torch.manual_seed(0)
    np.random.seed(0)
    plans = json.loads(dataset.plans_file.read_text())
    for configuration in plans["configurations"].values():
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 32, 32]
    dataset.plans_file.write_text(json.dumps(plans))
    splits = json.loads(dataset.splits_file.read_text())
    (case, *_), validation = splits[0]["train"], splits[0]["val"]
    dataset.splits_file.write_text(json.dumps([{"train": [case], "val": validation}]))
    trainer = make_trainer(method, dataset, "2d")
    trainer.num_epochs, trainer.num_iterations_per_epoch = 8, 15
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    truth = full_resolution(batch["target"])[:, 0]

    def dice() -> float:
        with torch.no_grad():
            labels = trainer.pseudo_label(trainer.logits(trainer.students["a"], batch["data"]))
        return hard_dice(labels, truth, 3)[1:].mean().item()

    before = dice()
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(batch)
    assert dice() > before + 0.2


def test_labels_of_unlabeled_cases_are_never_read(dataset: TinyDataset) -> None:
    def first_losses() -> list[dict[str, Any]]:
        torch.manual_seed(1)
        np.random.seed(1)
        trainer = make_trainer(nnUNetTrainerMICD, dataset, fold=1)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        return [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]

    before = first_losses()
    for case in json.loads(dataset.splits_file.read_text())[1]["unlabeled"]:
        (dataset.labeled_folder() / f"{case}_seg.b2nd").unlink()
        (dataset.labeled_folder() / f"{case}.pkl").unlink()
    assert first_losses() == before


def test_external_loggers_get_every_figure(dataset: TinyDataset) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.keys: set[tuple[str, int]] = set()

        def log(self, key: str, value: float, step: int) -> None:
            assert np.isfinite(value)
            self.keys.add((key, step))

        def update_config(self, config: dict) -> None:
            pass

    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    recorder = Recorder()
    trainer.logger.loggers.append(recorder)
    trainer.run_training()
    for name in ("supervised", "supervised_b", "mcpc", "cfc", "cmd", "b", "unsupervised_share", "agreement"):
        assert {(f"semi_supervised/{name}", epoch) for epoch in (0, 1)} <= recorder.keys


def test_weights_and_biases_gets_curves_and_pictures(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, Any, int]] = []
    run = SimpleNamespace(
        config={}, summary={}, step=0, log=lambda values, step: logged.extend((*item, step) for item in values.items())
    )
    wandb = SimpleNamespace(init=lambda **_: run, Image=lambda path: ("image", path))
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.wandb", wandb)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")  # as a user switches it on
    trainer = make_trainer(nnUNetTrainerMICD, dataset, draws=True)
    trainer.run_training()
    picture = os.path.join(trainer.output_folder, "unlabeled_patches", "epoch_0001.png")
    assert os.path.isfile(picture)
    assert ("semi_supervised/unlabeled_patches", ("image", picture), 1) in logged
    with open(os.path.join(trainer.output_folder, "semi_supervised.csv")) as file:
        columns = set(file.readline().strip().split(",")) - {"epoch"}
    assert {f"semi_supervised/{column}" for column in columns} <= {name for name, _, _ in logged}
    steps = [step for _, _, step in logged]
    assert steps == sorted(steps), "W&B drops what comes for an earlier step"


@pytest.mark.parametrize("method", [nnUNetTrainerMICD, nnUNetTrainerMeanTeacher])
def test_picture_does_not_disturb_the_training(method: type, dataset: TinyDataset) -> None:
    trainer = make_trainer(method, dataset)
    trainer.on_train_start()
    states = trainer.generator.get_state(), torch.get_rng_state()
    trainer.picture_panels(next(trainer.dataloader_unlabeled)["data"])
    assert torch.equal(trainer.generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


def test_weight_ramps_up_or_is_constant(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    weights = []
    for trainer.iteration in (0, 2, 4):
        weights.append(trainer.unsupervised_weight)
    peak = trainer.config.ramp_peak
    assert weights == pytest.approx([peak * np.exp(-5), peak * np.exp(-1.25), peak])
    trainer.iteration = 0
    trainer.config = replace(trainer.config, ramp_length=0.0)
    assert trainer.unsupervised_weight == peak


def test_pretrained_weights_reach_the_teacher(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.initialize()
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.fill_(0.5)
    trainer.on_train_start()
    assert all((parameter == 0.5).all() for parameter in trainer.teachers["a"].parameters())


@pytest.mark.parametrize("writer", [nnUNetTrainer, nnUNetTrainerMeanTeacher])
def test_foreign_checkpoint(writer: type, dataset: TinyDataset, tmp_path: Path) -> None:
    other = make_trainer(writer, dataset)
    other.initialize()
    checkpoint = str(tmp_path / "checkpoint.pth")
    other.save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=f"written by {writer.__name__}.*-pretrained_weights"):
        make_trainer(nnUNetTrainerMICD, dataset).load_checkpoint(checkpoint)


def test_fold_without_labeled_cases(dataset: TinyDataset) -> None:
    dataset.splits_file.write_text(json.dumps([{"train": [], "val": ["case_3"]}]))
    with pytest.raises(ValueError, match="Fold 0 has no labeled training case"):
        make_trainer(nnUNetTrainerMICD, dataset).on_train_start()


def test_unknown_architecture_is_refused_before_training(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "somewhere.Transformer"
    dataset.plans_file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"somewhere\.Transformer.*PlainConvUNet"):
        make_trainer(nnUNetTrainerMICD, dataset).initialize()


class nnUNetTrainerFollowsTeacher(SemiSupervisedTrainer):
    """The least that a method defines: its losses."""

    def compute_losses(self, labeled: dict[str, Any], unlabeled: torch.Tensor | None) -> Iterator[Losses]:
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None:
            return
        with torch.no_grad():
            pseudo = self.pseudo_label(self.logits(self.teachers["a"], unlabeled))
        student = self.logits(self.students["a"], unlabeled)
        yield Losses(unsupervised={"teacher_labels": hard_cross_entropy(student, pseudo)})


def test_a_method_is_its_losses(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerFollowsTeacher, dataset, draws=True)
    trainer.run_training()
    assert all(np.isfinite(row["teacher_labels"]) for row in trainer.monitor.history)
    assert (Path(trainer.output_folder) / "unlabeled_patches" / "epoch_0001.png").is_file()
