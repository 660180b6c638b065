"""The script that adds corrected proposals to the labeled cases of a dataset."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images
from nnunetv2_micd.data.results import ModelFolder
from nnunetv2_micd.data.splits import SPLITS_FILE

HEAD = """#!/bin/sh
# Adds labels to {dataset}. Correct the segmentations first, in the folder {segmentations} beside this script,
# and delete here the lines of those that you did not correct.
set -e
cd "$(dirname "$0")"
"""


def write_script(
    file: Path, dataset: Dataset, model: ModelFolder, fold: int | str, cases: Sequence[str], segmentations: str
) -> None:
    """Write a shell script: moves images and corrected segmentations, preprocesses, and trains again.

    Args:
        file: File to write.
        dataset: The dataset; its raw images have to be on this machine.
        model: The model that was trained.
        fold: Its fold.
        cases: Images in ``imagesUn`` to which labels are added.
        segmentations: Folder of the segmentations beside the script.
    """
    ending, raw = dataset.file_ending, dataset.raw
    files = group_images(raw / IMAGES_FOLDER, ending)
    lines = [HEAD.format(dataset=dataset.name, segmentations=segmentations)]
    for case in cases:
        images = " ".join(shlex.quote(name) for name in _with_sidecar(files[case], case, ending))
        lines.append(
            f"mv {images} {shlex.quote(str(raw / 'imagesTr'))}/ && "
            f"cp {shlex.quote(f'{segmentations}/{case}{ending}')} {shlex.quote(str(raw / 'labelsTr'))}/"
        )
    description, splits = raw / "dataset.json", dataset.splits_file
    options = f"-d {dataset.number} -c {model.configuration}"
    lines += [
        "\n# nnU-Net checks the number of labeled cases, and makes new folds where there are none.",
        f'count=$(ls {shlex.quote(str(raw / "labelsTr"))} | grep -c "{ending.replace(".", "[.]")}$")',
        f'sed -i.bak "s/\\"numTraining\\": *[0-9]*/\\"numTraining\\": $count/" {shlex.quote(str(description))}',
        f"[ ! -e {shlex.quote(str(splits))} ] || mv {shlex.quote(str(splits))} "
        f"{shlex.quote(str(splits.with_name(f'before_{SPLITS_FILE}')))}",
        "\n# The plans stay as they are. To plan again with the new labels: nnUNetv2_plan_and_preprocess",
        f"nnUNetv2_preprocess {options} -plans_name {model.plans}",
        f"nnUNetv2_micd preprocess {options} -p {model.plans}",
        model.train_command(fold),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    file.chmod(0o755)


def _with_sidecar(files: Sequence[str], case: str, ending: str) -> list[str]:
    """Return the files of a case with the JSON file beside a TIFF image, which holds its spacing."""
    sidecars = [Path(name.removesuffix(ending) + ".json") for name in files]
    shared = Path(files[0]).with_name(f"{case}.json")
    return [*files, *(str(path) for path in dict.fromkeys([*sidecars, shared]) if path.is_file())]
