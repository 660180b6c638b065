"""The trained networks and the EMA teacher of each, as one object."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_micd.training.ema import ema_decay_at, update_ema
from nnunetv2_micd.utils.distributed import average_gradients, share_weights


class Students:
    """Networks that are trained side by side, and a teacher for each: the moving average of its weights.

    Args:
        networks: Networks by name, not wrapped by ``torch.compile`` or DistributedDataParallel.
        ema_decay: Largest decay ``a`` of the teachers (eq. 1 of MICD), see :func:`ema.ema_decay_at`.

    Attributes:
        networks: The students by name; ``"a"`` is the network of the plans.
        teachers: Their moving averages by the same names.

    Examples:
        >>> students = Students({"a": nn.Linear(1, 1)}, ema_decay=0.99)
        >>> students.update_teachers(step=0)
        >>> sorted(students.state_dict())
        ['students', 'teachers']
    """

    def __init__(self, networks: dict[str, nn.Module], ema_decay: float):
        self.networks = networks
        self.ema_decay = ema_decay
        self.teachers = {name: deepcopy(student).requires_grad_(False).eval() for name, student in networks.items()}

    def train(self, mode: bool = True) -> None:
        """Put the students into training mode; teachers always stay in evaluation mode."""
        for student in self.networks.values():
            student.train(mode)

    def reset_teachers(self) -> None:
        """Give each teacher the current weights of its student."""
        for name, teacher in self.teachers.items():
            teacher.load_state_dict(self.networks[name].state_dict())

    def update_teachers(self, step: int) -> None:
        """Move each teacher towards its student, eq. 1.

        Args:
            step: Training step, from 0, for the warm-up of the decay.
        """
        decay = ema_decay_at(step, self.ema_decay)
        for name, teacher in self.teachers.items():
            update_ema(teacher, self.networks[name], decay)

    def clip_gradients(self, norm: float) -> list[Tensor]:
        """Clip the gradients of each student by themselves, and return the norms that they had.

        Clipping them together would make the training of one network depend on the gradients of the others.
        """
        return [torch.nn.utils.clip_grad_norm_(student.parameters(), norm) for student in self.networks.values()]

    def average_gradients(self) -> None:
        """Replace the gradients by their means over the processes."""
        average_gradients(self.networks.values())

    def store_channels_last(self) -> None:
        """Store all weights in the memory format in which small networks are faster on a CPU."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}  # a 3D network may have a 2D one beside it
        for network in (*self.networks.values(), *self.teachers.values()):
            for weight in network.parameters():
                if weight.ndim in formats:
                    weight.data = weight.data.to(memory_format=formats[weight.ndim])

    def compile(self) -> None:
        """Compile in place what nnU-Net does not: a wrapper would change the names of the weights in checkpoints."""
        for network in (*(student for name, student in self.networks.items() if name != "a"), *self.teachers.values()):
            network.compile()

    def state_dict(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return all weights but those of the teacher of A, which nnU-Net's own part of a checkpoint holds."""
        return {
            "students": {name: student.state_dict() for name, student in self.networks.items()},
            "teachers": {name: teacher.state_dict() for name, teacher in self.teachers.items() if name != "a"},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        for name, student in self.networks.items():
            student.load_state_dict(state["students"][name])
        for name, weights in state["teachers"].items():
            self.teachers[name].load_state_dict(weights)


def prepare_for_several_processes(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Give all processes the same weights, synchronized batch normalization, and what nnU-Net expects of DDP.

    The networks are not wrapped by DistributedDataParallel, see :mod:`utils.distributed`.
    """
    networks = list(networks)
    share_weights(networks)
    for network in networks:
        if device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # nnU-Net works on the ``module`` of the wrapper. Set past nn.Module, which would make it a submodule.
        object.__setattr__(network, "module", network)


def compiled(function: Callable[..., Any], compiles: bool) -> Callable[..., Any]:
    """Return the function, compiled where nnU-Net compiles."""
    return torch.compile(function) if compiles else function
