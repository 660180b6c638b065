"""The filter of ERSR: scores the shapes of the teacher's outputs, and tells which of them are regular enough."""

from collections.abc import Collection, Sequence
from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def irregularity(probability: Tensor) -> Tensor:
    """Score outputs by their shape: ``0.5 mean|Sobel(p)| + 0.5 mean|Laplacian(d)|``; the less, the more regular.

    d is the Euclidean distance of a voxel to the foreground, ``p > 0.5``. The mean is over the voxels that have all
    neighbors. The Sobel filter has weights of 1/8, 2/8 and 1/8.

    Args:
        probability: Probability of the foreground ``(B, 1, rows, columns)``, float32, on the CPU.

    Returns:
        Scores ``(B,)``; infinite where there is no foreground, which has no shape.
    """
    foreground = (probability > 0.5).numpy()
    distance = torch.from_numpy(np.stack([distance_transform_edt(~one[0]) for one in foreground]))[:, None].float()
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 8
    laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    # Of a large distance, half precision would leave rounding errors only.
    with torch.autocast("cpu", enabled=False):
        edges = F.conv2d(probability, torch.stack((across, across.T))[:, None]).norm(dim=1)
        ridges = F.conv2d(distance, laplacian[None, None]).abs()
    scores = (edges.mean((1, 2)) + ridges.mean((1, 2, 3))) / 2
    return torch.where(torch.from_numpy(foreground.any((1, 2, 3))), scores, inf)


def most_regular(scores: Sequence[float], seen: Collection[float], share: float, at_least: int) -> list[bool]:
    """Return which outputs of a batch are kept: those among the best share of all that were seen.

    Args:
        scores: Score of each output, see :func:`irregularity`.
        seen: All scores, with these.
        share: Share of them that are good enough.
        at_least: Number of outputs that are kept in any case, the best ones.

    Examples:
        >>> most_regular([5.0, 1.0], seen=[1.0, 2.0, 3.0, 5.0], share=0.5, at_least=1)
        [False, True]
    """
    good = sorted(seen)[: int(share * len(seen))]
    number = max(at_least, sum(score <= good[-1] for score in scores) if good else 0)
    best = sorted(range(len(scores)), key=scores.__getitem__)[:number]
    return [place in best for place in range(len(scores))]
