"""A training that is continued from a checkpoint takes the very steps of one that was not interrupted."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.cad import nnUNetTrainerCAD
from nnunetv2_micd.methods.m3hl import nnUNetTrainerM3HL
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.spcl import nnUNetTrainerSPCL
from nnunetv2_micd.methods.transmedseg import nnUNetTrainerTransMedSeg


def prepare(method: type, dataset: TinyDataset) -> Any:
    trainer = make_trainer(method, dataset)
    trainer.num_epochs, trainer.save_every = 3, 1
    return trainer


@pytest.mark.parametrize(
    "method",
    [
        nnUNetTrainerMICD,
        *(
            pytest.param(method, marks=pytest.mark.slow)
            for method in (
                nnUNetTrainerMeanTeacher,
                nnUNetTrainerC3S3,
                nnUNetTrainerCAD,
                nnUNetTrainerM3HL,
                nnUNetTrainerMandN,
                nnUNetTrainerMEDL,
                nnUNetTrainerSPCL,
                nnUNetTrainerTransMedSeg,
            )
        ),
    ],
)
def test_continued_equals_uninterrupted(method: type, dataset: TinyDataset, tmp_path: Path) -> None:
    class Keeping(method):  # type: ignore[misc, valid-type]
        def save_checkpoint(self, filename: Any) -> None:
            super().save_checkpoint(filename)
            if self.current_epoch == 0 and str(filename).endswith("latest.pth"):
                shutil.copy(filename, tmp_path / "checkpoint.pth")

    torch.manual_seed(1)
    np.random.seed(1)
    trainer = prepare(Keeping, dataset)
    trainer.run_training()

    torch.manual_seed(2)
    np.random.seed(2)
    continued = prepare(Keeping, dataset)
    continued.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    continued.run_training()
    assert continued.monitor.history == trainer.monitor.history
    for kind in ("students", "teachers"):
        for name, network in getattr(trainer, kind).items():
            other = getattr(continued, kind)[name].state_dict()
            assert all(torch.equal(tensor, other[key]) for key, tensor in network.state_dict().items())


def test_a_repeated_training_is_continued_and_not_the_earlier_one(
    dataset: TinyDataset, capsys: pytest.CaptureFixture
) -> None:
    class Killed(nnUNetTrainerMeanTeacher):
        killed_in = 2

        def on_epoch_start(self) -> None:
            if self.current_epoch == self.killed_in:
                raise KeyboardInterrupt
            super().on_epoch_start()

    def start(epoch: int = 2, continues: bool = False) -> Any:
        trainer = make_trainer(Killed, dataset)
        trainer.save_every, trainer.killed_in = 1, epoch
        maybe_load_checkpoint(trainer, continues, validation_only=False)
        return trainer

    trainer = start()
    trainer.run_training()
    folder = Path(trainer.output_folder)
    earlier = {kind: (folder / f"checkpoint_{kind}.pth").read_bytes() for kind in ("final", "best")}
    assert "checkpoint_final_earlier" not in capsys.readouterr().out

    with pytest.raises(KeyboardInterrupt):
        start(epoch=0).run_training()  # before its first checkpoint there is none to continue
    assert "checkpoint_final_earlier_1.pth, checkpoint_best_earlier_1.pth" in capsys.readouterr().out
    assert start(continues=True).current_epoch == 0
    for kind, content in earlier.items():
        assert (folder / f"checkpoint_{kind}_earlier_1.pth").read_bytes() == content
    with pytest.raises(KeyboardInterrupt):
        start(epoch=1).run_training()
    continued = start(continues=True)
    assert continued.current_epoch == 1
    continued.run_training()
    trainer = start()
    trainer.disable_checkpointing = True  # it writes none that could take their place
    trainer.on_train_start()
    assert "checkpoint_final_earlier_2" not in capsys.readouterr().out
    final = (folder / "checkpoint_final.pth").read_bytes()
    start().on_train_start()  # that training is kept as well
    assert (folder / "checkpoint_final_earlier_2.pth").read_bytes() == final
    assert {path.name for path in folder.glob("checkpoint_final*")} == {
        "checkpoint_final_earlier_1.pth",
        "checkpoint_final_earlier_2.pth",
    }


def test_other_settings_than_those_of_the_checkpoint_are_said(
    dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = str(tmp_path / "checkpoint.pth")
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset)
    trainer.initialize()
    trainer.save_checkpoint(file)
    trainer.load_checkpoint(file)
    assert "other settings" not in capsys.readouterr().out
    monkeypatch.setattr(nnUNetTrainerMeanTeacher, "config", replace(trainer.config, ema_decay=0.5))
    trainer.load_checkpoint(file)
    assert "trained with other settings: ema_decay is 0.5 and was 0.99." in capsys.readouterr().out


@pytest.mark.parametrize("more_epochs", [0, 1])
def test_a_finished_training_that_goes_on_says_that_it_has_no_momentum(
    more_epochs: int, dataset: TinyDataset, capsys: pytest.CaptureFixture
) -> None:
    make_trainer(nnUNetTrainerMeanTeacher, dataset).run_training()
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset)
    trainer.num_epochs += more_epochs
    capsys.readouterr()
    trainer.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    assert ("holds no momentum" in capsys.readouterr().out) == bool(more_epochs)
