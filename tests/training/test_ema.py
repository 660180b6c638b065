import pytest
import torch
from torch import nn

from nnunetv2_micd.training.ema import ema_decay_at, update_ema
from nnunetv2_micd.training.students import Students


def teacher_of(student: nn.Module) -> nn.Module:
    return Students({"a": student}, ema_decay=0.99).teachers["a"]


class Shared(nn.Module):
    """Lists the same layer twice, as nnU-Net's decoder lists the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        self.decoder = nn.Sequential(self.encoder)


def fill(network: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(value)
    return network


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (8, 0.5), (80, 0.9), (890, 0.99), (5000, 0.99)])
def test_decay_warms_up(step: int, expected: float) -> None:
    assert ema_decay_at(step, 0.99) == pytest.approx(expected, abs=1e-5)


def test_teacher_with_warm_up_follows_the_student() -> None:
    student, teacher = fill(nn.Linear(2, 1), 5.0), fill(nn.Linear(2, 1), 0.0)
    update_ema(teacher, student, ema_decay_at(0, 0.99))
    assert all((tensor == 4.5).all() for tensor in teacher.state_dict().values())


def test_floats_are_interpolated_and_integers_copied_buffers_included() -> None:
    student = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    teacher = fill(teacher_of(student), 1.0)
    fill(student, 3.0)
    student.register_buffer("flag", torch.tensor(True))
    teacher.register_buffer("flag", torch.tensor(False))
    update_ema(teacher, student, 0.75)
    state = teacher.state_dict()
    assert state.pop("1.num_batches_tracked").item() == 3
    assert state.pop("flag").item() is True
    assert {"1.running_mean", "1.running_var", "0.weight"} <= state.keys()
    for tensor in state.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 1.5))
    assert all((tensor == 3).all() for tensor in student.parameters())


def test_tensor_with_two_names_moves_once() -> None:
    student = Shared()
    teacher = fill(teacher_of(student), 0.0)
    update_ema(teacher, fill(student, 1.0), 0.9)
    assert teacher.encoder.weight.item() == pytest.approx(0.1)


class NormalizedAndShared(nn.Module):
    """Has running statistics, a counter and a layer with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.decoder = nn.ModuleDict({"encoder": self.encoder, "head": nn.Conv2d(4, 2, 1)})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder["head"](self.encoder(images))


def test_many_updates_are_those_of_the_formula_to_the_last_bit() -> None:
    torch.manual_seed(0)
    student = NormalizedAndShared()
    teacher = teacher_of(student)
    expected = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(10):
        student(torch.randn(2, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        decay = ema_decay_at(step, 0.9)
        update_ema(teacher, student, decay)
        for name, tensor in student.state_dict().items():
            is_float = tensor.is_floating_point()
            expected[name] = torch.lerp(expected[name], tensor, 1 - decay) if is_float else tensor.clone()
    state = teacher.state_dict()
    assert state["encoder.1.num_batches_tracked"] == 10
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_network_without_floats_is_copied() -> None:
    student, teacher = nn.Module(), nn.Module()
    student.register_buffer("count", torch.tensor(7))
    teacher.register_buffer("count", torch.tensor(0))
    update_ema(teacher, student, 0.99)
    assert teacher.count.item() == 7


def test_teacher_is_an_independent_copy_for_evaluation() -> None:
    student = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    teacher = teacher_of(student)
    assert student.training
    assert not teacher.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = teacher[0].weight.clone()
    assert torch.equal(before, student[0].weight)
    fill(student, 9.0)
    assert torch.equal(teacher[0].weight, before)


def test_update_leaves_the_student_trainable() -> None:
    student = nn.Linear(2, 1)
    teacher = teacher_of(student)
    loss = student(torch.ones(1, 2)).square().sum()
    update_ema(teacher, student, 0.9)
    loss.backward()
    assert student.weight.grad.abs().sum() > 0
    assert teacher.weight.grad is None
