"""How a network labels unlabeled images, and how stable its labels are: ST++ (https://arxiv.org/abs/2106.05095)."""

import os
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from torch import Tensor, distributed, nn
from tqdm import tqdm

from nnunetv2_micd.data.sources import source_texts
from nnunetv2_micd.methods.pseudo_labels.files import (
    describe_image,
    fingerprint,
    is_of_image,
    read_record,
    write_pseudo_label,
)
from nnunetv2_micd.training.loader import OUTSIDE, UnlabeledImages
from nnunetv2_micd.training.predictors import predict_in_batches
from nnunetv2_micd.training.protocols import TrainerLike
from nnunetv2_micd.utils.distributed import several_processes, share_of_process, wait_for_all

Weights = Mapping[str, Tensor]

IMAGES_AT_A_TIME = 8
"""Images whose labels are held in memory until all checkpoints have segmented them."""


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
        The stability of each image's label: the mean over the earlier networks of `mean_iou` with the last one; 0 where
        the label is nothing but background.
    """
    os.makedirs(folder, exist_ok=True)
    paths = {case: os.path.join(folder, case) for case in images.identifiers}
    weights = [*earlier, copy_weights(network)]
    name = fingerprint(weights[-1])
    own = share_of_process(images.identifiers)
    is_quiet = several_processes() and distributed.get_rank() > 0
    sources = source_texts(images.folders)
    missing = []
    for case in own:
        record = read_record(paths[case])
        if record.get("network") != name or not is_of_image(record, images, case, sources):
            missing.append(case)
    with tqdm(desc="pseudo-labels", total=len(own), initial=len(own) - len(missing), disable=is_quiet) as bar:
        for first in range(0, len(missing), IMAGES_AT_A_TIME):
            group = missing[first : first + IMAGES_AT_A_TIME]
            for case, (label, stability) in _label_group(trainer, network, weights, images, group).items():
                record = {"network": name, "stability": stability, **describe_image(images, case, sources)}
                write_pseudo_label(trainer, label, record, paths[case])
                bar.update()
    wait_for_all()
    return {case: read_record(path)["stability"] for case, path in paths.items()}


def _label_group(
    trainer: TrainerLike, network: nn.Module, weights: Sequence[Weights], images: UnlabeledImages, cases: Sequence[str]
) -> dict[str, tuple[np.ndarray, float]]:
    """Return label and stability of some images; ends with the last of the weights in the network."""
    predictions: list[dict[str, np.ndarray]] = []
    for each in weights:
        network.load_state_dict(each)
        predictions.append(_segment(trainer, network, images, cases))
    *earlier, last = predictions
    labeled = {}
    for case, label in last.items():
        # There is no earlier network if a training is continued with so few epochs that its phase ends at once.
        agreement = [mean_iou(each[case], label) for each in earlier] or [1.0]
        stability = fmean(agreement) if (label > 0).any() else 0.0
        if trainer.masked_channels:  # marked as in nnU-Net's own labels, for its augmentation
            image = images.read_image(case)
            label[(np.abs(image[trainer.masked_channels]) < OUTSIDE).all(0) & (label == 0)] = -1
        labeled[case] = label, stability
    return labeled


def _segment(
    trainer: TrainerLike, network: nn.Module, images: UnlabeledImages, cases: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the labels ``(*spatial)``, int16, of preprocessed images."""
    batch_size = trainer.configuration_manager.batch_size
    regions, manager = trainer.label_manager.has_regions, trainer.label_manager
    return {
        case: (manager.convert_logits_to_segmentation(logits) if regions else logits.argmax(0)).short().cpu().numpy()
        for case, logits in predict_in_batches(trainer, network, images, cases, batch_size)
    }
