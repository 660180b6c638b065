"""The same image makes the same array, whether or not it has a label."""

import json
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from helpers import TinyDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage.io import imsave

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessing_job import PreprocessingJob, preprocess_case

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
READERS = {
    "SimpleITKIO": ".nii.gz",
    "NibabelIO": ".nii.gz",
    "NibabelIOWithReorient": ".nii.gz",
    "Tiff3DIO": ".tif",
    "NaturalImage2DIO": ".png",
}
SCHEMES = [
    *("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization"),
    "RGBTo01Normalization",
]
SPACINGS = st.tuples(*[st.sampled_from([0.5, 1.0, 1.0, 2.3])] * 3)
INTENSITIES = {"max": 250.0, "mean": 90.0, "median": 80.0, "min": 1.0, "percentile_00_5": 5.0, "percentile_99_5": 240.0}


def write(folder: Path, name: str, array: np.ndarray, spacing: tuple[float, ...], reader: str) -> list[str]:
    """Write an image ``(channels, z, y, x)`` or a label ``(1, z, y, x)``; return its files."""
    if reader == "NaturalImage2DIO":
        path = folder / f"{name}{'' if name == 'label' else '_0000'}{READERS[reader]}"
        imsave(path, array[0, 0] if len(array) == 1 else np.moveaxis(array[:, 0], 0, -1), check_contrast=False)
        return [str(path)]
    files = []
    for channel, volume in enumerate(array):
        path = folder / f"{name}{'' if name == 'label' else f'_{channel:04d}'}{READERS[reader]}"
        if reader == "Tiff3DIO":
            tifffile.imwrite(path, volume)
            (folder / f"{name}.json").write_text(json.dumps({"spacing": spacing}))
        else:
            image = sitk.GetImageFromArray(volume)
            image.SetSpacing(spacing[::-1])
            sitk.WriteImage(image, str(path))
        files.append(str(path))
    return files


def make_dataset(dataset: TinyDataset, reader: str, channels: int, scheme: str, uses_mask: bool) -> Dataset:
    plans = json.loads(dataset.plans_file.read_text())
    plans["image_reader_writer"] = reader
    plans["foreground_intensity_properties_per_channel"] = {
        str(channel): {**INTENSITIES, "std": 30.0 + channel} for channel in range(channels)
    }
    for configuration in plans["configurations"].values():
        configuration["normalization_schemes"] = [scheme] * channels
        configuration["use_mask_for_norm"] = [uses_mask] * channels
    description = json.loads((dataset.preprocessed / "dataset.json").read_text())
    description["channel_names"] = {str(channel): f"channel {channel}" for channel in range(channels)}
    description["file_ending"] = READERS[reader]
    return Dataset(dataset.name, PlansManager(plans), description)


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
@SETTINGS
def test_same_image_same_array(reader: str, data: st.DataObject, dataset: TinyDataset) -> None:
    is_2d = reader == "NaturalImage2DIO"
    kinds = ["uint8"] if is_2d else ["uint8", "uint16", "float32"] + ["int16"] * (reader != "Tiff3DIO")
    kind = data.draw(st.sampled_from(kinds), "type")
    channels = data.draw(st.sampled_from([1, 3] if is_2d else [1, 2]), "channels")
    scheme = data.draw(st.sampled_from(SCHEMES[:4] if kind != "uint8" else SCHEMES), "normalization")
    uses_mask = data.draw(st.booleans(), "mask")
    configuration = "2d" if is_2d else data.draw(st.sampled_from(["2d", "3d_fullres"]), "configuration")
    spacing = data.draw(SPACINGS, "spacing")
    random = np.random.RandomState(data.draw(st.integers(0, 99), "seed"))
    shape = (1 if is_2d else random.randint(6, 14), random.randint(12, 30), random.randint(12, 30))
    image = random.uniform(1, 250, (channels, *shape))
    image[:, :, : random.randint(0, 6)] = 0  # to be cropped away
    image[:, :, -1, -1] = 0  # outside of the mask, but inside of the box
    label = (image[:1] > 200).astype(np.uint8)
    folder = dataset.root / "same"
    folder.mkdir(exist_ok=True)
    files = write(folder, "image", image.astype(kind), spacing, reader)
    [label_file] = write(folder, "label", label, spacing, reader)
    planned = make_dataset(dataset, reader, channels, scheme, uses_mask)
    manager = planned.configuration(configuration)

    job = PreprocessingJob(planned, configuration, "image", files, ".")
    job.folder.mkdir(exist_ok=True)
    assert preprocess_case(job) == ("image", None)
    ours = blosc2.open(str(job.folder / "image.b2nd"), mode="r")[...]
    preprocessor = manager.preprocessor_class(verbose=False)
    nnunets, _, _ = preprocessor.run_case(files, label_file, planned.plans, manager, planned.dataset_json)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, nnunets.astype(np.float32))


def test_labels_outside_of_the_mask_are_the_exception(dataset: TinyDataset) -> None:
    """nnU-Net takes voxels with a label for inside, so it normalizes the labeled image by more of them."""
    planned = make_dataset(dataset, "SimpleITKIO", 1, "ZScoreNormalization", True)
    manager = planned.configuration("3d_fullres")
    image = np.random.RandomState(0).uniform(1, 250, (1, 20, 20, 20))
    image[:, 0] = 0  # outside
    image[:, 0, 0, 0] = image[:, 0, -1, -1] = 1  # but not to be cropped away
    label = np.zeros(image.shape, np.int8)
    preprocessor: Any = manager.preprocessor_class(verbose=False)

    def preprocess(segmentation: np.ndarray | None) -> np.ndarray:
        properties = {"spacing": [1, 1, 1]}
        return preprocessor.run_case_npy(image, segmentation, properties, planned.plans, manager, planned.dataset_json)[
            0
        ]

    unlabeled = preprocess(None)
    np.testing.assert_array_equal(unlabeled, preprocess(label))
    label[:, 0, 5:9, 5:9] = 1
    assert (unlabeled != preprocess(label)).any()
