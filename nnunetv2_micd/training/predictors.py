"""nnU-Net's sliding window prediction with a network that is still in training."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor, nn

from nnunetv2_micd.training.loader import UnlabeledImages
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


@torch.no_grad()
def predict_in_batches(
    trainer: TrainerLike, network: nn.Module, images: UnlabeledImages, cases: Iterable[str], batch_size: int
) -> Iterator[tuple[str, Tensor]]:
    """Predict preprocessed images with nnU-Net's sliding window, without mirroring and several windows at a time.

    nnU-Net's own prediction, of one window at a time and eight times mirrored, takes longer than a short training when
    it is used for all unlabeled images. A batch holds windows of several images where these have few.

    Args:
        trainer: Trainer of the network.
        network: The network itself, not a copy; deep supervision off.
        images: Preprocessed images.
        cases: Identifiers of the images to predict.
        batch_size: Number of windows at a time.

    Yields:
        Identifier and logits ``(K, *spatial)``, float32, in the order of the cases; on a GPU of the trainer if that has
        four times the memory, otherwise on the CPU.
    """
    predictor = predictor_of(trainer, network)
    network.eval()
    patch_size = tuple(trainer.configuration_manager.patch_size)
    gaussian = compute_gaussian(patch_size, 1 / 8, 10, device=trainer.device).float()
    unfinished: list[_Canvas] = []
    windows: list[tuple[_Canvas, Any]] = []

    def run() -> Iterator[tuple[str, Tensor]]:
        batch = torch.stack([canvas.image[window] for canvas, window in windows]).to(trainer.device)
        with trainer.autocast():
            logits = network(batch).float() * gaussian
        for (canvas, window), of_window in zip(windows, logits, strict=True):
            canvas.add(of_window, gaussian, window)
        windows.clear()
        while unfinished and not unfinished[0].windows_left:
            yield unfinished[0].case, unfinished.pop(0).mean()

    for case in cases:
        image, inside = pad_nd_image(
            load_with_previous_stage(trainer, images, case), patch_size, "constant", {"value": 0}, True, None
        )
        slicers = predictor._internal_get_sliding_window_slicers(image.shape[1:])
        heads = trainer.label_manager.num_segmentation_heads
        unfinished.append(_Canvas(case, image, inside, heads, len(slicers), trainer.device))
        for window in slicers:
            windows.append((unfinished[-1], window))
            if len(windows) == batch_size:
                yield from run()
    if windows:
        yield from run()


class _Canvas:
    """The weighted mean of the logits of an image's windows."""

    def __init__(self, case: str, image: Tensor, inside: Any, heads: int, windows_left: int, device: torch.device):
        self.case, self.image, self.windows_left = case, image, windows_left
        self._inside = (slice(None), *inside[1:])  # the part that is not padding
        sums = torch.empty(1 + heads, *image.shape[1:], device="meta")
        self._sums = torch.zeros_like(sums, device=place_for(4 * sums.nbytes, device))

    def add(self, weighted_logits: Tensor, weights: Tensor, window: Any) -> None:
        self._sums[0][window[1:]] += weights.to(self._sums.device)
        self._sums[1:][window] += weighted_logits.to(self._sums.device)
        self.windows_left -= 1

    def mean(self) -> Tensor:
        weights, logits = self._sums[0], self._sums[1:]
        return logits.div_(weights)[self._inside]


def place_for(num_bytes: int, device: torch.device) -> torch.device:
    """Return the device if it is a GPU that has so much memory left, otherwise the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    left = torch.cuda.mem_get_info(device)[0]  # and what PyTorch holds without using it
    left += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return device if num_bytes <= left else torch.device("cpu")


def load_with_previous_stage(trainer: TrainerLike, images: UnlabeledImages, case: str) -> Tensor:
    """Return an image with the one-hot labels of a cascade's previous stage, ``(channels, *spatial)``."""
    image, seen = images.read_image(case), images.read_previous_stage(case)
    if seen is None:
        return torch.from_numpy(image)
    one_hot = convert_labelmap_to_one_hot(seen, trainer.label_manager.foreground_labels, image.dtype)
    return torch.from_numpy(np.concatenate((image, one_hot)))
