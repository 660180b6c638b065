"""Probabilities and hard labels from logits.

A hard label is either a class or a set of regions:

- Classes exclude each other. Their hard labels are indices ``(B, *spatial)``, integers.
- Regions may overlap. Their hard labels are masks ``(B, K, *spatial)``, bool.

The functions of this package tell the two apart by the dtype or the shape of the labels.
"""

import torch
from torch import Tensor

from nnunetv2_micd.utils.distributed import sum_over_processes


def probabilities(logits: Tensor, regions: bool = False) -> Tensor:
    """Return the probabilities of classes (softmax) or regions (sigmoid).

    Args:
        logits: Logits ``(B, K, *spatial)``.
        regions: Treat the K channels as regions, which may overlap.

    Returns:
        Probabilities ``(B, K, *spatial)``, float32.

    Examples:
        >>> probabilities(torch.zeros(1, 4, 1)).flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        >>> probabilities(torch.zeros(1, 4, 1), regions=True).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    return logits.float().sigmoid() if regions else logits.softmax(dim=1, dtype=torch.float32)


def pseudo_label(logits: Tensor, regions: bool = False) -> Tensor:
    """Return hard pseudo-labels: the most probable class, or every region more probable than not.

    No gradient flows back to the logits.

    Args:
        logits: Logits ``(B, K, *spatial)``.
        regions: Treat the K channels as regions, which may overlap.

    Returns:
        Class indices ``(B, *spatial)``, int16, or region masks ``(B, K, *spatial)``, bool.

    Examples:
        >>> logits = torch.tensor([[[2.0, -1.0], [1.0, 3.0]]])  # two classes, two voxels
        >>> pseudo_label(logits)
        tensor([[0, 1]], dtype=torch.int16)
        >>> pseudo_label(logits, regions=True)
        tensor([[[ True, False],
                 [ True,  True]]])
    """
    # argmax gives the same result, but takes two to eight times as long on a CPU.
    return logits > 0 if regions else logits.max(dim=1).indices.to(torch.int16)


def hard_target(target: Tensor, regions: bool, ignore_label: int | None) -> tuple[Tensor, Tensor | None]:
    """Convert nnU-Net's training target to hard labels.

    Args:
        target: Target ``(B, 1, *spatial)``. With regions ``(B, K, *spatial)``, and one more channel if there is an
            ignore label.
        regions: Treat the channels as regions, which may overlap.
        ignore_label: Label of the voxels that nobody annotated; None if the data set has none.

    Returns:
        The hard labels, and the ignored voxels ``(B, *spatial)``, bool, or None without an ignore label.

    Examples:
        >>> labels, ignored = hard_target(torch.tensor([[[0, 1, 2]]]), regions=False, ignore_label=2)
        >>> labels, ignored
        (tensor([[0, 1, 2]]), tensor([[False, False,  True]]))
    """
    if regions:
        return (target.bool(), None) if ignore_label is None else (target[:, :-1].bool(), target[:, -1].bool())
    labels = target[:, 0]
    return labels, (None if ignore_label is None else labels == ignore_label)


def class_masks(labels: Tensor, num_classes: int) -> Tensor:
    """Return one mask per class or region.

    Args:
        labels: Hard labels. An index outside ``0 ... K - 1`` is in no mask.
        num_classes: Number of classes K.

    Returns:
        Zeros and ones ``(B, K, *spatial)``, float32.

    Examples:
        >>> class_masks(torch.tensor([[0, 1, 5]]), num_classes=2)
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """
    if labels.dtype == torch.bool:
        return labels.float()
    # torch.nn.functional.one_hot would wait for the device to check the labels.
    return torch.stack([labels == k for k in range(num_classes)], 1).float()


def count_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Count the voxels of each class or region, over the batch and over all training processes.

    Args:
        labels: Hard labels. An index outside ``0 ... K - 1`` is not counted.
        num_classes: Number of classes K.

    Returns:
        Numbers of voxels ``(K,)``, int64.

    Examples:
        >>> count_classes(torch.tensor([[0, 1, 1, 5]]), num_classes=3)
        tensor([1, 2, 0])
    """
    if labels.dtype == torch.bool:
        return sum_over_processes(labels.transpose(0, 1).flatten(1).sum(1))
    # torch.bincount would wait for the device to find the largest label.
    return sum_over_processes(torch.stack([(labels == k).sum() for k in range(num_classes)]))


def foreground_share(labels: Tensor) -> Tensor:
    """Return the share of voxels that belong to any foreground class or to any region, as a scalar.

    Examples:
        >>> foreground_share(torch.tensor([[0, 1, 2, 2]]))
        tensor(0.7500)
    """
    return (labels.any(1) if labels.dtype == torch.bool else labels > 0).float().mean()


def differing(labels: Tensor, others: Tensor) -> Tensor:
    """Return the voxels whose hard labels differ.

    Args:
        labels: Hard labels.
        others: Hard labels of the same shape.

    Returns:
        ``(B, *spatial)``, bool. Two sets of regions differ if any region does.

    Examples:
        >>> differing(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 2]]))
        tensor([[False,  True, False]])
    """
    different = labels != others
    return different.any(1) if labels.dtype == torch.bool else different


def label_map(labels: Tensor) -> Tensor:
    """Return one integer per voxel for a picture: the class, or the number of regions at the voxel.

    Examples:
        >>> label_map(torch.tensor([[[True, False], [True, True]]]))
        tensor([[2, 1]])
    """
    return labels.sum(1) if labels.dtype == torch.bool else labels
