"""Refuses test cases that are learned from, or that share a group with images that are."""

from collections.abc import Mapping, Sequence

from nnunetv2_micd.benchmark.grid import Grid
from nnunetv2_micd.data.groups import share_groups
from nnunetv2_micd.data.splits import Entry
from nnunetv2_micd.utils.files import shorten


def check_validation(entries: Mapping[tuple[str, int], Entry], groups: Mapping[str, str]) -> None:
    """Check that the validation cases can serve as test cases.

    Args:
        entries: Entries by budget and seed.
        groups: Group of each case, see `data.groups`.

    Raises:
        ValueError: A training case, labeled or not, is a validation case or of the group of one; or not all entries
            have the same validation cases.
    """
    with_budget = [(budget, entry) for (budget, _), entry in entries.items()]
    for budget, entry in with_budget:
        first_budget, first_entry = with_budget[0]
        trained = share_groups(entry["val"], [*entry["train"], *entry["unlabeled"]], groups)
        if trained:
            of_group = " or others of their groups" if groups else ""
            raise ValueError(
                f"This fold validates on cases it was trained on{of_group} ({shorten(trained)}), so they cannot serve "
                "as a test set; give other cases with --test"
            )
        if entry["val"] != first_entry["val"]:
            raise ValueError(
                f"-n {first_budget} and -n {budget} have different validation cases, so no report can compare them; "
                "leave out one of them, or give test cases with --test"
            )


def check_test_cases(
    grid: Grid, test_cases: Sequence[str], entry: Entry, unlabeled: Sequence[str], groups: Mapping[str, str]
) -> None:
    """Check that no test case, nor another image of its group, is learned from.

    Args:
        grid: Whether unlabeled images may be test images, and whether trainers are tuned.
        test_cases: The test cases.
        entry: Labeled, unlabeled and validation cases.
        unlabeled: Images that the trainer uses without labels.
        groups: Group of each case, see `data.groups`.

    Raises:
        ValueError: One is learned from.
    """
    or_group = " or share a group with them" if groups else ""
    if labeled := share_groups(test_cases, entry["train"], groups):
        raise ValueError(
            f"Test images are labeled training cases, too{or_group} ({shorten(labeled)}); remove or rename them"
        )
    seen = share_groups(test_cases, unlabeled, groups)
    if seen and not grid.transductive:
        raise ValueError(
            f"Test images are among the unlabeled ones, too{or_group} ({shorten(seen)}); remove or rename them, "
            "or, if they are to be learned from, add --transductive"
        )
    tuned = share_groups(test_cases, entry["unlabeled"], groups)
    if tuned and grid.tuned:
        raise ValueError(
            f"Test images{' or others of their groups' if groups else ''} have taken part in the tuning with their "
            f"labels ({shorten(tuned)}); leave out --tuned, or remove or rename them"
        )
