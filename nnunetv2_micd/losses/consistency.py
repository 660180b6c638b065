"""Consistency losses: two networks, or a network and its teacher, should agree on the same image.

Every loss is a pure function of logits or features and returns a scalar. ``K`` is the number of classes with
background, ``spatial`` are two or three axes. Values are computed in float32, whatever the dtype of the input.

With regions, which may overlap, hard labels are masks ``(B, K, *spatial)`` and the cross entropy is the binary one,
averaged over regions. A loss recognizes regions by the shape of the labels.

MICD: Zhou, Zhang & Li, "Boosting Semi-Supervised Medical Image Segmentation via Masked Image Consistency and
Discrepancy Learning", https://arxiv.org/abs/2503.14013.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_micd.losses.fused import hard_binary_cross_entropy, hard_cross_entropy, symmetric_kl
from nnunetv2_micd.losses.labels import probabilities

CFC_STAGE_WEIGHTS = (0.2, 0.4, 0.6, 0.8)
"""l_k of MICD's equation 4: the four decoder stages of highest resolution, deepest first; a smaller decoder has the
last ones."""


def cross_pseudo_supervision(
    logits_a: Tensor,
    logits_b: Tensor,
    pseudo_a: Tensor,
    pseudo_b: Tensor,
    weight_a: Tensor | None = None,
    weight_b: Tensor | None = None,
) -> Tensor:
    """Weighted cross entropy of each network with the hard labels of the other: ``CE(p_A, y^_B) + CE(p_B, y^_A)``.

    X. Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021,
    https://arxiv.org/abs/2106.01226. With class weights it is the loss of DHC (https://arxiv.org/abs/2307.11960).

    Reduction: with classes, each cross entropy is the weighted mean ``sum_v w_{y_v} CE_v / sum_v w_{y_v}`` over all
    voxels of the batch; with regions it is ``sum_k w_k BCE_k / sum_k w_k``. That is torch's ``reduction="mean"``, which
    DHC uses (https://github.com/xmed-lab/DHC, commit b3dee972, ``RobustCrossEntropyLoss`` in ``train_dhc.py``). A
    common factor of the weights cancels, so weights shift the loss between classes but do not change its share in the
    total loss. Where DHC would divide zero by zero (all labels have weight zero) the loss is zero.

    Args:
        logits_a: Logits of network A ``(B, K, *spatial)``; receives gradient.
        logits_b: Logits of network B, same shape; receives gradient.
        pseudo_a: Hard labels of A, which B learns; see :func:`~nnunetv2_micd.losses.labels.pseudo_label`.
        pseudo_b: Hard labels of B, same shape, which A learns.
        weight_a: Class weights ``(K,)`` for the loss of A, by the class of ``pseudo_b``; None for ones.
        weight_b: Class weights ``(K,)`` for the loss of B, by the class of ``pseudo_a``; None for ones.

    Returns:
        Scalar in nats.

    Examples:
        >>> logits_a = torch.zeros(1, 2, 3, requires_grad=True)  # two classes, three voxels
        >>> logits_b = torch.zeros(1, 2, 3, requires_grad=True)
        >>> pseudo_a, pseudo_b = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 1]])
        >>> loss = cross_pseudo_supervision(logits_a, logits_b, pseudo_a, pseudo_b)
        >>> print(f"{loss:.4f}")  # 2 ln 2
        1.3863
    """
    return _cross_entropy(logits_a, pseudo_b, weight_a) + _cross_entropy(logits_b, pseudo_a, weight_b)


def mcpc(
    logits_a: Tensor,
    logits_b: Tensor,
    pseudo_a: Tensor,
    pseudo_b: Tensor,
    weight_a: Tensor | None = None,
    weight_b: Tensor | None = None,
) -> Tensor:
    """Masked cross pseudo consistency, MICD's equation 3: ``W_diff CE(p_A, y^_B) + W_dist CE(p_B, y^_A)``.

    The formula is :func:`cross_pseudo_supervision`; MICD adds the masked images. The printed equation can be read in
    three ways, which differ in the images behind the arguments. The last column lists the passes that a student needs
    besides its masked pass with gradient (for CFC and CMD) and its clean pass over labeled images (for the supervised
    loss):

    ===============  ==================  ========================  ==================================================
    reading          ``logits_*`` from   ``pseudo_*`` from         further passes of each student
    ===============  ==================  ========================  ==================================================
    ``peer_masked``  the clean image     the peer's masked image   the clean images, with gradient
    ``both_masked``  the masked image    the peer's masked image   none
    ``peer_clean``   the masked image    the peer's clean image    clean unlabeled images, without gradient
    ===============  ==================  ========================  ==================================================

    Args:
        logits_a: Logits of student A ``(B, K, *spatial)``; receives gradient.
        logits_b: Logits of student B, same shape; receives gradient.
        pseudo_a: Hard labels of A, which B learns; see :func:`~nnunetv2_micd.losses.labels.pseudo_label`.
        pseudo_b: Hard labels of B, same shape, which A learns.
        weight_a: W_diff ``(K,)``, see :class:`~nnunetv2_micd.losses.class_weights.DifficultyWeights`; None for ones.
        weight_b: W_dist ``(K,)``, see :class:`~nnunetv2_micd.losses.class_weights.DistributionWeights`; None for ones.

    Returns:
        Scalar in nats.

    Examples:
        >>> from nnunetv2_micd.losses.labels import pseudo_label
        >>> masked_a = torch.tensor([[[3.0], [0.0]]], requires_grad=True)  # one voxel: A sees class 0,
        >>> masked_b = torch.tensor([[[0.0], [3.0]]], requires_grad=True)  # B sees class 1
        >>> loss = mcpc(masked_a, masked_b, pseudo_label(masked_a), pseudo_label(masked_b))
        >>> print(f"{loss:.4f}")
        6.0972
    """
    return cross_pseudo_supervision(logits_a, logits_b, pseudo_a, pseudo_b, weight_a, weight_b)


def cfc(features_a: Sequence[Tensor], features_b: Sequence[Tensor], stage_weights: Sequence[float]) -> Tensor:
    """Cross feature consistency, MICD's equation 4: the decoder features of two students agree.

    For each stage the symmetric divergence ``0.5 (KL(A || B) + KL(B || A))`` of the softmax over channels, summed over
    channels and averaged over batch and voxels; then the weighted sum over stages.

    Args:
        features_a: Decoder features of A, one tensor ``(B, C_k, *spatial_k)`` per stage, deepest first; receive
            gradient.
        features_b: Decoder features of B, the same shapes; receive gradient.
        stage_weights: One weight per stage, such as the last of :data:`CFC_STAGE_WEIGHTS`.

    Returns:
        Scalar in nats.

    Raises:
        ValueError: There is no stage, or the numbers of stages or the shapes of a stage differ.

    Examples:
        >>> features_a, features_b = [torch.zeros(1, 8, 4, 4)], [torch.ones(1, 8, 4, 4)]
        >>> cfc(features_a, features_b, CFC_STAGE_WEIGHTS[-1:])  # softmax ignores a constant
        tensor(0.)
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


def cmd(logits_a: Tensor, logits_b: Tensor, pseudo_teacher_a: Tensor, pseudo_teacher_b: Tensor) -> Tensor:
    """Cross model discrepancy, MICD's equation 5: each student follows its own teacher.

    ``CE(p_A(x^m), y^_A'(x)) + CE(p_B(x^m), y^_B'(x))``, mean over batch and voxels: the students see the masked image,
    the teachers the clean one. Despite its name no term pushes the outputs apart. The students stay different because
    each follows its own past.

    Args:
        logits_a: Logits of student A on the masked image ``(B, K, *spatial)``; receives gradient.
        logits_b: Logits of student B on the masked image, same shape; receives gradient.
        pseudo_teacher_a: Hard labels of A's teacher on the clean image, see
            :func:`~nnunetv2_micd.losses.labels.pseudo_label`.
        pseudo_teacher_b: Hard labels of B's teacher on the clean image.

    Returns:
        Scalar in nats.

    Examples:
        >>> logits = torch.zeros(1, 2, 3, requires_grad=True)
        >>> teacher = torch.tensor([[0, 1, 1]])
        >>> print(f"{cmd(logits, logits, teacher, teacher):.4f}")  # 2 ln 2
        1.3863
    """
    return _cross_entropy(logits_a, pseudo_teacher_a) + _cross_entropy(logits_b, pseudo_teacher_b)


def mean_teacher_consistency(student_logits: Tensor, teacher_logits: Tensor, regions: bool = False) -> Tensor:
    """Mean squared difference of the probabilities of student and teacher, over batch, classes and voxels.

    Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, section 3,
    https://arxiv.org/abs/1703.01780.

    Args:
        student_logits: Logits ``(B, K, *spatial)``; receives gradient.
        teacher_logits: Logits of the same shape; no gradient.
        regions: Treat the K channels as regions, which may overlap: sigmoid instead of softmax.

    Returns:
        Scalar between 0 and 1.

    Examples:
        >>> student = torch.zeros(1, 2, 4, requires_grad=True)  # 1/2 everywhere
        >>> teacher = torch.tensor([20.0, -20.0]).view(1, 2, 1).expand(1, 2, 4)  # class 0 everywhere
        >>> loss = mean_teacher_consistency(student, teacher)
        >>> print(f"{loss:.4f}")
        0.2500
    """
    with torch.no_grad():
        target = probabilities(teacher_logits, regions)
    return F.mse_loss(probabilities(student_logits, regions), target)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``mask`` is true; zero, still with a graph, where it is true nowhere.

    Args:
        values: ``(B, K, *spatial)``; receives gradient where the mask is true.
        mask: Bool of the same shape, or ``(B, 1, *spatial)`` to choose voxels.

    Returns:
        Scalar.

    Examples:
        >>> masked_mean(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[True, False, True]]]))
        tensor(2.)
    """
    chosen = mask.expand_as(values)
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp_min(1)


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    if target.ndim == logits.ndim:  # masks of regions
        return hard_binary_cross_entropy(logits, target, weight)
    return hard_cross_entropy(logits, target, weight)
