"""The networks that a training has left: the one that predicts and, for methods with two, the other."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from nnunetv2_micd.training.registry import find_trainer
from nnunetv2_micd.utils.checkpoint_files import read_checkpoint


@dataclass(frozen=True)
class Opinion:
    """What the networks say about an image.

    Attributes:
        logits: Logits ``(K, *spatial)`` of the network that ``nnUNetv2_predict`` uses, float32, on the CPU.
        others: The same of the second network; None if there is none.
        features: Mean of the deepest encoder features of the first network over the image, ``(C)``.
    """

    logits: Tensor
    others: Tensor | None
    features: Tensor


class Committee:
    """The networks in a checkpoint.

    Args:
        model: Folder of the model.
        fold: Number of the fold, or ``"all"``.
        checkpoint_name: File name of the checkpoint.
        device: Device for the predictions.

    Attributes:
        predictor: nnU-Net's predictor of the first network.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint cannot be read, its trainer is not found, or it holds a network that cannot be built.
    """

    def __init__(self, model: Path, fold: int | str, checkpoint_name: str, device: torch.device):
        # nnU-Net's own loader runs what is in a file, so the file has to pass this reader first.
        checkpoint = read_checkpoint(model / f"fold_{fold}" / checkpoint_name)
        self.predictor = nnUNetPredictor(
            device=device, use_mirroring=False, perform_everything_on_device=device.type == "cuda", allow_tqdm=False
        )
        find_trainer(checkpoint["trainer_name"])  # whose errors say what to do, unlike nnU-Net's in the next line
        with _fitting():
            self.predictor.initialize_from_trained_model_folder(str(model), (fold,), checkpoint_name)
        self._first = self._build(checkpoint["network_weights"])
        second = checkpoint.get(KEY, {}).get("teachers", {}).get("b", {})
        # Some methods train a projector beside the network instead, which does not predict.
        predicts = any(name.startswith("encoder.") for name in second)
        self._second = self._build(second) if predicts else None

    def _build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the network of some weights: that of the plans, or the other architecture of MICD's second one."""
        # nnU-Net may have compiled the network, whose copy would share the compiled code with the original.
        network = deepcopy(getattr(self.predictor.network, "_orig_mod", self.predictor.network))
        if weights.keys() != network.state_dict().keys():
            plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
            channels = determine_num_input_channels(plans, configuration, self.predictor.dataset_json)
            network = build_peer(configuration, channels, self.predictor.label_manager.num_segmentation_heads, False)
        with _fitting():
            network.load_state_dict(weights)
        return network

    def ask(self, image: Tensor) -> Opinion:
        """Predict a preprocessed image ``(channels, *spatial)`` with each network, in nnU-Net's sliding window."""
        with _Features(self._first) as features:
            logits = self._predict(self._first, image)
        return Opinion(logits, None if self._second is None else self._predict(self._second, image), features.mean())

    def _predict(self, network: nn.Module, image: Tensor) -> Tensor:
        self.predictor.network = network
        return self.predictor.predict_sliding_window_return_logits(image).float().cpu()


@contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as PyTorch reports weights of other names or shapes
        reason = " ".join(str(error).split())
        raise ValueError(f"A network in the checkpoint does not fit the plans ({reason}); train it again") from None


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
