"""Type of the trainer for the functions beside it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


class TrainerLike(Protocol):
    """Members of the trainer that functions beside it use: its settings, its augmentation and its log.

    mypy does not read nnU-Net's classes and would accept any member of a trainer; it accepts only these. All are
    nnU-Net's, except ``unlabeled_batch_size``, ``masked_channels``, ``has_weak_views`` and ``autocast``.
    """

    device: torch.device
    fold: int | str
    configuration_name: str
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    label_manager: LabelManager
    dataset_json: dict[str, Any]
    is_cascaded: bool
    inference_allowed_mirroring_axes: tuple[int, ...] | None
    oversample_foreground_percent: float
    probabilistic_oversampling: bool
    output_folder_base: str
    preprocessed_dataset_folder: str
    preprocessed_dataset_folder_base: str
    folder_with_segs_from_previous_stage: str | None
    has_weak_views: bool

    @property
    def unlabeled_batch_size(self) -> int:
        """Number of unlabeled patches in a step."""

    @property
    def masked_channels(self) -> list[int]:
        """The channels that are zero outside of the nonzero mask."""

    def autocast(self) -> AbstractContextManager:
        """Return the context of mixed precision."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[Any, bool, Sequence[int], tuple[int, ...] | None]:
        """Return the range of rotations, whether slices are augmented by themselves, patch size and mirrored axes."""

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return the training augmentation."""

    def _get_deep_supervision_scales(self) -> list[list[float]] | None: ...

    def print_to_log_file(self, *args: Any) -> None:
        """Write a line to the log of the training."""
