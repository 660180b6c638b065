"""Preprocesses one unlabeled image: reads it, checks it, and writes it as nnU-Net writes a labeled case."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.image_defects import AGAIN, find_data_defect, find_defect, find_spacing_defect


@dataclass(frozen=True)
class PreprocessingJob:
    """One image to preprocess.

    Attributes:
        dataset: Dataset with the plans.
        configuration: Name of the configuration.
        case: Identifier of the image.
        files: Raw files of its channels.
        incomplete: Name of the folder for files that are being written, inside the folder of the preprocessed images.
    """

    dataset: Dataset
    configuration: str
    case: str
    files: list[str]
    incomplete: str

    @property
    def folder(self) -> Path:
        """Folder of the preprocessed images."""
        return self.dataset.unlabeled_folder(self.configuration)

    @property
    def temporary(self) -> Path:
        """Folder of this image's files while they are being written. When a process is killed, it stays."""
        return self.folder / self.incomplete / self.case


def preprocess_case(job: PreprocessingJob) -> tuple[str, str | None]:
    """Preprocess one image.

    Returns:
        Identifier of the image, and what is wrong with it or None.

    Raises:
        OSError: The data cannot be written, so no other image can be written either.
    """
    job.temporary.mkdir(exist_ok=True)
    try:
        target = str(job.temporary / job.case)
        defect = _write_case(job, target)
        if defect is None:
            # The .pkl comes last: if it is there, the image is complete. That of a replaced image was removed before.
            for ending in (".b2nd", ".pkl"):
                os.replace(target + ending, job.folder / (job.case + ending))
        return job.case, defect
    finally:
        shutil.rmtree(job.temporary, ignore_errors=True)


def _write_case(job: PreprocessingJob, target: str) -> str | None:
    """Write ``<target>.b2nd`` and ``<target>.pkl``; return what is wrong with the image, or None."""
    dataset, configuration = job.dataset, job.dataset.configuration(job.configuration)
    try:
        defect = find_defect(job.case, job.files, dataset.num_channels)
        if defect is not None:
            return defect
        reader_class = dataset.plans.image_reader_writer_class
        if reader_class is Tiff3DIO and (defect := find_spacing_defect(job.case, job.files[0], _has_spacing(dataset))):
            return defect
        data, properties = reader_class().read_images(job.files)
    except Exception as error:  # readers raise various types for damaged images
        return _describe(error, "read")
    try:
        defect = find_data_defect(
            job.case,
            data,
            properties["spacing"],
            dataset.plans.transpose_forward,
            configuration.spacing,
            configuration.median_image_size_in_voxels,
            dataset.num_channels,
        )
        if defect is not None:
            return defect
        preprocessor = configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            data, None, properties, dataset.plans, configuration, dataset.dataset_json
        )
        data = data.astype(np.float32, copy=False)
        blocks, chunks = comp_blosc2_params(data.shape, tuple(configuration.patch_size), data.itemsize)
    except Exception as error:  # nnU-Net's functions raise various types, as for an image that fits into no memory
        return _describe(error, "preprocessed")
    try:
        _save(data, properties, blocks, chunks, target)
        return None if _is_finite(target) else f"contains NaN or Inf values; {AGAIN}"
    except MemoryError as error:
        return _describe(error, "preprocessed")
    except Exception as error:
        raise OSError(
            f"Cannot write to {job.folder} ({_name(error)}), most often because the disk is full; make room and "
            f"run the same command again, the images that are done are kept"
        ) from None


def _save(data: np.ndarray, properties: dict[str, Any], blocks: Any, chunks: Any, target: str) -> None:
    # save_case also writes a segmentation, which an unlabeled image does not have. This one is left in the temporary
    # folder, so it has a single voxel.
    nothing, one_voxel = np.zeros((1, 1, 1, 1), np.int16), (1, 1, 1, 1)
    nnUNetDatasetBlosc2.save_case(
        data, nothing, properties, target, chunks=chunks, blocks=blocks, chunks_seg=one_voxel, blocks_seg=one_voxel
    )


def _is_finite(target: str) -> bool:
    """Read the written image back, which also shows that the file is complete."""
    data = blosc2.open(target + ".b2nd", mode="r", dparams={"nthreads": 1})
    return all(np.isfinite(data[channel]).all() for channel in range(data.shape[0]))


def _has_spacing(dataset: Dataset) -> bool:
    """Return True if the labeled images have a spacing other than the one that nnU-Net assumes where there is none."""
    return any(length != 1 for length in dataset.plans.plans.get("original_median_spacing_after_transp", ()))


def _describe(error: Exception, done: str) -> str:
    name = _name(error)
    if name == "RuntimeError: ":  # nnU-Net's readers print the reason and raise an empty error
        return "the images of its channels differ in shape or spacing; export them again on the same grid"
    if isinstance(error, MemoryError):
        return f"cannot be {done} ({name}); run the same command again with -np 1, or crop it"
    if isinstance(error, PermissionError):
        return f"cannot be {done} ({name}); change the permissions of this file"
    return f"cannot be {done} ({name}); {AGAIN}"


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
