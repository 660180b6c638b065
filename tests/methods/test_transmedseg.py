from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.methods.transmedseg import nnUNetTrainerTransMedSeg


def start(dataset: TinyDataset, **changed: Any) -> Any:
    trainer = make_trainer(nnUNetTrainerTransMedSeg, dataset)
    trainer.config = replace(trainer.config, **{"pretraining": 0.0} | changed)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def test_source_is_labeled_and_target_unlabeled(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    assert trainer.source.updates[0] == trainer.target.updates[0] == 2
    assert not torch.equal(trainer.source.means, trainer.target.means)
    assert not hasattr(trainer, "student_features")  # or the graph of the step would stay


def test_at_the_start_it_is_the_cross_entropy_of_labeled_voxels(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(dataset, augmentation_weight=1.0)
    masks: list[torch.Tensor] = []
    further = trainer.further_losses
    monkeypatch.setattr(trainer, "further_losses", lambda *args: (masks.append(~args[1]), further(*args))[1])
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    (group,) = trainer.compute_losses(labeled, unlabeled)
    mixed, labels = trainer.last_mixed
    (is_labeled,) = masks
    with torch.no_grad():
        logits = trainer.logits(trainer.students["a"], mixed)
    # The labels of labeled voxels are those of the labeled image, in both halves of the mixed batch.
    truth = trainer.hard_target(labeled["target"][0])[0].repeat(2, 1, 1, 1)
    assert (labels == truth)[is_labeled].all()
    errors = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none")
    assert group.unsupervised["augmented"].item() == pytest.approx(errors[is_labeled].mean().item(), rel=1e-3)


def test_strength_grows_with_the_training(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start(dataset)
    seen: list[float] = []

    def record(logits: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(args[-1])
        return logits.sum() * 0

    monkeypatch.setattr("nnunetv2_micd.methods.transmedseg.augmented_cross_entropy", record)
    for trainer.iteration in (0, 2):
        list(trainer.compute_losses(next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]))
    assert seen == pytest.approx([0, 0.25 * 2 / 4])
