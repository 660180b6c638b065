"""How a network labels unlabeled images, and how stable its labels are: ST++ (https://arxiv.org/abs/2106.05095)."""

import os
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor, distributed, nn
from tqdm import tqdm

from nnunetv2_micd.methods.pseudo_labels.files import fingerprint, read_record, write_pseudo_label
from nnunetv2_micd.training.loader import OUTSIDE, UnlabeledImages
from nnunetv2_micd.training.predictors import predictor_of
from nnunetv2_micd.training.protocols import TrainerLike
from nnunetv2_micd.utils.distributed import several_processes

Weights = Mapping[str, Tensor]


def copy_weights(network: nn.Module) -> Weights:
    """Return a copy of a network's weights, on the CPU; what it has under several names is copied once."""
    state = network.state_dict(keep_vars=True)
    copies = {id(tensor): tensor.detach().to("cpu", copy=True) for tensor in state.values()}
    return {name: copies[id(tensor)] for name, tensor in state.items()}


def mean_iou(labels: np.ndarray, others: np.ndarray) -> float:
    """Return the mean intersection over union of the foreground classes that are in either of two segmentations.

    Args:
        labels: Classes from 0, the background.
        others: Classes of the same shape.

    Returns:
        Between 0 and 1; 0 if neither has any foreground.
    """
    classes = int(max(labels.max(), others.max())) + 1
    pairs = labels.astype(np.int64) * classes + others
    counts = np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)
    shared = counts.diagonal()[1:]
    either = counts.sum(0)[1:] + counts.sum(1)[1:] - shared
    return float((shared[either > 0] / either[either > 0]).mean()) if either.any() else 0.0


def most_stable(stability: Mapping[str, float], share: float) -> list[str]:
    """Return the images with the most stable labels, sorted by name: a share of all, rounded down but at least one.

    Those with a stability of 0 are never among them.
    """
    ranked = sorted(stability, key=lambda case: (-stability[case], case))
    return sorted(case for case in ranked[: max(1, int(share * len(ranked)))] if stability[case] > 0)


def label_images(
    trainer: TrainerLike, network: nn.Module, earlier: Sequence[Weights], images: UnlabeledImages, folder: str
) -> dict[str, float]:
    """Write the pseudo-labels of all images, except those that the same network has written before.

    Several processes share the images.

    Args:
        trainer: Trainer of the network.
        network: The deployed network, deep supervision off; its current weights make the labels.
        earlier: Weights of the same network earlier in its training, for the stability.
        images: Preprocessed images without labels.
        folder: Folder of the pseudo-labels.

    Returns:
        The stability of each image's label: the mean over the earlier networks of `mean_iou` with the last one, of
        predictions that are not averaged over mirrored images; 0 where the label is nothing but background.
    """
    os.makedirs(folder, exist_ok=True)
    paths = {case: os.path.join(folder, case) for case in images.identifiers}
    weights = [*earlier, copy_weights(network)]
    name = fingerprint(weights[-1])
    predictor = predictor_of(trainer, network)
    rank, number = (distributed.get_rank(), distributed.get_world_size()) if several_processes() else (0, 1)
    for case in tqdm(list(paths)[rank::number], desc="pseudo-labels", disable=rank > 0):
        if read_record(paths[case]).get("network") != name:
            label, stability = _label_image(trainer, predictor, network, weights, images, case)
            write_pseudo_label(trainer, label, {"network": name, "stability": stability}, paths[case])
    if number > 1:
        distributed.barrier()
    return {case: read_record(path)["stability"] for case, path in paths.items()}


def _label_image(
    trainer: TrainerLike,
    predictor: nnUNetPredictor,
    network: nn.Module,
    weights: Sequence[Weights],
    images: UnlabeledImages,
    case: str,
) -> tuple[np.ndarray, float]:
    image = images.load_image(case)[:]
    seen = images.load_previous_stage(case)
    channels = [image]
    if seen is not None:
        channels.append(convert_labelmap_to_one_hot(seen[:], trainer.label_manager.foreground_labels, image.dtype))
    together = torch.from_numpy(np.concatenate(channels))
    predictor.use_mirroring = False
    predictions = []
    for each in weights:
        network.load_state_dict(each)
        predictions.append(_segment(trainer, predictor, together))
    *earlier, last = predictions
    stability = fmean(mean_iou(each, last) for each in earlier)
    predictor.use_mirroring = True
    label = _segment(trainer, predictor, together)
    masked = np.flatnonzero(trainer.configuration_manager.use_mask_for_norm)
    if len(masked):  # marked as in nnU-Net's own labels, for its augmentation
        outside = (np.abs(image[masked]) < OUTSIDE).all(0)
        label[outside & (label == 0)] = -1
    return label, stability if (label > 0).any() else 0.0


def _segment(trainer: TrainerLike, predictor: nnUNetPredictor, image: Tensor) -> np.ndarray:
    """Return the labels ``(*spatial)``, int16, of a preprocessed image ``(channels, *spatial)``."""
    logits = predictor.predict_sliding_window_return_logits(image)
    if trainer.label_manager.has_regions:
        labels = trainer.label_manager.convert_logits_to_segmentation(logits)
    else:
        labels = logits.argmax(0)  # as nnU-Net has it, but where the logits are
    return labels.to(torch.int16).cpu().numpy()
