"""The cascade: the first stage segments the unlabeled images, and the second stage sees these segmentations.

nnU-Net segments its validation cases during the final validation. The unlabeled images are segmented right after that,
into the same folder and in the same form. Each segmentation also tells of which raw files its image was made, as an
image may be replaced before the second stage is trained, and which network made it: an image that one fold has
segmented is not segmented again by the others, nor by a validation that is repeated after it was interrupted.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import blosc2
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import resample_and_save
from torch import nn
from tqdm import tqdm

from nnunetv2_micd.data.preprocessed import unlabeled_folder
from nnunetv2_micd.data.sources import source_texts
from nnunetv2_micd.data.unlabeled import UnlabeledCase
from nnunetv2_micd.training.loader import UnlabeledImages
from nnunetv2_micd.training.predictors import load_with_previous_stage, predictor_of
from nnunetv2_micd.training.protocols import TrainerLike
from nnunetv2_micd.utils.files import shorten

SOURCE = "nnunetv2_micd_source"
"""Name under which a segmentation holds the raw files of its image."""

MAKER = "nnunetv2_micd_maker"
"""Name under which a segmentation holds the fold that made it, and a hash of the weights."""


def segment_for_next_stages(trainer: TrainerLike, network: nn.Module, cases: Sequence[UnlabeledCase]) -> None:
    """Segment the unlabeled images of a stage for every next stage of its configuration.

    Images are left out that another fold, or the same weights, have segmented already and that are the same since.

    Args:
        trainer: Trainer of the stage.
        network: The deployed network, deep supervision off.
        cases: Unlabeled images, preprocessed for the stage.
    """
    predictor = predictor_of(trainer, network)
    images = UnlabeledImages(cases, trainer.folder_with_segs_from_previous_stage)
    sources = source_texts(images.folders)
    maker = [str(trainer.fold), _hash_weights(network)]
    for stage in trainer.configuration_manager.next_stage_names:
        labeled_folder = join(
            trainer.preprocessed_dataset_folder_base,
            trainer.plans_manager.get_configuration(stage).data_identifier,
        )
        output_folder = join(trainer.output_folder_base, "predicted_next_stage", stage)
        os.makedirs(output_folder, exist_ok=True)
        missing, kept = [], 0
        for case in tqdm(cases, desc=f"unlabeled images for {stage}"):
            is_labeled = case.folder == os.path.normpath(trainer.preprocessed_dataset_folder)
            folder = labeled_folder if is_labeled else unlabeled_folder(labeled_folder)
            if not os.path.isfile(join(folder, case.identifier + ".b2nd")):
                missing.append(case.identifier)
                continue
            shape = UnlabeledImages([UnlabeledCase(case.identifier, folder)]).load_image(case.identifier).shape[1:]
            path, source = join(output_folder, case.identifier), sources.get(case.identifier)
            if _is_segmented(path, shape, source, maker):
                kept += 1
                continue
            image = load_with_previous_stage(trainer, images, case.identifier)
            logits = predictor.predict_sliding_window_return_logits(image).cpu()
            _save_segmentation(trainer, logits, shape, {SOURCE: source, MAKER: maker}, path)
        if kept:
            trainer.print_to_log_file(
                f"{kept} of {len(cases)} unlabeled images were segmented for {stage} before, by this fold with the "
                f"same weights or by another fold; to segment them anew, delete {output_folder} and repeat the "
                "validation of all folds with --val"
            )
        if missing:
            trainer.print_to_log_file(
                f"{len(missing)} unlabeled images are not preprocessed for {stage} and were not segmented for it "
                f"({shorten(missing)}); run nnUNetv2_micd preprocess for it, and then this command again with --val"
            )


def _hash_weights(network: nn.Module) -> str:
    """Return a hash of the weights; a compiled network, whose names differ, has that of the original."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _is_segmented(path: str, shape: Sequence[int], source: str | None, maker: Sequence[str]) -> bool:
    """Return True if there is a segmentation of this image, by another fold or by this one with these weights."""
    try:
        segmentation = blosc2.open(path + ".b2nd", mode="r")
    except (FileNotFoundError, RuntimeError):  # as blosc2 says that a header is damaged
        return False
    recorded = segmentation.vlmeta
    if source is None or recorded.get(SOURCE) != source or segmentation.shape != tuple(shape):
        return False
    fold, weights = recorded.get(MAKER) or (maker[0], None)  # earlier versions recorded no maker
    return bool(fold != maker[0] or weights == maker[1])


def _save_segmentation(
    trainer: TrainerLike, logits: torch.Tensor, shape: Sequence[int], facts: Mapping[str, Any], path: str
) -> None:
    configuration = trainer.configuration_manager
    # nnU-Net looks up these two only. The properties file of a labeled case is not read: it tells where its labels are.
    properties = {"spacing": configuration.spacing, "shape_after_cropping_and_before_resampling": logits.shape[1:]}
    incomplete = f"{path}.fold_{trainer.fold}.incomplete"  # folds may be validated at the same time
    resample_and_save(
        logits,
        list(shape),
        incomplete,
        trainer.plans_manager,
        configuration,
        properties,
        trainer.dataset_json,
        default_num_processes,  # threads, as nnU-Net passes them; a training on CUDA has one thread otherwise
    )
    segmentation = blosc2.open(incomplete + ".b2nd", mode="a")
    for name, fact in facts.items():
        if fact is not None:
            segmentation.vlmeta[name] = fact
    os.replace(incomplete + ".b2nd", path + ".b2nd")


def check_previous_stage(images: UnlabeledImages, meaning: str, command: str) -> None:
    """Check that the first stage has segmented the images, and since then none was replaced.

    Times of files would not tell: copies of preprocessed images on a faster disk are younger than the segmentations.

    Args:
        images: Preprocessed images, labeled or not, with the folder of the segmentations.
        meaning: What the images are, for the message.
        command: Command that trains or validates the first stage.

    Raises:
        ValueError: Some are missing, or are of earlier images; the message holds the command that makes them.
    """
    sources = source_texts(images.folders)
    missing, outdated = [], []
    for case in images.identifiers:
        try:
            segmentation = images.load_previous_stage(case)
        except (FileNotFoundError, RuntimeError):  # as blosc2 says that a header is damaged
            missing.append(case)
            continue
        assert segmentation is not None  # there is a folder of them
        recorded, current = segmentation.vlmeta.get(SOURCE), sources.get(case)  # nnU-Net itself records none
        is_of_other = None not in (recorded, current) and recorded != current
        if is_of_other or segmentation.shape != images.load_image(case).shape[1:]:
            outdated.append(case)
    if missing:
        raise ValueError(
            f"{len(missing)} {meaning} have no segmentation of the previous stage in {images.previous_stage} "
            f"({shorten(missing)}); the final validation of that stage makes them: {command}"
        )
    if outdated:
        raise ValueError(
            f"{len(outdated)} {meaning} have changed since the previous stage segmented them in "
            f"{images.previous_stage} ({shorten(outdated)}); preprocess them for that stage as well, and repeat its "
            f"final validation: {command}"
        )
