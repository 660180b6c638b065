"""Lay out ACDC (cine MR of the heart) as a raw nnU-Net dataset, with the labeled patients of SSL4MIS as folds.

DOWNLOAD_FOLDER is the folder that contains training/patient001. The 100 patients are divided as in SSL4MIS: 70 for
training, 10 for validation and 20 for testing. There are two folds: the first 3 or the first 7 training patients are
labeled. Each patient makes two cases, the frames at the end of diastole and at the end of systole; ``groups.json``
keeps them together.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from layout import Benchmark, Files, check_download, read_lists, run


def describe(download: Path) -> Benchmark:
    check_download(download, ["training/patient*/Info.cfg"], "ACDC")
    lists = read_lists(__file__)
    files = {
        patient: find_frames(download / "training" / patient)
        for patient in [*lists["train"], *lists["val"], *lists["test"]]
    }

    def cases(patients: Sequence[str]) -> list[str]:
        return [case for patient in patients for case in files[patient]]

    return Benchmark(
        name="ACDC",
        description={
            "channel_names": {"0": "cine MR"},
            "labels": {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3},
            "file_ending": ".nii.gz",
        },
        files={case: frame for frames in files.values() for case, frame in frames.items()},
        train=cases(lists["train"]),
        val=cases(lists["val"]),
        test=cases(lists["test"]),
        groups={case: patient for patient, frames in files.items() for case in frames},
        labeled={f"first {count} patients": cases(lists["train"][:count]) for count in (3, 7)},
    )


def find_frames(folder: Path) -> dict[str, Files]:
    """Return the two cases of a patient. The file Info.cfg names their frames."""
    info = folder / "Info.cfg"
    if not info.is_file():
        raise FileNotFoundError(f"The download lacks {info}; complete it, or unpack it again")
    frames = re.findall(r"^E[DS]: *([0-9]+)", info.read_text(), re.MULTILINE)
    if len(frames) != 2:
        raise ValueError(f"{info} does not name the two frames ED and ES; unpack it again")
    cases = [f"{folder.name}_frame{int(frame):02d}" for frame in frames]
    return {case: Files(folder / f"{case}.nii.gz", folder / f"{case}_gt.nii.gz") for case in cases}


if __name__ == "__main__":
    run(describe, __doc__, 704)
