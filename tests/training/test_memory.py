"""The estimate of GPU memory against hand-made numbers and steps on tensors without content."""

import json
from itertools import repeat
from types import SimpleNamespace
from typing import Any
from weakref import finalize

import pytest
import torch
from helpers import TinyDataset, make_trainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunetv2_micd.augmentation import intensity as views
from nnunetv2_micd.augmentation.displacement import Displacement
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.doctor.dataset import check_memory
from nnunetv2_micd.methods import cad
from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.dhc import nnUNetTrainerDHC
from nnunetv2_micd.methods.mcf import nnUNetTrainerMCF
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.spcl import nnUNetTrainerSPCL
from nnunetv2_micd.methods.uamt import nnUNetTrainerUAMT
from nnunetv2_micd.methods.unimatch import nnUNetTrainerUniMatch
from nnunetv2_micd.profiling.batches import make_unlabeled_batch
from nnunetv2_micd.training import memory
from nnunetv2_micd.training.memory import estimate_memory
from nnunetv2_micd.training.networks import PLAIN, RESIDUAL

GIB = 2**30


def plan(dataset: TinyDataset, name: str, **changes: Any) -> PlansManager:
    """Write changes of a configuration into the plans."""
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"][name].update(changes)
    dataset.plans_file.write_text(json.dumps(plans))
    return PlansManager(plans)


def plan_in_full_size(
    dataset: TinyDataset, name: str, class_name: str, patch_size: tuple[int, ...], batch_size: int
) -> None:
    """Give the tiny dataset a network of the size that nnU-Net plans for large images."""
    dimensions = len(patch_size)
    stages, most_features = {2: (8, 512), 3: (6, 320)}[dimensions]
    architecture = json.loads(dataset.plans_file.read_text())["configurations"][name]["architecture"]
    kwargs = architecture["arch_kwargs"]
    kwargs.update(
        n_stages=stages,
        features_per_stage=[min(32 * 2**stage, most_features) for stage in range(stages)],
        kernel_sizes=[[3] * dimensions] * stages,
        strides=[[1] * dimensions] + [[2] * dimensions] * (stages - 1),
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )
    if class_name == RESIDUAL:
        del kwargs["n_conv_per_stage"]
        kwargs.update(n_blocks_per_stage=[1, 3, 4, 6, 6, 6, 6, 6][:stages], n_conv_per_stage_decoder=[1] * (stages - 1))
    architecture["network_class_name"] = class_name
    plan(dataset, name, architecture=architecture, patch_size=patch_size, batch_size=batch_size)


def set_number_of_classes(dataset: TinyDataset, number: int) -> None:
    path = dataset.preprocessed / "dataset.json"
    labels = {"background": 0} | {f"class_{label}": label for label in range(1, number)}
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels}))


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_estimate_is_weights_and_batch_and_cuda(name: str, dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset, name)
    trainer.initialize()
    weights = sum(weight.numel() for student in trainer.students.values() for weight in student.parameters())
    none, two, six = (
        estimate_memory(plan(dataset, name, batch_size=size).get_configuration(name), 1, 3) for size in (0, 2, 6)
    )
    assert none == 3 * GIB + 18 * weights
    assert six - none == pytest.approx(3 * (two - none))


def test_numbers_of_nnunets_default_network(dataset: TinyDataset) -> None:
    plan_in_full_size(dataset, "3d_fullres", PLAIN, (128, 128, 128), 2)
    finding = check_memory(Dataset.find(dataset.id), "3d_fullres")
    assert (finding.level, finding.subject, finding.remedy) == ("ok", "3d_fullres", "")
    assert finding.text == "about 9.4 GiB of GPU memory for a training of MICD; self-training should take less"


@pytest.mark.parametrize(("gib", "level"), [(80, "ok"), (12, "ok"), (8, "warning")])
def test_gpu_that_is_too_small(gib: int, level: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_in_full_size(dataset, "3d_fullres", PLAIN, (128, 128, 128), 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sizes = 8 * GIB, gib * GIB
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))
    finding = check_memory(Dataset.find(dataset.id), "3d_fullres")
    assert finding.level == level
    if level == "warning":
        assert "more than the 8.0 GiB of the GPU" in finding.text
        assert "smaller batch_size" in finding.remedy


class WithoutContent(FakeTensorMode):
    """Tensors are only shapes; teachers, which are deep copies, share the mode of their students."""

    def __deepcopy__(self, memo: dict) -> "WithoutContent":
        return self


class Peak(TorchDispatchMode):
    """Adds up the storages of all tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


def on_no_device(method: type) -> type:
    """Return the method in mixed precision as on CUDA; nothing asks for values."""
    members = {
        "autocast": lambda trainer: torch.autocast("cpu", dtype=torch.float16),
    }
    return type("OnNoDevice", (method,), members)


class NoScaler:
    """In place of the GradScaler, with which a step on CUDA does not ask whether losses are finite."""

    def get_scale(self) -> float:
        return 1.0

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def update(self) -> None:
        """Do nothing."""


def measure_step(method: type, dataset: TinyDataset, name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the peak of the bytes in tensors over a step, the momentum of the one before included."""
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # tensors without content cannot be moved
    with WithoutContent(), Peak() as tensors:
        trainer = make_trainer(on_no_device(method), dataset, name)
        trainer.initialize()
        trainer.grad_scaler = NoScaler()
        monkeypatch.setattr(trainer.monitor, "record_step", lambda *figures: {})
        for student in trainer.students.values():
            student.train()
        patch_size, batch_size = trainer.configuration_manager.patch_size, trainer.batch_size
        scales = trainer._get_deep_supervision_scales()
        sizes = [[round(size * factor) for size, factor in zip(patch_size, scale, strict=True)] for scale in scales]
        images = {"data": torch.zeros(batch_size, 1, *patch_size)}
        trainer.dataloader_unlabeled = repeat(make_unlabeled_batch(images, batch_size))
        batch = {
            "data": torch.zeros(batch_size, 1, *patch_size),
            "target": [torch.zeros(batch_size, 1, *size, dtype=torch.int16) for size in sizes],
        }
        trainer.train_step(batch)
        tensors.peak = 0
        trainer.train_step(batch)
        return tensors.peak


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    ("name", "class_name", "patch_size", "batch_size", "classes"),
    [
        ("3d_fullres", PLAIN, (128, 128, 128), 2, 3),
        ("3d_fullres", PLAIN, (96, 160, 160), 4, 50),
        ("3d_fullres", RESIDUAL, (160, 192, 160), 3, 3),
        ("2d", PLAIN, (512, 512), 12, 4),
    ],
)
def test_estimate_agrees_with_a_step(
    name: str,
    class_name: str,
    patch_size: tuple[int, ...],
    batch_size: int,
    classes: int,
    dataset: TinyDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan_in_full_size(dataset, name, class_name, patch_size, batch_size)
    set_number_of_classes(dataset, classes)
    estimate = estimate_memory(PlansManager(str(dataset.plans_file)).get_configuration(name), 1, classes)
    assert measure_step(nnUNetTrainerMICD, dataset, name, monkeypatch) == pytest.approx(
        estimate - memory.CUDA_BYTES, rel=0.07
    )


def displace_anything(confidence: Tensor, donor_confidence: Tensor, threshold: float, edge: float) -> Displacement:
    """Stand for the search in a confidence that has no content."""
    shift = confidence.new_zeros((len(confidence), confidence.ndim - 1), dtype=torch.int64)
    return Displacement(confidence[:, None] < threshold, shift)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    ("method", "times"),
    [
        (nnUNetTrainerMICD, 1.3),
        *(
            pytest.param(method, times, marks=pytest.mark.slow)
            for method, times in (
                (nnUNetTrainerMeanTeacher, 1.2),
                (nnUNetTrainerSPCL, 1.0),
                (nnUNetTrainerUAMT, 1.2),
                (nnUNetTrainerUniMatch, 1.2),
                (cad.nnUNetTrainerCAD, 1.3),
                (nnUNetTrainerCPS, 1.9),
                (nnUNetTrainerMCF, 2.0),
                (nnUNetTrainerC3S3, 1.8),
                (nnUNetTrainerMEDL, 2.0),
                (nnUNetTrainerDHC, 2.0),
            )
        ),
    ],
)
def test_methods_beside_nnunet(
    method: type, times: float, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``docs/performance.md``; nnU-Net's own step, counted in the same way, takes 4.7 GiB."""
    plan_in_full_size(dataset, "3d_fullres", PLAIN, (128, 128, 128), 2)
    monkeypatch.setattr(views, "int", lambda seed: 0, raising=False)  # the seeds of noise have no content either
    monkeypatch.setattr(cad, "find_displacement", displace_anything)
    peak = measure_step(method, dataset, "3d_fullres", monkeypatch)
    assert peak == pytest.approx(times * 4.7 * GIB, rel=0.05)
