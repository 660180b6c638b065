"""Turns what the networks say about an image into a row of the table and a slice for a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_micd.data.dataset import has_colors
from nnunetv2_micd.ranking.committee import Committee, Opinion
from nnunetv2_micd.ranking.uncertainty import disagreement, entropy, entropy_by_class, mean_entropy
from nnunetv2_micd.utils.figures import to_picture


@dataclass(frozen=True)
class DisputedSlice:
    """The slice of an image with most uncertainty.

    Attributes:
        case: Name of the image.
        image: First channel ``(rows, columns)``, or the colors ``(rows, columns, 3)``.
        labels: Label maps ``(rows, columns)`` of the networks by name.
        uncertainty: Entropy, from 0 to 1.
        aspect: Height of a pixel relative to its width.
        position: Number of the slice, from 1, and the number of slices.
    """

    case: str
    image: np.ndarray
    labels: dict[str, np.ndarray]
    uncertainty: np.ndarray
    aspect: float
    position: tuple[int, int]


class Assessor:
    """Measures the uncertainty of images.

    Args:
        committee: The networks.
    """

    def __init__(self, committee: Committee):
        self.committee = committee
        self._manager = committee.predictor.label_manager
        self._spacing = committee.predictor.configuration_manager.spacing
        labels: Mapping[str, Any] = committee.predictor.dataset_json["labels"]
        self._has_colors = has_colors(committee.predictor.plans_manager, committee.predictor.dataset_json)
        classes = {name: value for name, value in labels.items() if name not in ("background", "ignore")}
        # nnU-Net's networks give classes in the order of their labels, and regions in that of the file.
        names = classes if self._manager.has_regions else sorted(classes, key=lambda name: classes[name])
        self._classes = {name: torch.tensor(classes[name]).flatten() for name in names}

    def row(self, case: str, opinion: Opinion) -> dict[str, Any]:
        """Return the figures of an image, all from 0 (sure) to 1."""
        probabilities, has_regions = self._probabilities(opinion.logits), self._manager.has_regions
        row: dict[str, Any] = {"case": case, "uncertainty": mean_entropy(probabilities, has_regions)}
        row |= zip(self._classes, entropy_by_class(probabilities, has_regions), strict=True)
        if opinion.others is not None:
            row["disagreement of both networks"] = disagreement(
                *(self._masks(self._label_map(logits)) for logits in (opinion.logits, opinion.others))
            )
        return row

    def most_disputed_slice(self, case: str, image: Tensor, opinion: Opinion) -> DisputedSlice:
        """Return the slice with most uncertainty, across the widest spacing.

        Args:
            case: Name of the image.
            image: Preprocessed image ``(channels, *spatial)``.
            opinion: What the networks say about it.
        """
        maps = {"prediction": self._label_map(opinion.logits)}
        if opinion.others is not None:
            maps["second network"] = self._label_map(opinion.others)
        uncertainty = entropy(self._probabilities(opinion.logits), self._manager.has_regions)
        is_2d = len(self._spacing) == 2  # then each slice of a volume is an image of its own
        across = 0 if is_2d else int(np.argmax(self._spacing))
        height, width = self._spacing if is_2d else (self._spacing[axis] for axis in range(3) if axis != across)
        by_slice = uncertainty.sum(dim=[axis for axis in range(3) if axis != across])
        position = int(by_slice.argmax())
        return DisputedSlice(
            case,
            to_picture(image.select(1 + across, position).numpy(), self._has_colors),
            {name: labels.select(across, position).numpy() for name, labels in maps.items()},
            uncertainty.select(across, position).numpy(),
            height / width,
            (position + 1, len(by_slice)),
        )

    def _probabilities(self, logits: Tensor) -> Tensor:
        return torch.as_tensor(self._manager.apply_inference_nonlin(logits))

    def _label_map(self, logits: Tensor) -> Tensor:
        return torch.as_tensor(self._manager.convert_logits_to_segmentation(logits))

    def _masks(self, labels: Tensor) -> Tensor:
        return torch.stack([torch.isin(labels, values) for values in self._classes.values()])
