"""Loads patches of unlabeled images from disk, with nnU-Net's augmentation and without any segmentation."""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import blosc2
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from threadpoolctl import threadpool_limits
from torch import Tensor

from nnunetv2_micd.data.unlabeled import UnlabeledCase
from nnunetv2_micd.training.protocols import TrainerLike
from nnunetv2_micd.utils import random_states
from nnunetv2_micd.utils.files import shorten

OUTSIDE = 1e-3
"""Normalized intensity below which, in all channels, a voxel lies outside the nonzero mask; hardly any lies inside."""

PREPROCESS_AGAIN = "delete it and its .pkl file, and preprocess its image again"
VALIDATE_AGAIN = "delete it, and run the final validation of the previous stage again (--val)"
"""What to do when a file is damaged: that of an image, and a segmentation of a cascade's first stage."""


class UnlabeledImages:
    """Preprocessed images by identifier. It never opens labels or properties, and keeps no file open.

    Attributes:
        folders: Folder of each image by identifier.
        identifiers: Identifiers of the images, as nnU-Net's loader reads them.
        previous_stage: Folder of the first stage's segmentations in a cascade, or None.
    """

    def __init__(self, cases: Sequence[UnlabeledCase], previous_stage: str | None = None):
        self.folders = {case.identifier: case.folder for case in cases}
        self.identifiers = list(self.folders)
        self.previous_stage = previous_stage

    def subset(self, identifiers: Sequence[str]) -> "UnlabeledImages":
        """Return some of the images.

        Raises:
            ValueError: One of them is missing, as it may be when a training is continued.
        """
        if missing := sorted(set(identifiers).difference(self.folders)):
            raise ValueError(
                f"This training uses {len(missing)} unlabeled images that are missing now ({shorten(missing)}); put "
                "them back, or train anew without --c"
            )
        return UnlabeledImages([UnlabeledCase(name, self.folders[name]) for name in identifiers], self.previous_stage)

    def load_image(self, identifier: str) -> blosc2.NDArray:
        """Open an image ``(channels, *spatial)``. Slicing it reads and decompresses only the chunks of the slice."""
        return _open(self.folders[identifier], identifier)

    def load_previous_stage(self, identifier: str) -> blosc2.NDArray | None:
        """Open the segmentation ``(*spatial)`` of the first stage, or return None without a cascade."""
        return None if self.previous_stage is None else _open(self.previous_stage, identifier)

    def read_image(self, identifier: str) -> np.ndarray:
        """Return a whole image ``(channels, *spatial)``.

        Raises:
            ValueError: Its file is damaged.
        """
        image = self.load_image(identifier)
        with _damage_named(image, PREPROCESS_AGAIN):
            return image[:]

    def read_previous_stage(self, identifier: str) -> np.ndarray | None:
        """Return the whole segmentation ``(*spatial)`` of the first stage, or None without a cascade.

        Raises:
            ValueError: Its file is damaged.
        """
        segmentation = self.load_previous_stage(identifier)
        if segmentation is None:
            return None
        with _damage_named(segmentation, VALIDATE_AGAIN):
            return segmentation[:]


def _open(folder: str, identifier: str) -> blosc2.NDArray:
    # As in nnU-Net's dataset: memory mapping does not work on Windows, and a worker has one core.
    mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
    path = os.path.join(folder, identifier + ".b2nd")
    return blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, **mmap)


@contextmanager
def _damage_named(file: blosc2.NDArray, remedy: str) -> Iterator[None]:
    """Name the file of which a part that is read is damaged; a header that can be read does not show it."""
    try:
        yield
    except RuntimeError as error:  # as blosc2 says that it cannot decompress
        raise ValueError(f"{file.urlpath} is damaged ({error}); {remedy}") from error


class Origin(NamedTuple):
    """Where the patches of a batch come from.

    Attributes:
        keys: Identifier of the image of each patch.
        positions: Centre of each patch as a share of its image ``(B, axes)``, float32: 0 at the first voxel, 1 past the
            last. A patch in 2D has three axes as well, the first of which tells the slice. Mirroring does not count.
    """

    keys: list[str]
    positions: Tensor


class UnlabeledDataLoader(nnUNetDataLoader):
    """nnU-Net's loader without labels: patches at random places, no foreground oversampling.

    Args:
        data: Images to load from.
        *args: Arguments of ``nnUNetDataLoader``.
        masked_channels: Channels that are normalized inside the nonzero mask only (``use_mask_for_norm`` of the plans).
            Outside the mask they have to stay zero through the augmentation.
        **kwargs: Keyword arguments of ``nnUNetDataLoader``.
    """

    _data: UnlabeledImages

    def __init__(self, data: UnlabeledImages, *args: Any, masked_channels: Sequence[int] = (), **kwargs: Any):
        super().__init__(data, *args, **kwargs)
        self.has_ignore = False  # with an ignore label nnU-Net would look for annotated voxels
        self.masked_channels = list(masked_channels)

    def generate_train_batch(self) -> dict[str, Any]:
        """Return ``data``, a tensor ``(B, channels, *patch)``, and ``keys`` and ``positions``, see :class:`Origin`."""
        keys = self.get_indices()
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):  # as in nnU-Net: a worker has one core
            images, positions = zip(*(self._load_patch(key) for key in keys), strict=True)
            return {"data": torch.stack(images), "keys": keys, "positions": torch.stack(positions)}

    def _load_patch(self, key: str) -> tuple[Tensor, Tensor]:
        image = self._data.load_image(key)
        lower, upper = self.get_bbox(image.shape[1:], force_fg=False, class_locations=None)
        box = [list(bounds) for bounds in zip(lower, upper, strict=True)]
        with _damage_named(image, PREPROCESS_AGAIN):
            patch = torch.from_numpy(crop_and_pad_nd(image, box, 0)).float()
        if self.patch_size_was_2d:
            patch = patch[:, 0]
        sample = {"image": patch}
        previous = self._data.load_previous_stage(key)
        if self.masked_channels or previous is not None:
            # nnU-Net stores the nonzero mask as -1 in the segmentation, which an unlabeled case does not have. So the
            # mask is found in the image, where resampling leaves values outside the mask that are not exactly zero.
            outside = (patch[self.masked_channels].abs() < OUTSIDE).all(0, keepdim=True)
            sample["segmentation"] = torch.where(outside, -1, 0).to(torch.int16)
        if previous is not None:
            with _damage_named(previous, VALIDATE_AGAIN):
                labels = torch.from_numpy(crop_and_pad_nd(previous, box, -1, cast_cropped_to=np.int16)).to(torch.int16)
            # A patch in 2D is a single slice, whose axis takes the place of the channels.
            labels = labels if self.patch_size_was_2d else labels[None]
            sample["segmentation"] = torch.cat((sample["segmentation"], labels))
        centre = (torch.tensor(lower) + torch.tensor(upper)) / 2 / torch.tensor(image.shape[1:])
        return self.transforms(**sample)["image"], centre.clamp(0, 1)


class IsolatedAugmenter(SingleThreadedAugmenter):
    """Loads in the main process with separate random states.

    So the labeled batches of a training are the same with and without unlabeled images.

    Attributes:
        states: Random states with which the next batch is drawn, see :func:`random_states.get_states`.
    """

    def __init__(self, data_loader: UnlabeledDataLoader):
        super().__init__(data_loader, None)
        # The seed is computed from NumPy's state, without drawing from it: a seeded training has a seeded stream of
        # unlabeled patches, any other training a new stream each time.
        seed = zlib.crc32(np.random.get_state(legacy=False)["state"]["key"].tobytes()) ^ 0x5EED
        with random_states.restored():
            random_states.seed_all(seed)
            self.states = random_states.get_states()

    def __next__(self) -> dict[str, Any]:
        """Return the next batch, see :class:`UnlabeledDataLoader`."""
        with random_states.restored():
            random_states.set_states(self.states)
            batch = super().__next__()
            self.states = random_states.get_states()
        return batch


def loader_arguments(trainer: TrainerLike, images: UnlabeledImages, has_labels: bool) -> dict[str, Any]:
    """Return the arguments of nnU-Net's loader: batch size, patch size and augmentation of the labeled patches.

    Args:
        trainer: Initialized :class:`~nnunetv2_micd.training.trainer.SemiSupervisedTrainer`.
        images: Images to load from.
        has_labels: Set if the images have pseudo-labels. The augmentation then ends with nnU-Net's steps for targets,
            such as the resolutions of deep supervision.
    """
    rotation, dummy_2d, initial_patch_size, mirror_axes = (
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    )
    manager, configuration = trainer.label_manager, trainer.configuration_manager
    transforms = trainer.get_training_transforms(
        configuration.patch_size,
        rotation,
        trainer._get_deep_supervision_scales() if has_labels else None,
        mirror_axes,
        dummy_2d,
        use_mask_for_norm=configuration.use_mask_for_norm,
        is_cascaded=trainer.is_cascaded,
        foreground_labels=manager.foreground_labels,
        regions=manager.foreground_regions if has_labels and manager.has_regions else None,
        ignore_label=manager.ignore_label if has_labels else None,
    )
    return {
        "data": images,
        "batch_size": trainer.unlabeled_batch_size,
        "patch_size": initial_patch_size,
        "final_patch_size": configuration.patch_size,
        "label_manager": manager,
        "transforms": transforms,
    }


INTENSITY = ("intensity.", "noise.", "local.", "spatial.low_resolution", "spatial.channel_misalignment")
"""Modules of batchgeneratorsv2 whose transforms change intensities and keep the geometry."""


def without_intensity_changes(transforms: Any) -> ComposeTransforms:
    """Return nnU-Net's augmentation without what changes intensities: a weak view, only deformed and mirrored.

    Args:
        transforms: ``ComposeTransforms`` of batchgeneratorsv2, as ``get_training_transforms`` returns it; not changed.
    """

    def changes_intensities(transform: Any) -> bool:
        while isinstance(transform, RandomTransform):
            transform = transform.transform
        if isinstance(transform, OneOfTransform):  # as in nnUNetTrainerDA5
            return any(map(changes_intensities, transform.list_of_transforms))
        return type(transform).__module__.removeprefix("batchgeneratorsv2.transforms.").startswith(INTENSITY)

    return ComposeTransforms([one for one in transforms.transforms if not changes_intensities(one)])


def build_unlabeled_loader(trainer: TrainerLike, images: UnlabeledImages) -> UnlabeledDataLoader:
    """Return a loader of patches without labels, see :func:`loader_arguments`."""
    arguments = loader_arguments(trainer, images, has_labels=False)
    if trainer.has_weak_views:
        arguments["transforms"] = without_intensity_changes(arguments["transforms"])
    return UnlabeledDataLoader(**arguments, masked_channels=trainer.masked_channels)


def start_unlabeled_loader(
    loader: UnlabeledDataLoader, num_processes: int, pin_memory: bool
) -> IsolatedAugmenter | NonDetMultiThreadedAugmenter:
    """Start the workers of a loader in the way nnU-Net does.

    Args:
        loader: Loader of unlabeled patches.
        num_processes: Number of workers; with 0 the batches are made in the main process.
        pin_memory: Pin the batches in memory for a faster copy to the GPU.

    Returns:
        Iterator of the loader's batches.
    """
    if num_processes == 0:
        return IsolatedAugmenter(loader)
    workers = NonDetMultiThreadedAugmenter(
        data_loader=loader,
        transform=None,
        num_processes=num_processes,
        num_cached=max(6, num_processes // 2),
        # Without them only NumPy is seeded anew: PyTorch, which decides how an image is changed, would draw the same
        # numbers in all workers, and again after each start.
        seeds=np.random.SeedSequence().generate_state(num_processes).tolist(),
        pin_memory=pin_memory,
        wait_time=0.002,
    )
    next(workers)  # the first batch starts the workers, so a damaged file is found now
    return workers
