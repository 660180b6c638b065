"""Trainers of seconds for the tests of nnU-Net's commands, found as a user's own ones are."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)

from nnunetv2_micd.methods.controls import nnUNetTrainerEMA
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD


class nnUNetTrainer_short(nnUNetTrainer):
    """Three epochs of two steps; saves after each.

    In the second it kills itself at ``KILL_IN``, and waits for as long as there is a file ``HOLD``.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        torch.set_num_threads(1)  # nnU-Net takes all cores; sums over threads would differ between runs
        torch.manual_seed(0)
        np.random.seed(0)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 3, 2, 1
        self.save_every = 1

    def _kill_in(self, place: str) -> None:
        if os.environ.get("KILL_IN") == place and self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch)
        self._kill_in("step")
        while self.current_epoch == 1 and os.path.exists(os.environ.get("HOLD", "")):
            time.sleep(0.1)
        return result

    def validation_step(self, batch: dict) -> dict:
        self._kill_in("validation")
        return super().validation_step(batch)

    def save_checkpoint(self, filename: Any) -> None:
        if isinstance(filename, str) and os.environ.get("KILL_IN") == "checkpoint" and self.current_epoch == 1:
            Path(filename + ".tmp").write_bytes(b"half of a checkpoint")
            self._kill_in("checkpoint")
        super().save_checkpoint(filename)


class nnUNetTrainerMICD_short(nnUNetTrainer_short, nnUNetTrainerMICD):
    """MICD."""


class nnUNetTrainerMICD_shortNoDeepSupervision(nnUNetTrainer_short, nnUNetTrainerNoDeepSupervision, nnUNetTrainerMICD):
    """MICD without deep supervision."""


class nnUNetTrainerMeanTeacher_short(nnUNetTrainer_short, nnUNetTrainerMeanTeacher):
    """Mean Teacher."""


class nnUNetTrainerEMA_short(nnUNetTrainer_short, nnUNetTrainerEMA):
    """The control with nothing but the moving average: unlike nnU-Net's own trainer it continues exactly."""
