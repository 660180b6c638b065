"""Lay out AMOS 22 (CT and MR, 15 abdominal organs) as a raw nnU-Net dataset, with the labeled cases of DHC as folds.

DOWNLOAD_FOLDER is the unpacked amos22.zip, which contains imagesTr, labelsTr, imagesVa and labelsVa. The 240 cases of
imagesTr are divided into 216 for training and 24 for validation; the 120 cases of imagesVa are for testing.
"""

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
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)


def describe(download: Path) -> Benchmark:
    check_download(download, ["imagesTr", "labelsTr", "imagesVa", "labelsVa"], "AMOS 22")
    # DHC's list of 20 % (labeled_20p.txt) is not among these, as some of its cases are also validation cases
    lists = read_lists(__file__)
    parts = dict.fromkeys([*lists["train"], *lists["val"]], "Tr") | dict.fromkeys(lists["test"], "Va")
    return Benchmark(
        name="AMOS",
        description={
            # not "CT", as nnU-Net would then normalize the MR images by fixed intensities, too
            "channel_names": {"0": "CT or MR"},
            "labels": {"background": 0} | {organ: label for label, organ in enumerate(ORGANS, start=1)},
            "file_ending": ".nii.gz",
            # as in nnU-Net's own conversion of AMOS
            "overwrite_image_reader_writer": "NibabelIOWithReorient",
        },
        files={
            case: Files(download / f"images{part}" / f"{case}.nii.gz", download / f"labels{part}" / f"{case}.nii.gz")
            for case, part in parts.items()
        },
        train=lists["train"],
        val=lists["val"],
        test=lists["test"],
        labeled=lists["labeled"],
    )


if __name__ == "__main__":
    run(describe, __doc__, 701)
