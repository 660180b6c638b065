"""Teachers as the exponential moving average (EMA) of a student: MICD, equation 1, and Mean Teacher.

Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780.
"""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay_at(step: int, decay: float) -> float:
    """Decay with a warm-up that lets the teacher average over about the last tenth of the steps so far.

    Mean Teacher's own warm-up, ``1 - 1 / (step + 1)``, averages over all steps so far until it reaches ``decay``: the
    teacher of a short training lags far behind its student, by two points of Dice after 200 steps
    (``docs/results``). This warm-up is the one of TensorFlow's ``ExponentialMovingAverage(num_updates=...)``;
    from step 890 on, with a decay of 0.99, both are the same.

    Args:
        step: Training step, from 0.
        decay: Final decay ``a`` per step, 0.99 in MICD.

    Returns:
        ``min((1 + step) / (10 + step), decay)``.
    """
    return min((1 + step) / (10 + step), decay)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher towards the student in place: ``teacher = decay * teacher + (1 - decay) * student``.

    Parameters and floating-point buffers, such as running statistics, are interpolated. Integer and boolean buffers are
    copied.

    Args:
        teacher: Network that is changed in place.
        student: Network with the same state dict; not changed.
        decay: Weight of the teacher's past, see ``ema_decay_at``.

    Raises:
        ValueError: The two networks have different state dicts.

    Examples:
        >>> student, teacher = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(student.weight, 1.0), nn.init.constant_(teacher.weight, 0.0)
        >>> update_ema(teacher, student, decay=0.75)
        >>> teacher.weight.item()
        0.25
    """
    if different := sorted(teacher.state_dict().keys() ^ student.state_dict().keys()):
        raise ValueError(
            f"Teacher and student have different networks: {', '.join(different)} exist in only one of them; "
            "make the teacher from the same (unwrapped) student."
        )
    # parameters() and buffers() name each tensor once; nnU-Net's networks hold the encoder under several names.
    buffers = list(zip(teacher.buffers(), student.buffers(), strict=True))
    pairs = [*zip(teacher.parameters(), student.parameters(), strict=True), *buffers]
    averaged = [pair for pair in pairs if pair[0].is_floating_point()]
    if averaged:
        get_ema_multi_avg_fn(decay)(*map(list, zip(*averaged, strict=True)), None)
    for of_teacher, of_student in buffers:
        if not of_teacher.is_floating_point():
            of_teacher.copy_(of_student)


def make_teacher(student: nn.Module) -> nn.Module:
    """Copy a student into a teacher that starts at its weights.

    Args:
        student: Network as built, not wrapped by ``torch.compile`` or DDP.

    Returns:
        Independent copy in evaluation mode whose parameters need no gradient.
    """
    return copy.deepcopy(student).requires_grad_(False).eval()
