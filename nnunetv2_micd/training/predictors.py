"""nnU-Net's sliding window prediction with a network that is still in training."""

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunetv2_micd.training.protocols import TrainerLike


def predictor_of(trainer: TrainerLike, network: nn.Module) -> nnUNetPredictor:
    """Return a predictor of preprocessed images, set up as in nnU-Net's final validation.

    Args:
        trainer: Trainer of the network.
        network: The network itself, not a copy; deep supervision off.
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
