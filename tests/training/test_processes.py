"""Two processes with half of the batch each take the same step as one process with the whole batch."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ABLATIONS, METHODS, PATCH_SIZE, TinyDataset, make_trainer, needs_cuda
from torch import distributed, multiprocessing

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.pseudo_labels.trainer import nnUNetTrainerPseudoLabels
from nnunetv2_micd.profiling.batches import make_unlabeled_batch

STEPS = 3


class FullPrecision:
    """On CUDA too: in half precision two sums of halves are not the sum of the whole."""

    def autocast(self) -> AbstractContextManager:
        return nullcontext()


class MICD(FullPrecision, nnUNetTrainerMICD):
    # Masks are drawn by each process for itself.
    config = replace(nnUNetTrainerMICD.config, mask_ratio=0.0, ramp_length=0.0)


class MeanTeacher(FullPrecision, nnUNetTrainerMeanTeacher):
    config = replace(nnUNetTrainerMeanTeacher.config, noise_std=0.0, ramp_length=0.0)


class CPS(FullPrecision, nnUNetTrainerCPS):
    """With a mean over labeled and unlabeled images in two parts."""


class C3S3(FullPrecision, nnUNetTrainerC3S3):
    # The contrast compares the voxels of a process alone; views are drawn by each process for itself.
    config = replace(
        nnUNetTrainerC3S3.config, contrast_weight=0.0, view=StrongView(jitter=0, blur=0, noise=0), alpha=1.0
    )


def make_batches() -> list[tuple[dict[str, Any], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(STEPS):
        targets = [
            torch.randint(0, 3, (2, 1, *(size // scale for size in PATCH_SIZE)), generator=generator)
            for scale in (1, 2)
        ]
        images, unlabeled = torch.randn(2, 2, 1, *PATCH_SIZE, generator=generator)
        batches.append(({"data": images, "target": targets}, unlabeled))
    return batches


def make(method: type, dataset: TinyDataset, device: str) -> Any:
    torch.backends.cudnn.allow_tf32 = False
    trainer = make_trainer(method, dataset, device=device)
    if device == "cuda":  # one GPU may serve all processes here
        trainer.device = torch.device("cuda", trainer.local_rank % torch.cuda.device_count())
        trainer.grad_scaler = None
    return trainer


def take_steps(trainer: Any, part: slice) -> dict[str, Any]:
    torch.manual_seed(5 + trainer.local_rank)  # whatever a process draws, all start with the weights of the first
    trainer.initialize()
    trainer.on_train_epoch_start()
    records = []
    for labeled, unlabeled in make_batches():
        trainer.dataloader_unlabeled = iter([make_unlabeled_batch({"data": unlabeled[part]}, trainer.batch_size)])
        batch = {"data": labeled["data"][part], "target": [target[part] for target in labeled["target"]]}
        records.append(trainer.train_step(batch))
    trainer.on_train_epoch_end(records)
    networks = {f"student_{name}": network for name, network in trainer.students.items()}
    networks |= {f"teacher_{name}": network for name, network in trainer.teachers.items()}
    return {
        "weights": {name: net.cpu().state_dict() for name, net in networks.items()},
        "row": trainer.monitor.history[-1],
    }


def run_process(rank: int, method: type, dataset: TinyDataset, folder: Path, device: str) -> None:
    backend = "nccl" if device == "cuda" and torch.cuda.device_count() > 1 else "gloo"  # nccl wants a GPU for each
    if backend == "nccl":
        torch.cuda.set_device(rank)  # as nnU-Net does
    distributed.init_process_group(backend, init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    trainer = make(method, dataset, device)
    result = take_steps(trainer, slice(rank, rank + 1))
    assert trainer.batch_size == 1
    torch.save(result, folder / f"{rank}.pth")
    trainer.save_checkpoint(str(folder / "checkpoint.pth"))
    assert trainer.iteration == STEPS
    distributed.barrier()
    resumed = make(method, dataset, device)
    resumed.load_checkpoint(str(folder / "checkpoint.pth"))
    for name, student in resumed.students.items():
        expected = trainer.students[name].state_dict()
        assert all(torch.equal(tensor.cpu(), expected[key]) for key, tensor in student.state_dict().items())
    distributed.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize(
    "method", [MICD, *(pytest.param(method, marks=pytest.mark.slow) for method in (MeanTeacher, CPS, C3S3))]
)
def test_two_processes_are_one_with_the_whole_batch(
    method: type, device: str, dataset: TinyDataset, tmp_path: Path
) -> None:
    one = take_steps(make(method, dataset, device), slice(None))
    multiprocessing.spawn(run_process, (method, dataset, tmp_path, device), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=False) for rank in (0, 1))
    for name, weights in one["weights"].items():
        for key, tensor in weights.items():
            assert torch.equal(first["weights"][name][key], second["weights"][name][key])
            torch.testing.assert_close(first["weights"][name][key], tensor, rtol=1e-4, atol=2e-5)
    assert first["row"] == second["row"]
    assert first["row"] == pytest.approx(one["row"], abs=1e-4)

    alone = make_trainer(method, dataset)  # a checkpoint of several processes continues in one
    alone.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert alone.iteration == STEPS
    assert all(torch.equal(t, first["weights"]["student_a"][k]) for k, t in alone.students["a"].state_dict().items())


def run_training(rank: int, method: type, dataset: TinyDataset, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    trainer = make_trainer(method, dataset, draws=True)
    trainer.run_training()
    trainer.perform_actual_validation()
    networks = [*trainer.students.values(), *trainer.teachers.values()]
    torch.save([network.state_dict() for network in networks], folder / f"{rank}.pth")
    torch.save(trainer._last_unlabeled, folder / f"patches{rank}.pth")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "workers"),
    [(nnUNetTrainerMICD, "2"), *((method, "0") for method in METHODS if method not in ABLATIONS)],
)
def test_a_training_of_two_processes_from_start_to_end(
    method: type, workers: str, dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    multiprocessing.spawn(run_training, (method, dataset, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    if method.config.ramp_peak == 0 or method is nnUNetTrainerPseudoLabels:
        return
    patches = [torch.load(tmp_path / f"patches{rank}.pth") for rank in (0, 1)]
    assert not torch.equal(*patches)  # each process draws its own
    assert all(len(patch) == 1 for patch in patches)

    [folder] = (dataset.results / dataset.name).glob("*/fold_0")
    assert len(list(folder.glob("training_log*"))) == 1
    assert (folder / "semi_supervised.csv").read_text().count("\n") == 3
    assert len(list((folder / "unlabeled_patches").iterdir())) == 2
    assert (folder / "validation" / "summary.json").exists()
    assert len(list((folder / "validation").glob("*.nii.gz"))) == 2
    alone = make_trainer(method, dataset)
    alone.load_checkpoint(str(folder / "checkpoint_final.pth"))
    networks = [*alone.students.values(), *alone.teachers.values()]
    for network, expected in zip(networks, first, strict=True):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
