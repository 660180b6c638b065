"""What goes wrong during a training: losses that are not finite, a collapse, a full disk, foreign checkpoints."""

import os
import signal
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunetv2_micd
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.training import monitor
from nnunetv2_micd.training.monitor import Monitor
from nnunetv2_micd.training.workers import explain_death
from nnunetv2_micd.utils.locks import hold_lock


def start(dataset: TinyDataset) -> Any:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def weights(trainer: Any) -> list[torch.Tensor]:
    networks = [*trainer.students.values(), *trainer.teachers.values()]
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


@pytest.mark.parametrize("poisoned", ["labeled", "unlabeled"])
def test_a_step_without_finite_losses_is_skipped_and_counted(poisoned: str, dataset: TinyDataset) -> None:
    trainer = start(dataset)
    trainer.train_step(next(trainer.dataloader_train))
    before = weights(trainer)
    batch, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    (batch if poisoned == "labeled" else unlabeled)["data"].fill_(float("nan"))
    trainer.dataloader_unlabeled = iter([unlabeled])
    record = trainer.train_step(batch)
    assert all(torch.equal(old, new) for old, new in zip(before, weights(trainer), strict=True))
    trainer.on_train_epoch_end([{**record, "loss": np.float32(0)}])
    assert trainer.monitor.history[-1]["skipped_steps"] == 1
    assert "Step 2 was skipped" in Path(trainer.log_file).read_text()


def test_a_step_that_the_grad_scaler_skips_is_counted(dataset: TinyDataset) -> None:
    """The losses are finite, but a gradient is not, as in half precision."""
    trainer = start(dataset)
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.train_step(next(trainer.dataloader_train))
    before = [tensor.clone() for tensor in trainer.network.state_dict().values()]
    poisoned = next(trainer.network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    record = trainer.train_step(next(trainer.dataloader_train))
    poisoned.remove()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.network.state_dict().values(), strict=True))
    trainer.train_step(next(trainer.dataloader_train))
    trainer.on_train_epoch_end([{**record, "loss": np.float32(0)}])
    assert trainer.monitor.history[-1]["skipped_steps"] == 1
    assert "Step 2 was skipped because a loss or gradient is not finite" in Path(trainer.log_file).read_text()


def test_a_gradient_that_is_not_finite_changes_nothing(dataset: TinyDataset) -> None:
    """Without a GradScaler, as on the CPU, where the losses of the step are finite."""
    trainer = start(dataset)
    trainer.train_step(next(trainer.dataloader_train))
    before = weights(trainer)
    poisoned = next(trainer.network.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    record = trainer.train_step(next(trainer.dataloader_train))
    poisoned.remove()
    assert all(torch.equal(old, new) for old, new in zip(before, weights(trainer), strict=True))
    trainer.on_train_epoch_end([{**record, "loss": np.float32(0)}])
    assert trainer.monitor.history[-1]["skipped_steps"] == 1
    assert "Step 2 was skipped because a loss or gradient is not finite" in Path(trainer.log_file).read_text()


def test_too_many_skipped_steps_end_the_training(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MOST_SKIPPED", 2)
    trainer = start(dataset)
    batch = next(trainer.dataloader_train)
    batch["data"].fill_(float("inf"))
    trainer.train_step(batch)
    with pytest.raises(RuntimeError, match=r"2 steps in a row are not finite.*ramp_peak"):
        trainer.train_step(batch)


def test_a_collapse_is_reported_once() -> None:
    lines: list[str] = []
    watch = Monitor(lines.append)
    for dice, weight in ((0.1, 0.0), (0.8, 0.5), (0.5, 0.5), (0.4, 0.5)):
        watch.history = [{"b": weight, "supervised": 1.0}]
        watch.watch_for_collapse(dice, best_dice=0.9)
    assert len(lines) == 1
    assert "from 0.900 to 0.500" in lines[0]
    assert "ramp_peak" not in lines[0]  # there is no loss that it weighs
    watch = Monitor(lines.append)
    watch.history = [{"b": 0.5, "supervised": 1.0, "unsupervised_share": 0.3}]
    watch.watch_for_collapse(0.5, best_dice=0.9)
    assert "smaller ramp_peak" in lines[1]


def test_a_pretraining_on_unlabeled_images_is_no_collapse() -> None:
    lines: list[str] = []
    watch = Monitor(lines.append)
    watch.history = [{"b": 1.0}]
    watch.watch_for_collapse(0.1, best_dice=0.9)
    assert not lines


def test_a_dice_that_is_not_known_is_no_collapse() -> None:
    lines: list[str] = []
    watch = Monitor(lines.append)
    watch.history = [{"b": 0.5, "supervised": 1.0}]
    watch.watch_for_collapse(float("nan"), best_dice=0.9)
    watch.watch_for_collapse(0.1, best_dice=float("nan"))
    assert not lines


def test_a_full_disk_leaves_the_old_checkpoint(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    save = torch.save

    def save_half(content: Any, file: Any) -> None:
        if isinstance(file, str):
            Path(file).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file")
        save(content, file)

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match=r"disk is full.*--c"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))


@pytest.mark.parametrize(
    ("state", "name"), [(deque([1.0]), "collections.deque"), (np.array(["a", None], dtype=object), "an object")]
)
def test_a_state_that_could_not_be_read_again_is_refused_at_the_first_checkpoint(
    state: object, name: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(dataset)
    monkeypatch.setattr(trainer, "method_state", lambda: {"seen": state})
    with pytest.raises(TypeError, match=rf"method_state\(\) or configuration holds {name}, .* keep tensors"):
        trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_latest.pth"))
    assert not list(Path(trainer.output_folder).glob("checkpoint_*"))


def test_a_checkpoint_of_another_release(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.initialize()
    path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    monkeypatch.setattr(nnunetv2_micd, "__version__", "0.0.9")
    trainer.save_checkpoint(path)
    monkeypatch.undo()
    dataset.set_environment(monkeypatch)
    with pytest.raises(ValueError, match=r"version 0\.0\.9 .*install version 0\.0\.9"):
        make_trainer(nnUNetTrainerMICD, dataset).load_checkpoint(path)


def test_the_final_checkpoint_is_little_larger_than_two_of_nnunet(dataset: TinyDataset) -> None:
    sizes = []
    for trainer_class in (nnUNetTrainer, nnUNetTrainerMICD):
        trainer = make_trainer(trainer_class, dataset)
        trainer.configuration_manager.network_arch_init_kwargs.update(  # proportions as nnU-Net plans them
            features_per_stage=[16, 32, 64], n_conv_per_stage=[2, 2, 2], n_conv_per_stage_decoder=[2, 2]
        )
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
        path = Path(trainer.output_folder) / "checkpoint_final.pth"
        trainer.save_checkpoint(str(path))
        sizes.append(path.stat().st_size)
    assert sizes[1] < 2.2 * sizes[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("loads", ["labeled images", "validation images", "unlabeled images"])
@pytest.mark.parametrize("killed_by", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_worker_ends_the_training(
    loads: str, killed_by: int, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.num_epochs = trainer.num_val_iterations_per_epoch = 1000
    train_step = trainer.train_step

    def kill_and_train(batch: dict[str, Any]) -> dict[str, Any]:
        os.kill(trainer._workers[loads][0].pid, killed_by)
        monkeypatch.setattr(trainer, "train_step", train_step)
        return train_step(batch)

    monkeypatch.setattr(trainer, "train_step", kill_and_train)
    with pytest.raises(RuntimeError, match=rf"loads {loads} was killed by signal {killed_by}.*there were 3.*n_proc_DA"):
        trainer.run_training()


def test_a_worker_that_fails_by_itself_has_printed_its_error() -> None:
    workers = {"labeled images": [SimpleNamespace(exitcode=code) for code in (None, 0, 1)]}
    assert explain_death(workers, RuntimeError()) is None


def test_a_worker_that_dies_at_once(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("One or more background workers are no longer alive. Exiting.")

    monkeypatch.setattr(nnUNetTrainer, "get_dataloaders", fail)
    with pytest.raises(RuntimeError, match=r"died when the first images were loaded.*nnUNet_n_proc_DA"):
        make_trainer(nnUNetTrainerMICD, dataset).run_training()


def test_a_worker_that_was_killed_is_told_from_those_ended_after_it() -> None:
    workers = {"labeled images": [SimpleNamespace(exitcode=-15)], "unlabeled images": [SimpleNamespace(exitcode=-9)]}
    assert "loads unlabeled images was killed by signal 9 (Killed)" in str(explain_death(workers, RuntimeError()))


def test_a_second_training_in_the_same_folder_is_refused(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    with hold_lock(Path(trainer.output_folder, ".training.lock"), "training"):
        with pytest.raises(BlockingIOError, match=r"already training in .*fold_0; wait for it to finish or stop it"):
            trainer.run_training()
        assert trainer.iteration == 0
    trainer.run_training()
    assert trainer.iteration == 4
