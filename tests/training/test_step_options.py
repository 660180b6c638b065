"""The options that trade the cost of a step: unlabeled patches per labeled one, rarer consistency, memory format."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.dhc import nnUNetTrainerDHC
from nnunetv2_micd.methods.mcf import nnUNetTrainerMCF
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD


def start(dataset: TinyDataset, method: type, configuration: str = "3d_fullres", **fields: object):
    trainer_class = type("Trainer", (method,), {"config": replace(method.config, **fields)})
    trainer = make_trainer(trainer_class, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


@pytest.mark.parametrize("method", [nnUNetTrainerMICD, nnUNetTrainerMeanTeacher])
@pytest.mark.parametrize(("ratio", "expected"), [(0.1, 1), (1.0, 2), (2.5, 5)])
def test_unlabeled_patches_for_each_labeled_one(
    ratio: float, expected: int, method: type, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = start(dataset, method, unlabeled_ratio=ratio)
    assert trainer.batch_size == 2
    assert len(trainer.next_unlabeled()) == trainer.unlabeled_batch_size == expected
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])


def test_consistency_every_third_step(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = start(dataset, nnUNetTrainerMICD, consistency_every=3)
    records = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(4)]
    assert ["mcpc" in record for record in records] == [True, False, False, True]
    trainer.on_train_epoch_end(records)
    row = trainer.monitor.history[-1]
    assert row["mcpc"] == pytest.approx(np.mean([records[0]["mcpc"], records[3]["mcpc"]]))
    assert row["supervised"] == pytest.approx(np.mean([record["supervised"] for record in records]))


@pytest.mark.parametrize(
    "method", [nnUNetTrainerC3S3, nnUNetTrainerCPS, nnUNetTrainerDHC, nnUNetTrainerMCF, nnUNetTrainerMEDL]
)
def test_labeled_images_alone_every_other_step(
    method: type, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = start(dataset, method, consistency_every=2)
    first, second = (trainer.train_step(next(trainer.dataloader_train)) for _ in range(2))
    assert {"supervised", "supervised_b"} < set(first) & set(second)
    assert {"agreement"} <= set(first) - set(second)


@pytest.mark.parametrize(
    ("configuration", "memory_format"), [("2d", torch.channels_last), ("3d_fullres", torch.channels_last_3d)]
)
def test_networks_are_stored_channels_last_where_wanted(
    configuration: str, memory_format: torch.memory_format, dataset: TinyDataset
) -> None:
    trainer = start(dataset, nnUNetTrainerMICD, configuration, channels_last=True)
    for network in (*trainer.students.values(), *trainer.teachers.values()):
        weight = network.decoder.stages[-1].convs[0].conv.weight
        assert weight.is_contiguous(memory_format=memory_format)
        assert not weight.is_contiguous()
    plain = start(dataset, nnUNetTrainerMICD, configuration)
    assert all(weight.is_contiguous() for weight in plain.network.parameters())
