"""Teachers as the exponential moving average (EMA) of a student: MICD, equation 1, and Mean Teacher.

Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780.
"""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay_at(step: int, decay: float) -> float:
    """Decay with a warm-up that lets the teacher average over about the last tenth of the steps so far.

    Mean Teacher's own warm-up, ``1 - 1 / (step + 1)``, averages over all steps so far until it reaches ``decay``. In a
    short training such a teacher lags far behind its student, by two points of Dice after 200 steps
    (``docs/results``). The warm-up here comes from TensorFlow's ``ExponentialMovingAverage(num_updates=...)``. With a
    decay of 0.99 both have ended by step 890.

    Args:
        step: Training step, from 0.
        decay: Final decay ``a`` per step, 0.99 in MICD.

    Returns:
        ``min((1 + step) / (10 + step), decay)``.

    Examples:
        >>> ema_decay_at(0, 0.99), ema_decay_at(8, 0.99), ema_decay_at(1000, 0.99)
        (0.1, 0.5, 0.99)
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

    Examples:
        >>> student, teacher = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(student.weight, 1.0), nn.init.constant_(teacher.weight, 0.0)
        >>> update_ema(teacher, student, decay=0.75)
        >>> teacher.weight.item()
        0.25
    """
    # parameters() and buffers() name each tensor once; nnU-Net's networks hold the encoder under several names.
    buffers = list(zip(teacher.buffers(), student.buffers(), strict=True))
    pairs = [*zip(teacher.parameters(), student.parameters(), strict=True), *buffers]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    if floats:  # all at once: a few kernel launches instead of one for each of the hundreds of tensors
        get_ema_multi_avg_fn(decay)([tensor for tensor, _ in floats], [tensor for _, tensor in floats], None)
    for teacher_buffer, student_buffer in buffers:
        if not teacher_buffer.is_floating_point():
            teacher_buffer.copy_(student_buffer)
