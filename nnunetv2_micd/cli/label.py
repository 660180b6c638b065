"""``nnUNetv2_micd label``: gives labels to unlabeled images."""

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "label",
        help="make labeled cases of unlabeled images that have labels now",
        description="Moves images from imagesUn to imagesTr and copies their labels to labelsTr. They become training "
        "cases of all folds; cases of a group that validates, see groups.json, become validation cases. Preprocess the "
        "labeled cases and the unlabeled images again afterwards.",
        epilog="Example: nnUNetv2_micd label -d 4 -l CORRECTED case_17 case_204",
    )
    options.add_dataset(parser)
    parser.add_argument("-l", metavar="FOLDER", required=True, help="folder of the labels, named like the cases")
    parser.add_argument("cases", metavar="CASE", nargs="+", help="image in imagesUn, without _0000 and file ending")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Add the labels, and print the next commands."""
    from nnunetv2_micd.data.dataset import Dataset
    from nnunetv2_micd.data.folders import dataset_id, find_dataset, labeled_folders, likely_plans
    from nnunetv2_micd.data.new_labels import add_labels
    from nnunetv2_micd.data.preprocessing import choose_configurations
    from nnunetv2_micd.utils.wording import counted

    name = find_dataset(arguments.d)
    total = add_labels(name, Path(arguments.l), list(dict.fromkeys(arguments.cases)))
    number, plans = dataset_id(name), likely_plans(name)
    print(f"{name} has {counted(total, 'labeled case')} now. Next:")
    try:
        dataset = Dataset.find(name, plans)
    except (OSError, ValueError):  # there are no plans yet
        print(f"nnUNetv2_plan_and_preprocess -d {number}")
        print(f"nnUNetv2_micd preprocess -d {number}")
        return
    try:  # without -c, nnU-Net preprocesses all configurations, also those that the user does not train
        chosen = f" -c {' '.join(choose_configurations(dataset, labeled_folders(name)))}"
    except OSError:  # nothing is preprocessed yet
        chosen = ""
    # Without --clean, nnU-Net plans by the images that it saw the first time.
    again = f"keeps the plans; to plan again: {dataset.plan_command}"
    print(f"nnUNetv2_preprocess -d {number} -plans_name {plans}{chosen}   # {again}")
    print(dataset.preprocess_command)
