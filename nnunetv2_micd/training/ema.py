"""Teachers as the exponential moving average (EMA) of a student: MICD, equation 1, and Mean Teacher.

Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780.
"""

import copy

import torch
from torch import nn


def ema_decay_at(step: int, decay: float) -> float:
    """Decay with a warm-up that lets the teacher average over about the last tenth of the steps so far.

    Mean Teacher's own warm-up, ``1 - 1 / (step + 1)``, averages over all steps so far until it reaches ``decay``: the
    teacher of a short training lags far behind its student, by two points of Dice after 200 steps
    (``docs/results``). This one is that of TensorFlow's ``ExponentialMovingAverage(num_updates=...)``;
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

    The whole state dict takes part: floats, buffers such as running statistics included, are interpolated, integers and
    booleans are copied.

    Args:
        teacher: Changed in place.
        student: Network with the same state dict; not changed.
        decay: Weight of the teacher's past, see ``ema_decay_at``.

    Raises:
        ValueError: If the two networks have different state dicts.
    """
    teacher_state, student_state = teacher.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
    if different := sorted(teacher_state.keys() ^ student_state.keys()):
        raise ValueError(
            f"Teacher and student have different networks: {', '.join(different)} exist in only one of them; "
            "make the teacher from the same (unwrapped) student."
        )
    # nnU-Net's networks list one tensor under several keys (the decoder holds the encoder); each must move only once.
    # With keep_vars these are the same object.
    pairs = {id(tensor): (tensor, student_state[key]) for key, tensor in teacher_state.items()}.values()
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    if floats:
        # The kernels of torch.optim's own foreach and of torch.optim.swa_utils.get_ema_multi_avg_fn: a few launches
        # instead of one for each of the hundreds of tensors.
        torch._foreach_lerp_([t for t, _ in floats], [s for _, s in floats], 1 - decay)
    for teacher_tensor, student_tensor in pairs:
        if not teacher_tensor.is_floating_point():
            teacher_tensor.copy_(student_tensor)


def make_teacher(student: nn.Module) -> nn.Module:
    """Copy a student into a teacher that starts at its weights.

    Args:
        student: The network as built, not wrapped by ``torch.compile`` or DDP.

    Returns:
        Independent copy in evaluation mode whose parameters need no gradient.
    """
    return copy.deepcopy(student).requires_grad_(False).eval()
