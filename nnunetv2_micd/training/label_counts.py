"""Number of voxels of each class in the labeled cases."""

from typing import Any

import torch
from torch import Tensor


def count_labels(cases: Any, label_manager: Any) -> tuple[Tensor, Tensor | None]:
    """Count the voxels of each class, or region, over all labeled cases. Ignored voxels do not count.

    Args:
        cases: nnU-Net's dataset of the labeled cases.
        label_manager: nnU-Net's label manager of the data set.

    Returns:
        Number of voxels of each output channel of the network ``(K,)``, int64, and, of regions, the number of all
        voxels, in a region or not; None of classes.
    """
    # One entry more than there are labels: the ignore label, if there is one, is the highest label plus one.
    counts = torch.zeros(max(label_manager.all_labels) + 2, dtype=torch.int64)
    for identifier in cases.identifiers:
        _, segmentation, _, _ = cases.load_case(identifier)
        labels = torch.from_numpy(segmentation[:]).flatten().long()
        # -1 lies outside of the nonzero mask, which nnU-Net trains as background.
        counts += torch.bincount(labels.clamp_min(0), minlength=len(counts))
    if not label_manager.has_regions:
        return counts[torch.as_tensor(label_manager.all_labels)], None
    of_regions = [counts[torch.as_tensor(labels)].sum() for labels in label_manager.foreground_regions]
    return torch.stack(of_regions), counts[torch.as_tensor(label_manager.all_labels)].sum()
