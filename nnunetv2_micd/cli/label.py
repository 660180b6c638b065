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
    from nnunetv2_micd.data.folders import dataset_id, find_dataset
    from nnunetv2_micd.data.new_labels import add_labels

    name = find_dataset(arguments.d)
    number = add_labels(name, Path(arguments.l), list(dict.fromkeys(arguments.cases)))
    print(f"{name} has {number} labeled cases now. Next:")
    print(f"nnUNetv2_preprocess -d {dataset_id(name)}   # keeps the plans; nnUNetv2_plan_and_preprocess plans again")
    print(f"nnUNetv2_micd preprocess -d {dataset_id(name)}")
