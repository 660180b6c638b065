"""Cases that belong together, such as the two phases of a patient, and must not be divided between training and test.

A dataset may have a file ``groups.json`` with the group of each case: ``{"patient001_ED": "patient001", ...}``. It lies
in the folder of the raw dataset, or beside ``splits_final.json``. nnU-Net does not read it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunetv2_micd.utils.files import read_json, shorten

GROUPS_FILE = "groups.json"


def load_groups(dataset_name: str) -> dict[str, str]:
    """Return the group of each case, or nothing if the dataset has no groups.

    Raises:
        ValueError: The file does not hold a group for each of its cases.
    """
    roots = filter(None, (nnUNet_preprocessed.get(), nnUNet_raw.get()))
    for path in (Path(root, dataset_name, GROUPS_FILE) for root in roots):
        if not path.is_file():
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
        raise ValueError(f"{GROUPS_FILE} gives these cases no group: {shorten(missing)}; add them or delete the file")
    grouped: dict[str, list[str]] = {}
    for case in sorted(cases):
        grouped.setdefault(groups.get(case, case), []).append(case)
    return dict(sorted(grouped.items()))


def describe_units(cases: Sequence[str], groups: Mapping[str, str]) -> str:
    """Return what folds are made of, such as ``6 labeled cases in 3 groups``."""
    text = f"{len(cases)} labeled cases"
    return f"{text} in {len(group_cases(cases, groups))} groups" if groups else text
