"""Turns what a committee says about an image into a row of the table and a slice for a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_micd.data.dataset import has_colors
from nnunetv2_micd.ranking.committee import PREDICTION, Committee, Opinion
from nnunetv2_micd.ranking.uncertainty import disagreement, entropy, mean_entropy, mean_of_classes
from nnunetv2_micd.utils.figures import to_picture


@dataclass(frozen=True)
class DisputedSlice:
    """The slice of an image in which most is uncertain.

    Attributes:
        case: Name of the image.
        image: First channel ``(rows, columns)``, or the colors ``(rows, columns, 3)``.
        labels: Label maps ``(rows, columns)`` of the prediction and, if there is one, of its rival, by name.
        dispute: What is uncertain, from 0 to 1: 1 where prediction and rival differ, or else the entropy.
        aspect: Height of a pixel relative to its width.
        position: Number of the slice, from 1, and the number of slices.
    """

    case: str
    image: np.ndarray
    labels: dict[str, np.ndarray]
    dispute: np.ndarray
    aspect: float
    position: tuple[int, int]


class Assessor:
    """Measures the uncertainty of images.

    Args:
        committee: The networks.

    Attributes:
        classes: Labels of each foreground class or region by its name.
    """

    def __init__(self, committee: Committee):
        self.committee = committee
        self._manager = committee.predictor.label_manager
        labels: Mapping[str, Any] = committee.predictor.dataset_json["labels"]
        self._has_colors = has_colors(committee.predictor.plans_manager, committee.predictor.dataset_json)
        self.classes = {
            name: tuple(value) if isinstance(value, (list, tuple)) else (value,)
            for name, value in labels.items()
            if name not in ("background", "ignore")
        }

    @property
    def measure(self) -> str:
        """What the uncertainty of an image is, in words."""
        if self.committee.rival is None:
            return "entropy of the prediction"
        return f"disagreement of the prediction and the {self.committee.rival}"

    def row(self, case: str, opinion: Opinion) -> dict[str, Any]:
        """Return the figures of an image, all from 0 (sure) to 1."""
        maps = self._label_maps(opinion)
        probabilities = self._manager.apply_inference_nonlin(opinion.logits[PREDICTION])
        of_prediction = mean_entropy(probabilities, self._manager.has_regions)
        masks = {name: self._masks(labels) for name, labels in maps.items()}
        by_member = {name: disagreement(masks[PREDICTION], masks[name]) for name in maps if name != PREDICTION}
        rival = self.committee.rival
        return {
            "case": case,
            "uncertainty": of_prediction if rival is None else mean_of_classes(by_member[rival]),
            "entropy": of_prediction,
            **{f"disagreement with {name}": mean_of_classes(values) for name, values in by_member.items()},
            **(dict(zip(self.classes, by_member[rival], strict=True)) if rival is not None else {}),
        }

    def most_disputed_slice(self, case: str, image: Tensor, opinion: Opinion) -> DisputedSlice:
        """Return the slice with most dispute, across the widest spacing.

        Args:
            case: Name of the image.
            image: Preprocessed image ``(channels, *spatial)``.
            opinion: What the committee says about it.
        """
        maps = self._label_maps(opinion)
        shown = {PREDICTION: maps[PREDICTION]}
        if self.committee.rival is None:
            probabilities = self._manager.apply_inference_nonlin(opinion.logits[PREDICTION])
            dispute = entropy(probabilities, self._manager.has_regions)
        else:
            shown[self.committee.rival] = maps[self.committee.rival]
            dispute = (maps[PREDICTION] != maps[self.committee.rival]).float()
        spacing = list(self.committee.predictor.configuration_manager.spacing)
        across = 0 if len(spacing) == 2 else int(np.argmax(spacing))
        height, width = spacing if len(spacing) == 2 else (spacing[axis] for axis in range(3) if axis != across)
        volume = dispute.sum(dim=[axis for axis in range(3) if axis != across])
        position = int(volume.argmax())
        return DisputedSlice(
            case,
            to_picture(image.select(1 + across, position).numpy(), self._has_colors),
            {name: labels.select(across, position).numpy() for name, labels in shown.items()},
            dispute.select(across, position).numpy(),
            height / width,
            (position + 1, len(volume)),
        )

    def _label_maps(self, opinion: Opinion) -> dict[str, Tensor]:
        return {
            name: torch.as_tensor(self._manager.convert_logits_to_segmentation(logits))
            for name, logits in opinion.logits.items()
        }

    def _masks(self, labels: Tensor) -> Tensor:
        return torch.stack([torch.isin(labels, torch.tensor(values)) for values in self.classes.values()])
