"""Cases that belong together, such as the two phases of a patient, and must not be divided between training and test.

A dataset may have a file ``groups.json`` with the group of each case: ``{"patient001_ED": "patient001", ...}``. It lies
in the folder of the raw dataset, or beside ``splits_final.json``, where it is copied to for machines without raw data.
nnU-Net does not read it.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunetv2_micd.utils.files import atomic, read_json, shorten
from nnunetv2_micd.utils.wording import counted

GROUPS_FILE = "groups.json"


def load_groups(dataset_name: str) -> dict[str, str]:
    """Return the group of each case, or nothing if the dataset has no groups.

    Raises:
        ValueError: The file does not hold a group for each of its cases.
    """
    roots = filter(None, (nnUNet_raw.get(), nnUNet_preprocessed.get()))
    for path in (Path(root, dataset_name, GROUPS_FILE) for root in roots):
        if not os.path.isfile(path):  # also where a folder may not be entered, as raw data need not be
            continue
        expected = f'{path} is not of the form {{"case": "group", ...}}'
        try:
            groups = read_json(path)
        except ValueError as error:
            raise ValueError(f"{expected}: {error}; correct it or delete it") from None
        if not isinstance(groups, dict) or not all(isinstance(group, str) for group in groups.values()):
            raise ValueError(f"{expected}; correct it or delete it")
        return groups
    return {}


def copy_groups(dataset_name: str) -> None:
    """Copy ``groups.json`` from the raw dataset beside ``splits_final.json``, as nnU-Net does with ``dataset.json``."""
    if not (nnUNet_raw.get() and nnUNet_preprocessed.get()):
        return
    source, folder = Path(str(nnUNet_raw), dataset_name, GROUPS_FILE), Path(str(nnUNet_preprocessed), dataset_name)
    if os.path.isfile(source) and folder.is_dir():
        with atomic(folder / GROUPS_FILE) as temporary:
            shutil.copyfile(source, temporary)


def share_groups(cases: Iterable[str], others: Iterable[str], groups: Mapping[str, str]) -> list[str]:
    """Return the cases, sorted, that are among others or belong to a group of theirs.

    Examples:
        >>> share_groups(["a_1", "b_1", "c"], ["a_2", "c"], {"a_1": "a", "a_2": "a", "b_1": "b"})
        ['a_1', 'c']
    """
    of_others = {groups.get(case, case) for case in others}
    return sorted(case for case in cases if groups.get(case, case) in of_others)


def group_cases(cases: Sequence[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the cases of each group, sorted. Without groups each case is one of its own.

    Raises:
        ValueError: Some of the cases have a group and others not.

    Examples:
        >>> group_cases(["a_1", "b_1", "a_2"], {"a_1": "a", "a_2": "a", "b_1": "b"})
        {'a': ['a_1', 'a_2'], 'b': ['b_1']}
    """
    missing = sorted(set(cases) - set(groups)) if groups else []
    if missing:
        raise ValueError(
            f"{GROUPS_FILE} gives these cases no group: {shorten(missing)}; add them, or delete "
            "the file in the raw dataset and in the preprocessed one"
        )
    grouped: dict[str, list[str]] = {}
    for case in sorted(cases):
        grouped.setdefault(groups.get(case, case), []).append(case)
    return dict(sorted(grouped.items()))


def describe_units(cases: Sequence[str], groups: Mapping[str, str]) -> str:
    """Return what folds are made of, such as ``6 labeled cases in 3 groups``."""
    text = counted(len(cases), "labeled case")
    return f"{text} in {counted(len(group_cases(cases, groups)), 'group')}" if groups else text
