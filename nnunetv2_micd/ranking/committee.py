"""The networks that a training has left, which predict the same image and may disagree."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from nnunetv2_micd.training.checkpoints import KEY
from nnunetv2_micd.training.networks import build_peer
from nnunetv2_micd.utils.checkpoint_files import read_checkpoint

PREDICTION = "prediction"
"""Name of the network that ``nnUNetv2_predict`` uses."""

MIRRORED = "prediction of the mirror image"


@dataclass(frozen=True)
class Opinion:
    """What the committee says about an image.

    Attributes:
        logits: Logits ``(K, *spatial)`` of each member by its name, float32, on the CPU; the network that
            ``nnUNetv2_predict`` uses comes first.
        features: Mean of the deepest encoder features of the first network over the image, ``(C)``.
    """

    logits: dict[str, Tensor]
    features: Tensor


class Committee:
    """The networks in a checkpoint: the one that predicts, its student, and the second network.

    The checkpoint of a trainer of nnU-Net holds one network. It is asked twice: for the image and for its mirror image,
    if it was trained with mirroring.

    Args:
        model: Folder of the model.
        fold: Number of the fold, or ``"all"``.
        checkpoint_name: File name of the checkpoint.
        device: Device for the predictions.

    Attributes:
        predictor: nnU-Net's predictor of the first network.
        rival: Name of the member whose disagreement with the first counts most; None if there is no other.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint cannot be read, or holds networks that cannot be built.
    """

    def __init__(self, model: Path, fold: int | str, checkpoint_name: str, device: torch.device):
        # nnU-Net's own loader runs what is in a file, so the file has to pass this reader first.
        checkpoint = read_checkpoint(model / f"fold_{fold}" / checkpoint_name)
        self.predictor = nnUNetPredictor(
            device=device, use_mirroring=False, perform_everything_on_device=device.type == "cuda", allow_tqdm=False
        )
        self.predictor.initialize_from_trained_model_folder(str(model), (fold,), checkpoint_name)
        self._networks = {PREDICTION: self._build(checkpoint["network_weights"])}
        ours = checkpoint.get(KEY, {})
        if _is_network(student := ours.get("students", {}).get("a", {})):
            self._networks["student"] = self._build(student)
        if _is_network(second := ours.get("teachers", {}).get("b", {})):
            self._networks["second network"] = self._build(second)
        axes = self.predictor.allowed_mirroring_axes
        self._mirrored_axis = axes[0] if axes and len(self._networks) == 1 else None
        others = [*self._networks, MIRRORED] if self._mirrored_axis is not None else list(self._networks)
        self.rival = others[-1] if len(others) > 1 else None

    def _build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the network of some weights: that of the plans, or the other architecture of MICD's second one."""
        network = self.predictor.network
        if weights.keys() != network.state_dict().keys():
            plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
            channels = determine_num_input_channels(plans, configuration, self.predictor.dataset_json)
            network = build_peer(configuration, channels, self.predictor.label_manager.num_segmentation_heads, False)
        else:
            network = _copy(network)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"A network in the checkpoint is not of these plans ({error}); train it again") from None
        return network

    def ask(self, image: Tensor) -> Opinion:
        """Predict a preprocessed image ``(channels, *spatial)`` with each member, in nnU-Net's sliding window."""
        logits: dict[str, Tensor] = {}
        with _Features(self._networks[PREDICTION]) as features:
            logits[PREDICTION] = self._predict(PREDICTION, image)
        for name in self._networks:
            if name not in logits:
                logits[name] = self._predict(name, image)
        if self._mirrored_axis is not None:
            # A 2D network is mirrored within the slice: the image has one axis more than the network knows of.
            axis = self._mirrored_axis + image.ndim - len(self.predictor.configuration_manager.patch_size)
            mirrored = self._predict(PREDICTION, image.flip(axis))
            logits[MIRRORED] = mirrored.flip(axis)
        return Opinion(logits, features.mean())

    def _predict(self, name: str, image: Tensor) -> Tensor:
        self.predictor.network = self._networks[name]
        return self.predictor.predict_sliding_window_return_logits(image).float().cpu()


class _Features:
    """Collects the deepest encoder features of all windows that a network predicts within the block."""

    def __init__(self, network: Any):
        self._encoder = network.encoder
        self._sum: Any = 0
        self._windows = 0

    def __enter__(self) -> "_Features":
        self._hook = self._encoder.register_forward_hook(self._collect)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _collect(self, module: nn.Module, inputs: Any, skips: list[Tensor]) -> None:
        self._sum = self._sum + skips[-1].float().flatten(2).mean(2).sum(0).cpu()
        self._windows += len(skips[-1])

    def mean(self) -> Tensor:
        return self._sum / self._windows


def _is_network(weights: Mapping[str, Tensor]) -> bool:
    """Return True for the weights of a U-Net of the plans, and False for those of a projector, or for none."""
    return any(name.startswith("encoder.") for name in weights)


def _copy(network: Any) -> nn.Module:
    # nnU-Net may have compiled the network, whose copy would share the compiled code with the original.
    return deepcopy(getattr(network, "_orig_mod", network))
