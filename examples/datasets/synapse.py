"""Lay out Synapse (BTCV: CT, 13 abdominal organs) as a raw nnU-Net dataset, with the labeled cases of DHC as folds.

DOWNLOAD_FOLDER is the unpacked RawData.zip, which contains Training/img and Training/label. Its 30 labeled cases are
divided into 20 for training, 4 for validation and 6 for testing.
"""

from collections.abc import Sequence
from pathlib import Path

from layout import Benchmark, Files, check_download, read_lists, run

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)


def describe(download: Path) -> Benchmark:
    check_download(download, ["Training/img", "Training/label"], "Synapse (BTCV)")
    images, labels = download / "Training" / "img", download / "Training" / "label"
    # DHC's repository has removed these lists since, and has another test.txt: see docs/datasets.md
    lists = read_lists(__file__)
    return Benchmark(
        name="Synapse",
        description={
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | {organ: label for label, organ in enumerate(ORGANS, start=1)},
            "file_ending": ".nii.gz",
        },
        files={
            f"img{number}": Files(images / f"img{number}.nii.gz", labels / f"label{number}.nii.gz")
            for number in [*lists["train"], *lists["val"], *lists["test"]]
        },
        train=name_cases(lists["train"]),
        val=name_cases(lists["val"]),
        test=name_cases(lists["test"]),
        labeled={share: name_cases(numbers) for share, numbers in lists["labeled"].items()},
    )


def name_cases(numbers: Sequence[str]) -> list[str]:
    return [f"img{number}" for number in numbers]


if __name__ == "__main__":
    run(describe, __doc__, 702)
