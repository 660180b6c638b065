"""Hard labels: indices ``(B, *spatial)``, int16, of classes, and masks ``(B, K, *spatial)``, bool, of regions."""

import torch
from torch import Tensor


def pseudo_label(logits: Tensor, regions: bool = False) -> Tensor:
    """Hard pseudo-labels, without gradient: the most probable class, or the regions more probable than not.

    Args:
        logits: ``(B, K, *spatial)``.
        regions: whether the classes are regions, which may overlap.

    Returns:
        Class indices ``(B, *spatial)``, int16; of regions masks ``(B, K, *spatial)``, bool.
    """
    # argmax does the same, but takes two to eight times as long on a CPU.
    return logits > 0 if regions else logits.max(dim=1).indices.to(torch.int16)


def hard_target(target: Tensor, regions: bool, ignore_label: int | None) -> tuple[Tensor, Tensor | None]:
    """Bring nnU-Net's training target into the form of pseudo-labels.

    Args:
        target: ``(B, 1, *spatial)``, or with regions ``(B, K, *spatial)`` and one more channel for an ignore label.
        regions: whether the classes are regions, which may overlap.
        ignore_label: the label of voxels that nobody annotated, or None.

    Returns:
        The hard labels, and ``(B, *spatial)``, bool: the ignored voxels; None where there is no such label.
    """
    if regions:
        return (target.bool(), None) if ignore_label is None else (target[:, :-1].bool(), target[:, -1].bool())
    labels = target[:, 0]
    return labels, (None if ignore_label is None else labels == ignore_label)


def foreground_share(labels: Tensor) -> Tensor:
    """Return the share of voxels that are foreground of any kind, a scalar."""
    return (labels.any(1) if labels.dtype == torch.bool else labels > 0).float().mean()


def differing(labels: Tensor, others: Tensor) -> Tensor:
    """Return ``(B, *spatial)``, bool: the voxels whose hard labels are not the same."""
    different = labels != others
    return different.any(1) if labels.dtype == torch.bool else different


def label_map(labels: Tensor) -> Tensor:
    """Return one integer per voxel for a picture: the class, or how many regions lie there."""
    return labels.sum(1) if labels.dtype == torch.bool else labels
