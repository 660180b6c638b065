"""Pseudo-labels as files of a training: nnU-Net's loader reads them as it reads labels.

Of each image there are ``<image>.b2nd`` with the labels and ``<image>.pkl`` with the places of the classes, both as
nnU-Net's preprocessing writes them, and ``<image>.json``, which is written last and marks both as complete.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json, load_pickle, save_json, write_pickle
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from torch import Tensor

from nnunetv2_micd.data.sources import source_texts
from nnunetv2_micd.data.unlabeled import UnlabeledCase
from nnunetv2_micd.training.figures import write_csv
from nnunetv2_micd.training.loader import UnlabeledImages, loader_arguments
from nnunetv2_micd.training.protocols import TrainerLike
from nnunetv2_micd.utils.files import shorten


class PseudoLabeledImages(UnlabeledImages):
    """Preprocessed images with a pseudo-label, in the form of nnU-Net's datasets; opens no label of their own.

    Args:
        images: Preprocessed images.
        identifiers: Images to use.
        folder: Folder of their pseudo-labels.

    Raises:
        ValueError: an image or its pseudo-label is missing, or the image was replaced since it was labeled, as may
            happen before a training is continued.
    """

    def __init__(self, images: UnlabeledImages, identifiers: Sequence[str], folder: str):
        records = {name: read_record(os.path.join(folder, name)) for name in identifiers}
        there = [name for name in identifiers if name in images.folders and records[name]]
        if missing := sorted({*identifiers}.difference(there)):
            raise ValueError(
                f"This training has learned from {len(missing)} unlabeled images that are missing now, or whose "
                f"pseudo-labels in {folder} are ({shorten(missing)}); put them back, or train anew without --c"
            )
        super().__init__([UnlabeledCase(name, images.folders[name]) for name in identifiers], images.previous_stage)
        sources = source_texts(self.folders)
        if replaced := sorted(name for name in there if not is_of_image(records[name], self, name, sources)):
            raise ValueError(
                f"This training has learned from {len(replaced)} unlabeled images that were replaced since they were "
                f"labeled ({shorten(replaced)}); put the earlier ones back, or train anew without --c"
            )
        self.pseudo_labels = UnlabeledImages([UnlabeledCase(name, folder) for name in identifiers])

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return what ``nnUNetBaseDataset.load_case`` returns: image, label, previous stage and properties."""
        properties = load_pickle(os.path.join(self.pseudo_labels.folders[identifier], f"{identifier}.pkl"))
        label = self.pseudo_labels.load_image(identifier)
        return self.load_image(identifier), label, self.load_previous_stage(identifier), properties


def write_pseudo_label(trainer: TrainerLike, label: np.ndarray, record: Mapping[str, Any], path: str) -> None:
    """Write a pseudo-label as nnU-Net's preprocessing writes a label; killed in between, it counts as missing.

    Args:
        trainer: Trainer with the plans and labels.
        label: ``(*spatial)``, int16, -1 outside of the nonzero mask.
        record: Content of the JSON file.
        path: Path of the files without their endings.
    """
    manager, configuration = trainer.label_manager, trainer.configuration_manager
    classes = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    if manager.has_ignore_label:  # then nnU-Net's loader looks for annotated voxels, and all are
        classes.append([-1, *manager.all_labels])
    label = label[None]
    blocks, chunks = comp_blosc2_params(label.shape, tuple(configuration.patch_size), label.itemsize)
    incomplete = f"{path}.incomplete"
    nnUNetDatasetBlosc2.save_seg(label, incomplete, chunks_seg=chunks, blocks_seg=blocks)
    os.replace(f"{incomplete}.b2nd", f"{path}.b2nd")
    places = configuration.preprocessor_class._sample_foreground_locations(label, classes)
    write_pickle({"class_locations": places}, incomplete)
    os.replace(incomplete, f"{path}.pkl")
    save_json(dict(record), incomplete)
    os.replace(incomplete, f"{path}.json")


def read_record(path: str) -> dict[str, Any]:
    """Return the record of a pseudo-label; empty if it does not exist."""
    return load_json(f"{path}.json") if os.path.isfile(f"{path}.json") else {}


def describe_image(images: UnlabeledImages, case: str, sources: Mapping[str, str]) -> dict[str, Any]:
    """Return what the record of a pseudo-label tells of its image.

    Args:
        images: Preprocessed images.
        case: One of them.
        sources: Of which raw files each was made, see :func:`sources.source_texts`.
    """
    return {"shape": list(images.load_image(case).shape[1:]), "source": sources.get(case)}


def is_of_image(record: Mapping[str, Any], images: UnlabeledImages, case: str, sources: Mapping[str, str]) -> bool:
    """Whether a pseudo-label was made of the image that lies there now, as far as its record tells."""
    now = describe_image(images, case, sources)
    return all(None in (record.get(name), value) or record[name] == value for name, value in now.items())


def write_stability(stability: Mapping[str, float], used: Sequence[str], folder: str) -> None:
    """Write ``stability.csv``: how stable each pseudo-label is and whether it is used, the most stable first."""
    rows: list[dict[str, Any]] = [
        {"case": case, "stability": f"{stability[case]:.6f}", "used": case in used}
        for case in sorted(stability, key=lambda case: (-stability[case], case))
    ]
    write_csv(rows, os.path.join(folder, "stability.csv"))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of a network's weights, which tells its labels from another network's."""
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def build_pseudo_labeled_loader(trainer: TrainerLike, images: PseudoLabeledImages) -> nnUNetDataLoader:
    """Return nnU-Net's own loader of training patches, on pseudo-labels."""
    return nnUNetDataLoader(
        **loader_arguments(trainer, images, has_labels=True),
        oversample_foreground_percent=trainer.oversample_foreground_percent,
        probabilistic_oversampling=trainer.probabilistic_oversampling,
    )
