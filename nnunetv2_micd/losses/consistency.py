"""The consistency losses of MICD as pure functions: logits or features in, scalar out.

Paper: Zhou, Zhang & Li, "Boosting Semi-Supervised Medical Image Segmentation via Masked Image Consistency and
Discrepancy Learning", https://arxiv.org/abs/2503.14013. ``K`` is the number of classes with background, ``spatial`` are
two or three axes. Everything is computed in float32, whatever the dtype of the input.

Region-based training, where classes overlap and each has a sigmoid of its own: hard labels are then masks ``(B, K,
*spatial)``, bool, one for each region, and the cross entropy is the binary one, averaged over regions. Which it is
shows in the shape of the labels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_micd.losses.fused import hard_binary_cross_entropy, hard_cross_entropy, symmetric_kl

CFC_STAGE_WEIGHTS = (0.2, 0.4, 0.6, 0.8)
"""l_k of equation 4: the four highest-resolution decoder stages, deepest first."""


def mcpc(
    logits_a: Tensor,
    logits_b: Tensor,
    pseudo_a: Tensor,
    pseudo_b: Tensor,
    weight_a: Tensor | None = None,
    weight_b: Tensor | None = None,
) -> Tensor:
    """Masked cross pseudo consistency, equation 3: ``W_diff CE(p_A, y^_B) + W_dist CE(p_B, y^_A)``.

    The reading of the equation is chosen by what is passed. Every student also needs its masked pass with gradient (for
    CFC and CMD) and the clean labeled images with gradient (for the supervised loss):

    ===============  ==================  ========================  ==================================================
    reading          ``logits_*`` from   ``pseudo_*`` from         further passes of each student
    ===============  ==================  ========================  ==================================================
    ``peer_masked``  the clean image     the peer's masked image   the clean images, with gradient
    ``both_masked``  the masked image    the peer's masked image   none
    ``peer_clean``   the masked image    the peer's clean image    clean unlabeled images, without gradient
    ===============  ==================  ========================  ==================================================

    Reduction: of classes each branch is the weighted mean ``sum_v w_{y_v} CE_v / sum_v w_{y_v}`` over all voxels of the
    batch, of regions ``sum_k w_k BCE_k / sum_k w_k``. The paper leaves this open; DHC, where the weights and the ramp
    come from, does it so (torch's ``reduction="mean"``, commit b3dee972 of xmed-lab/DHC, ``RobustCrossEntropyLoss`` in
    ``train_dhc.py``). The common scale of the weights cancels, their factor K included, so weights redistribute the
    loss between classes and never change its share in the total, which the ramp alone decides. Where DHC would divide
    zero by zero (only classes of weight zero), it is zero.

    Args:
        logits_a: Student A, ``(B, K, *spatial)``; receives gradient.
        logits_b: Student B, same shape; receives gradient.
        pseudo_a: Hard labels of A, see ``hard_labels.pseudo_label``, followed by B.
        pseudo_b: Hard labels of B, same shape, followed by A.
        weight_a: W_diff ``(K,)``, weighs the term of A by the class of ``pseudo_b``; None for ones.
        weight_b: W_dist ``(K,)``, weighs the term of B by the class of ``pseudo_a``; None for ones.

    Returns:
        Scalar in nats.
    """
    return _cross_entropy(logits_a, pseudo_b, weight_a) + _cross_entropy(logits_b, pseudo_a, weight_b)


def cfc(features_a: Sequence[Tensor], features_b: Sequence[Tensor], stage_weights: Sequence[float]) -> Tensor:
    """Cross feature consistency, equation 4: the decoder features of the two students agree.

    Per stage the symmetric divergence ``0.5 (KL(A || B) + KL(B || A))`` between the softmax over channels, summed over
    channels, averaged over batch and voxels; then the weighted sum over stages.

    Args:
        features_a: Decoder features of A, deepest first, ``(B, C_k, *spatial_k)`` each; receive gradient.
        features_b: Decoder features of B, the same shapes; receive gradient.
        stage_weights: One weight per stage, see ``cfc_stage_weights``.

    Returns:
        Scalar in nats.

    Raises:
        ValueError: If the numbers of stages or the shapes of a stage differ, or there is no stage.
    """
    if not len(features_a) == len(features_b) == len(stage_weights) or not stage_weights:
        raise ValueError(
            f"CFC needs as many features of A as of B and as stage weights, at least one: got {len(features_a)}, "
            f"{len(features_b)} and {len(stage_weights)}."
        )
    for stage, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
        if a.shape != b.shape:
            raise ValueError(
                f"CFC needs features of equal shape, but stage {stage} has {tuple(a.shape)} and {tuple(b.shape)}: "
                "build both networks from the same plans."
            )
    stages = zip(features_a, features_b, stage_weights, strict=True)
    return torch.stack([weight * symmetric_kl(a, b) for a, b, weight in stages]).sum()


def cfc_stage_weights(n: int) -> tuple[float, ...]:
    """The stage weights l_k of equation 4 for a decoder of ``n`` stages, deepest first.

    Full resolution always has 0.8 and the stages below 0.6, 0.4, 0.2. At most four stages count: for a deeper decoder
    pass the last four features to ``cfc``.

    Args:
        n: Number of decoder stages.

    Returns:
        ``min(n, 4)`` weights.

    Raises:
        ValueError: If ``n`` is less than one.
    """
    if n < 1:
        raise ValueError(f"A decoder has at least one stage, got {n}.")
    return CFC_STAGE_WEIGHTS[-n:]


def cmd(logits_a: Tensor, logits_b: Tensor, pseudo_teacher_a: Tensor, pseudo_teacher_b: Tensor) -> Tensor:
    """Cross model discrepancy, equation 5: each student on the masked image follows its own teacher on the clean one.

    ``CE(p_A(x^m), y^_A'(x)) + CE(p_B(x^m), y^_B'(x))``, mean over batch and voxels. Despite its name no term pushes the
    outputs apart: the students stay different because each follows its own past.

    Args:
        logits_a: Student A on the masked image, ``(B, K, *spatial)``; receives gradient.
        logits_b: Student B on the masked image, same shape; receives gradient.
        pseudo_teacher_a: Hard labels of the teacher of A on the clean image, see ``hard_labels.pseudo_label``.
        pseudo_teacher_b: Those of the teacher of B.

    Returns:
        Scalar in nats.
    """
    return _cross_entropy(logits_a, pseudo_teacher_a) + _cross_entropy(logits_b, pseudo_teacher_b)


def mean_teacher_consistency(student_logits: Tensor, teacher_logits: Tensor, regions: bool = False) -> Tensor:
    """Mean squared difference of the class probabilities of student and teacher.

    Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, section 3,
    https://arxiv.org/abs/1703.01780. Mean over batch, classes and voxels.

    Args:
        student_logits: ``(B, K, *spatial)``; receives gradient.
        teacher_logits: Same shape; no gradient.
        regions: whether the classes are regions, which may overlap: sigmoid instead of softmax.

    Returns:
        Scalar between 0 and 1.
    """
    with torch.no_grad():
        target = probabilities(teacher_logits, regions)
    return F.mse_loss(probabilities(student_logits, regions), target)


def probabilities(logits: Tensor, regions: bool = False) -> Tensor:
    """Return the probabilities ``(B, K, *spatial)``, float32, of classes or of regions, which may overlap."""
    return logits.float().sigmoid() if regions else logits.softmax(dim=1, dtype=torch.float32)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``mask`` is true, and zero, with a graph, where it is true nowhere.

    Args:
        values: ``(B, K, *spatial)``.
        mask: The same shape, or ``(B, 1, *spatial)`` to choose voxels; bool.
    """
    chosen = mask.expand_as(values)
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp_min(1)


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    if target.ndim == logits.ndim:
        return hard_binary_cross_entropy(logits, target, weight)
    return hard_cross_entropy(logits, target, weight)
