"""Raw datasets with few labels, so that not even nnU-Net's planning sees the labels that must not be used."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_micd.data.budgets import make_entry
from nnunetv2_micd.data.folders import raw_folder
from nnunetv2_micd.data.groups import GROUPS_FILE, load_groups
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images
from nnunetv2_micd.data.splits import Entry
from nnunetv2_micd.utils.files import atomic_folder, is_file_name, read_json_object, shorten


def derive_dataset(
    source_name: str, number: int, count: str, seed: int = 0, val_fraction: float = 0.2
) -> tuple[str, Entry]:
    """Make a raw dataset in which only some training cases have labels, of links to the files of another dataset.

    The labeled cases go to ``imagesTr`` and ``labelsTr``, the other training cases without their labels to
    ``imagesUn``, next to the unlabeled images that the dataset has, and the validation cases to ``imagesTs`` and
    ``labelsTs``. The cases are divided as in `nnunetv2_micd.data.budgets.add_budget_splits`.

    Args:
        source_name: Full name of the raw dataset.
        number: Number of the new dataset.
        count: Number or share of labeled cases, as in `add_budget_splits`.
        seed: Seed that draws the labeled cases.
        val_fraction: Share of the cases for validation.

    Returns:
        Name of the new dataset, and its cases under ``train``, ``val`` and ``unlabeled``.

    Raises:
        ValueError: The number is taken or not allowed, or the cases cannot be divided like this.
        OSError: There is no such raw dataset, or links cannot be made.
    """
    source = raw_folder(source_name)
    if not (source / "dataset.json").is_file():
        raise FileNotFoundError(f"There is no raw dataset {source}, from which another could be derived")
    description = read_json_object(source / "dataset.json")
    try:
        if not isinstance(description["file_ending"], str):
            raise TypeError(f"file_ending is {description['file_ending']!r}")
        # A copy, as nnU-Net makes the paths in it absolute.
        cases = get_filenames_of_train_images_and_targets(str(source), json.loads(json.dumps(description)))
        if wrong := [case for case in cases if not is_file_name(case)]:
            raise ValueError(f"names of cases are {wrong[:3]}")
    except Exception as error:  # nnU-Net does not check the file, so damage shows as any type of error
        raise ValueError(f"{source / 'dataset.json'} is not as nnU-Net reads it ({error!r}); correct it") from None
    if not cases:
        raise FileNotFoundError(
            f"{source / 'imagesTr'} holds no images named CASE_0000{description['file_ending']}; add them, or "
            "correct the file_ending in dataset.json"
        )
    groups = load_groups(source_name)
    entry = make_entry(sorted(cases), count, seed, val_fraction, groups)
    name = f"Dataset{number:03d}_{source_name.partition('_')[2]}_{len(entry['train'])}labels_seed{seed}"
    check_number(number, name)

    ending = description["file_ending"]
    links = _links_of_cases(cases, entry, ending)
    folder = source / IMAGES_FOLDER
    for case, files in group_images(folder, ending).items() if folder.is_dir() else ():
        for file in files:
            links |= _link(f"{IMAGES_FOLDER}/{case}", file, os.path.basename(file).removeprefix(case))
    if missing := sorted(file for file in set(links.values()) if not os.path.isfile(file)):
        raise FileNotFoundError(f"Files of {source} are missing ({shorten(missing)}); restore them")
    description.pop("dataset", None)  # the paths of the other dataset's files
    description |= {"numTraining": len(entry["train"]), "name": name, "derived_from": source_name, "seed": seed}
    _write(raw_folder(name), description, links, groups)
    return name, entry


def is_2d(dataset_name: str) -> bool:
    """Return True if the first labeled image of a raw dataset has one slice; False also if it cannot be read.

    Args:
        dataset_name: Full name of a dataset, from which others can be derived.
    """
    # Here because the readers take seconds to import, and nothing else needs them.
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    source = raw_folder(dataset_name)
    description = read_json_object(source / "dataset.json")
    cases = get_filenames_of_train_images_and_targets(str(source), json.loads(json.dumps(description)))
    file = next(iter(cases.values()))["images"][0]
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # nnU-Net prints what keeps a reader from a file
            reader = determine_reader_writer_from_dataset_json(description, file, verbose=False)()
            return bool(reader.read_images([file])[0].shape[1] == 1)
    except Exception:  # readers raise various types for damaged files, which planning reports
        return False


def check_number(number: int, name: str) -> None:
    """Check that a number is free for the new dataset ``name``.

    Raises:
        ValueError: The number is out of range, or a dataset in one of nnU-Net's folders has it.
    """
    if not 0 < number < 1000:
        raise ValueError(f"A dataset needs a number from 1 to 999, not {number}")
    taken = [other for other in find_candidate_datasets(number) if other.startswith(f"Dataset{number:03d}_")]
    if taken:
        raise ValueError(
            f"The number {number} belongs to {', '.join(taken)} already; choose another, or delete that dataset, to "
            f"make {name}"
        )


def _links_of_cases(cases: Mapping[str, Any], entry: Mapping[str, Sequence[str]], ending: str) -> dict[str, str]:
    """Return for each link, relative to the new dataset, the file it points to."""
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
    """Return the link to a file. With a TIFF image comes the JSON file beside it, which holds the spacing."""
    sidecar = file.removesuffix(ending) + ".json"
    return {name + ending: file} | ({name + ".json": sidecar} if os.path.isfile(sidecar) else {})


def _write(folder: Path, description: dict[str, Any], links: Mapping[str, str], groups: Mapping[str, str]) -> None:
    try:
        with atomic_folder(folder) as incomplete:
            for link, file in links.items():
                path = incomplete / link
                path.parent.mkdir(parents=True, exist_ok=True)
                # Relative, so that the folder of all datasets can be moved. The final folder lies at the same depth.
                path.symlink_to(os.path.relpath(os.path.realpath(file), os.path.realpath(path.parent)))
            (incomplete / "dataset.json").write_text(json.dumps(description, indent=4))
            if groups:  # so that a split of the new dataset does not divide them either
                (incomplete / GROUPS_FILE).write_text(json.dumps(groups, indent=4))
    except OSError as error:
        raise OSError(f"Cannot make {folder} with links to the images of the other dataset ({error})") from error
