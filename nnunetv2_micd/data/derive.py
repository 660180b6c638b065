"""Raw datasets for a label budget, so that not even nnU-Net's planning sees the labels that are not to be used."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_micd.data.budgets import make_entry
from nnunetv2_micd.data.folders import find_dataset, raw_folder
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images


def derive_dataset(
    dataset: str | int, number: int, count: str, seed: int = 0, val_fraction: float = 0.2
) -> tuple[str, dict[str, list[str]]]:
    """Lay out a raw dataset in which only some training cases have labels; it refers to the files of the other one.

    The labeled cases are in ``imagesTr`` and ``labelsTr``, those without their labels in ``imagesUn``, with the
    unlabeled images that the dataset has, and those for validation in ``imagesTs`` and ``labelsTs``: which case is
    which, the same numbers decide in :func:`nnunetv2_micd.data.splits.add_budget_splits`. All files are symbolic links.

    Args:
        dataset: name or number of the raw dataset.
        number: of the new dataset.
        count: how many cases keep their labels, as in :func:`nnunetv2_micd.data.splits.add_budget_splits`.
        seed: decides which.
        val_fraction: the share of the cases for validation.

    Returns:
        The name of the new dataset, and its cases under ``train``, ``val`` and ``unlabeled``.

    Raises:
        ValueError: the number is taken or none that a dataset can have, or the cases cannot be divided so.
        OSError: there is no such raw dataset, or no links can be made.
    """
    source_name = find_dataset(dataset)
    source = Path(raw_folder(source_name))
    if not (source / "dataset.json").is_file():
        raise FileNotFoundError(f"There is no raw dataset {source}, from which another could be derived")
    description = json.loads((source / "dataset.json").read_text())
    cases = get_filenames_of_train_images_and_targets(str(source), json.loads(json.dumps(description)))
    entry = make_entry(sorted(cases), count, seed, val_fraction)
    name = f"Dataset{number:03d}_{source_name.partition('_')[2]}_{len(entry['train'])}labels_seed{seed}"
    check_number(number, name)

    ending = description["file_ending"]
    links = _links_of_cases(cases, entry, ending)
    folder = source / IMAGES_FOLDER
    for case, files in group_images(str(folder), ending).items() if folder.is_dir() else ():
        for file in files:
            links |= _link(f"{IMAGES_FOLDER}/{case}", file, os.path.basename(file).removeprefix(case))
    description.pop("dataset", None)
    description |= {"numTraining": len(entry["train"]), "name": name, "derived_from": source_name, "seed": seed}
    _write(Path(raw_folder(name)), description, links)
    return name, entry


def check_number(number: int, name: str) -> None:
    """Check that a number can be that of the new dataset ``name``.

    Raises:
        ValueError: no dataset can have it, or another one has it in one of nnU-Net's folders.
    """
    if not 0 < number < 1000:
        raise ValueError(f"A dataset needs a number from 1 to 999, not {number}")
    taken = [found for found in find_candidate_datasets(number) if found.startswith(f"Dataset{number:03d}_")]
    if taken:
        raise ValueError(
            f"The number {number} belongs to {', '.join(taken)} already; choose another, or delete that dataset, to "
            f"make {name}"
        )


def _links_of_cases(cases: Mapping[str, Any], entry: Mapping[str, Sequence[str]], ending: str) -> dict[str, str]:
    links: dict[str, str] = {}
    for key, images in (("train", "imagesTr"), ("val", "imagesTs"), ("unlabeled", IMAGES_FOLDER)):
        for case in entry[key]:
            for channel, file in enumerate(cases[case]["images"]):
                links |= _link(f"{images}/{case}", file, f"_{channel:04d}{ending}")
    for key, labels in (("train", "labelsTr"), ("val", "labelsTs")):
        for case in entry[key]:
            links |= _link(f"{labels}/{case}", cases[case]["label"], ending)
    return links


def _link(name: str, file: str, ending: str) -> dict[str, str]:
    """Return where a file is linked, and with a TIFF image the JSON file beside it, which holds its spacing."""
    sidecar = file.removesuffix(ending) + ".json"
    return {name + ending: file} | ({name + ".json": sidecar} if os.path.isfile(sidecar) else {})


def _write(folder: Path, description: dict[str, Any], links: Mapping[str, str]) -> None:
    """Make the folder complete beside its place first, so that nnU-Net never sees half of it."""
    incomplete = folder.with_name(f"incomplete_{folder.name}")
    shutil.rmtree(incomplete, ignore_errors=True)
    try:
        for link, file in links.items():
            path = incomplete / link
            path.parent.mkdir(parents=True, exist_ok=True)
            # Relative, so that the folder of all datasets can be moved; the new one will lie as deep as this.
            path.symlink_to(os.path.relpath(os.path.realpath(file), os.path.realpath(path.parent)))
        (incomplete / "dataset.json").write_text(json.dumps(description, indent=4))
        incomplete.replace(folder)
    except OSError as error:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise OSError(f"Cannot make {folder} with links to the images of the other dataset ({error})") from error
