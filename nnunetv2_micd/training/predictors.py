"""nnU-Net's sliding window prediction, with a network of a training that is going on."""

from typing import Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn


def predictor_of(trainer: Any, network: nn.Module) -> nnUNetPredictor:
    """Return a predictor of preprocessed images, as nnU-Net's final validation has it.

    Args:
        trainer: that of the network.
        network: the network itself, not a copy; deep supervision off.
    """
    predictor = nnUNetPredictor(
        device=trainer.device, perform_everything_on_device=trainer.device.type == "cuda", allow_tqdm=False
    )
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor
