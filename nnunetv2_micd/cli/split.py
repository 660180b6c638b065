"""``nnUNetv2_micd split``: adds folds, or makes datasets, in which only some cases keep their labels."""

import argparse
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "split",
        help="add folds in which only some cases keep their labels",
        description="Adds to splits_final.json one fold for each seed: a few labeled cases, the other training cases "
        "without their labels, and the same validation cases in all of them.",
        epilog="Example: nnUNetv2_micd split -d 4 -n 6 --seeds 0 1 2",
    )
    options.add_dataset(parser)
    parser.add_argument("-n", metavar="COUNT", required=True, help="how many cases keep their labels: 6, or 10%%")
    options.add_seeds(parser, "one fold for each")
    options.add_validation_share(parser)
    parser.add_argument(
        "--as-dataset",
        metavar="NUMBER",
        type=int,
        help="make raw datasets instead, this number for the first seed and the following for the others: imagesTr "
        "holds the labeled cases only, imagesUn the others, imagesTs and labelsTs those for validation",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Add folds or make datasets, and print the commands that train with them."""
    from nnunetv2_micd.data.folders import find_dataset

    name = find_dataset(arguments.d)
    if arguments.as_dataset is None:
        _add_folds(name, arguments)
    else:
        _derive_datasets(name, arguments)


def _add_folds(name: str, arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.data.budgets import add_budget_splits
    from nnunetv2_micd.data.folders import likely_plans
    from nnunetv2_micd.data.results import ModelFolder

    splits = add_budget_splits(name, arguments.n, arguments.seeds, arguments.val)
    print(f"{'fold':>6}{'seed':>6}{'labeled':>9}{'unlabeled':>11}{'val':>6}")
    first_seeds: dict[int, int] = {}
    for fold, seed, entry in splits:
        same = "" if first_seeds.setdefault(fold, seed) == seed else f"   the cases of seed {first_seeds[fold]}"
        print(f"{fold:6}{seed:6}{len(entry['train']):9}{len(entry['unlabeled']):11}{len(entry['val']):6}{same}")
    model = ModelFolder(name, _configuration(name), options.DEFAULT_TRAINER, likely_plans(name))
    print("Train with:")
    for fold in first_seeds:
        print(model.train_command(fold))


def _configuration(name: str) -> str:
    """Return the configuration for the commands that are printed."""
    from nnunetv2_micd.data.derive import is_2d
    from nnunetv2_micd.data.folders import labeled_folders

    try:
        folders = list(labeled_folders(name))
    except FileNotFoundError:  # a dataset with raw images only, from which others may be derived
        return "2d" if is_2d(name) else "3d_fullres"
    return "3d_fullres" if any(folder.endswith("3d_fullres") for folder in folders) else "2d"


def _derive_datasets(name: str, arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.data.derive import check_number, derive_dataset

    for number in range(arguments.as_dataset, arguments.as_dataset + len(arguments.seeds)):  # before any is made
        check_number(number, "a dataset for each seed")
    for number, seed in enumerate(arguments.seeds, start=arguments.as_dataset):
        derived, entry = derive_dataset(name, number, arguments.n, seed, arguments.val)
        counts = f"{len(entry['train'])} labeled, {len(entry['unlabeled'])} unlabeled, {len(entry['val'])} for testing"
        print(f"{derived}: {counts}")
    number = arguments.as_dataset
    configuration = _configuration(name)
    print("Plan, preprocess and train each like any other dataset, here with all its labeled cases:")
    print(
        f"nnUNetv2_plan_and_preprocess -d {number} -c {configuration} && "
        f"nnUNetv2_micd preprocess -d {number} -c {configuration}"
    )
    print(f"nnUNetv2_train {number} {configuration} all -tr {options.DEFAULT_TRAINER}")
