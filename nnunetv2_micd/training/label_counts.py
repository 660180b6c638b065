"""Number of voxels of each class in the labeled cases."""

from typing import Any

import torch
from torch import Tensor


def count_labels(cases: Any, label_manager: Any) -> Tensor:
    """Count the voxels of each class, or region, over all labeled cases. Ignored voxels do not count.

    Args:
        cases: nnU-Net's dataset of the labeled cases.
        label_manager: nnU-Net's label manager of the data set.

    Returns:
        Number of voxels of each output channel of the network ``(K,)``, int64.
    """
    # One entry more than there are labels: the ignore label, if there is one, is the highest label plus one.
    counts = torch.zeros(max(label_manager.all_labels) + 2, dtype=torch.int64)
    for identifier in cases.identifiers:
        _, segmentation, _, _ = cases.load_case(identifier)
        labels = torch.from_numpy(segmentation[:]).flatten().long()
        counts += torch.bincount(labels[labels >= 0], minlength=len(counts))  # -1 lies outside the image
    classes = label_manager.foreground_regions if label_manager.has_regions else label_manager.all_labels
    return torch.stack([counts[torch.as_tensor(labels)].sum() for labels in classes])
