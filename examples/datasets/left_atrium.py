"""Lay out the left atrium set (LA: 2018 Atrial Segmentation Challenge, LGE MR) as a raw nnU-Net dataset.

DOWNLOAD_FOLDER is the challenge's folder "Training Set", which contains CASE/lgemri.nrrd and CASE/laendo.nrrd. The 100
cases are divided as in UA-MT: 80 for training and 20 for testing. There are three folds: the first 4, 8 or 16 training
cases are labeled. UA-MT has no validation cases, so each fold validates on its labeled cases.
"""

from pathlib import Path

import SimpleITK as sitk
from layout import Benchmark, Files, check_download, read_lists, run


def describe(download: Path) -> Benchmark:
    check_download(download, ["*/lgemri.nrrd", "*/laendo.nrrd"], "the left atrium set")
    lists = read_lists(__file__)
    train, test = lists["train"], lists["test"]
    return Benchmark(
        name="LeftAtrium",
        description={
            "channel_names": {"0": "LGE MR"},
            "labels": {"background": 0, "left atrium": 1},
            "file_ending": ".nrrd",
        },
        files={case: Files(download / case / "lgemri.nrrd", download / case / "laendo.nrrd") for case in train + test},
        train=train,
        val=[],
        test=test,
        labeled={f"first {count}": train[:count] for count in (4, 8, 16)},
        convert_labels=convert_labels,
    )


def convert_labels(files: Files, path: Path) -> None:
    """Write the labels with 1 instead of 255, and with the geometry of the image."""
    try:
        converted = sitk.Cast(sitk.ReadImage(str(files.label)) > 0, sitk.sitkUInt8)
        converted.CopyInformation(sitk.ReadImage(str(files.image)))  # refuses another size
        sitk.WriteImage(converted, str(path), useCompression=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{files.label} cannot be used for {files.image} ({reason}); unpack both again") from None


if __name__ == "__main__":
    run(describe, __doc__, 703)
