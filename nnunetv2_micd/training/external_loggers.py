"""Reports a training to the loggers that nnU-Net has beside its own file: Weights & Biases, where it is switched on."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.training.logging import nnunet_logger

GROUP = "semi_supervised"
"""Prefix of all names, so that they do not meet nnU-Net's own."""


def log_figures(loggers: Sequence[Any], figures: Mapping[str, float], epoch: int) -> None:
    """Report the figures of an epoch, the columns of ``semi_supervised.csv``."""
    for logger in loggers:
        for name, value in figures.items():
            logger.log(f"{GROUP}/{name}", value, epoch)


def log_picture(loggers: Sequence[Any], path: str, epoch: int) -> None:
    """Report the picture of unlabeled patches to those that take pictures."""
    for logger in loggers:
        if isinstance(logger, nnunet_logger.WandbLogger):
            # nnU-Net has imported the package, or there would be no such logger.
            logger.log(f"{GROUP}/unlabeled_patches", nnunet_logger.wandb.Image(path), epoch)
