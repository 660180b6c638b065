"""The script that adds corrected proposals to the labeled cases of a dataset."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.folders import labeled_folders
from nnunetv2_micd.data.preprocessing import choose_configurations
from nnunetv2_micd.data.results import ModelFolder

SCRIPT = """#!/bin/sh
# Adds labels to {dataset}. Correct the segmentations first, in the folder {segmentations} beside this script,
# and delete here the lines of those that you did not correct.
set -e

nnUNetv2_micd label -d {number} -l "$(dirname "$0")"/{segmentations} -- \\
{cases}

# The plans stay as they are. To plan again with the new labels: {plan}
nnUNetv2_preprocess {options} -plans_name {plans}
nnUNetv2_micd preprocess {options} -p {plans} || echo "The training leaves these images out."
# This training replaces the earlier one of the fold; to keep that, copy its folder first. Its checkpoints alone are
# kept, under other names, so that --c does not continue the earlier training.
fold={folder}
number=1
while ls "$fold"/checkpoint_*_earlier_$number.pth >/dev/null 2>&1; do number=$((number + 1)); done
for name in final latest best; do
    old=$fold/checkpoint_$name.pth new=$fold/checkpoint_${{name}}_earlier_$number.pth
    if [ -f "$old" ]; then mv "$old" "$new"; echo "Kept the earlier checkpoint as $new"; fi
done
{training}
"""


def write_script(
    file: Path,
    dataset: Dataset,
    model: ModelFolder,
    fold: int | str,
    cases: Sequence[str],
    segmentations: str,
    device: str,
) -> None:
    """Write a shell script: adds the corrected segmentations, preprocesses, and trains again.

    Args:
        file: File to write.
        dataset: The dataset.
        model: The model that was trained.
        fold: Its fold.
        cases: Images in ``imagesUn`` to which labels are added.
        segmentations: Folder of the segmentations beside the script.
        device: Device of the training, such as ``cuda``.
    """
    # All whose labeled cases are preprocessed, as in nnU-Net the folds are those of all configurations.
    identifier = dataset.configuration(model.configuration).data_identifier
    labeled = {identifier}
    with suppress(OSError):  # where none are preprocessed any more
        labeled |= labeled_folders(dataset.name).keys()
    configurations = choose_configurations(dataset, labeled)
    text = SCRIPT.format(
        dataset=dataset.name,
        number=dataset.number,
        segmentations=segmentations,
        # A backslash after the last one too, before an empty line: any of the lines may be deleted.
        cases="\n".join(f"    {shlex.quote(case)} \\" for case in cases),
        plan=dataset.plan_command,
        options=f"-d {dataset.number} -c {' '.join(configurations)}",
        plans=model.plans,
        folder=shlex.quote(str(model.path().resolve() / f"fold_{fold}")),
        training=model.train_command(fold) + ("" if device == "cuda" else f" -device {device}"),
    )
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)
