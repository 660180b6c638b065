"""Chooses images that are uncertain and unlike each other."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor


def choose(
    uncertainty: Sequence[float],
    features: Tensor,
    number: int,
    groups: Sequence[str],
    labeled_groups: Collection[str] = (),
) -> list[int]:
    """Choose images one by one: each has the largest product of uncertainty and distance to those chosen before.

    Uncertainty alone would choose the same kind of image again and again, distance alone outliers. Images of a group,
    such as those of a patient, are much alike, so at most one of each is chosen, and none of a group that has labels,
    while there are other groups.

    Args:
        uncertainty: One figure for each image, the larger the less certain.
        features: ``(images, C)``. Each is scaled to a variance of one, so that none outweighs the others.
        number: Number of images to choose, at most as many as there are.
        groups: Name of the group of each image.
        labeled_groups: Groups of the images that have labels.

    Returns:
        Indices of the chosen images, in the order of choice.

    Examples:
        >>> choose([0.9, 0.8, 0.1], torch.tensor([[0.0], [0.0], [1.0]]), 2, ["a", "b", "c"])
        [0, 2]
    """
    weights = torch.tensor(uncertainty, dtype=torch.float64).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0).clamp(min=1e-12)
    chosen: list[int] = []
    distances = torch.ones(len(weights), dtype=torch.float64)
    free = _free(chosen, groups, labeled_groups)
    while len(chosen) < min(number, len(weights)):
        scores = torch.where(torch.tensor([index in free for index in range(len(weights))]), weights * distances, -1.0)
        chosen.append(int(scores.argmax()))
        to_last = torch.linalg.vector_norm(scaled - scaled[chosen[-1]], dim=1)
        distances = to_last if len(chosen) == 1 else torch.minimum(distances, to_last)
        free = _free(chosen, groups, labeled_groups)
    return chosen


def _free(chosen: Sequence[int], groups: Sequence[str], labeled_groups: Collection[str]) -> set[int]:
    """Return the images that may be chosen next: those of new groups, or all others if there are no new groups."""
    taken = {*labeled_groups, *(groups[index] for index in chosen)}
    of_new_groups = {index for index, group in enumerate(groups) if group not in taken}
    return of_new_groups or set(range(len(groups))) - set(chosen)


def groups_of(cases: Iterable[str], groups: Mapping[str, str]) -> list[str]:
    """Return the group of each case; a case without one is a group of its own."""
    return [groups.get(case, case) for case in cases]
