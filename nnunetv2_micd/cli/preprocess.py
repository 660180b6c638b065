"""``nnUNetv2_micd preprocess``: preprocesses the unlabeled images of a dataset."""

import argparse
import sys
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "preprocess",
        help="preprocess the unlabeled images of a dataset",
        description="Preprocesses the images in imagesUn of the raw dataset, named CASE_0000.nii.gz like those in "
        "imagesTr. They need no labels. Images that are done already are skipped.",
        epilog="Example: nnUNetv2_micd preprocess -d 4",
    )
    options.add_dataset(parser)
    parser.add_argument(
        "-c", metavar="CONFIG", nargs="+", help="configurations; default: all that nnU-Net preprocessed"
    )
    options.add_plans(parser)
    parser.add_argument("-i", metavar="FOLDER", nargs="+", help="folders of the images; default: imagesUn")
    parser.add_argument(
        "-np", metavar="N", type=int, help="number of processes; default: nnU-Net's, but at most one for each core"
    )
    parser.add_argument(
        "-num_parts", metavar="N", type=int, default=1, help="number of jobs that share the images, as in a job array"
    )
    parser.add_argument("-part_id", metavar="K", type=int, help="which of these jobs this is, from 0")
    parser.add_argument("--overwrite", action="store_true", help="preprocess images again that are done already")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Preprocess; list the images that failed, and exit with an error if there are some."""
    from nnunetv2_micd.data.dataset import Dataset
    from nnunetv2_micd.data.preprocessing import DEFAULT_NUM_PROCESSES, Part, preprocess_unlabeled
    from nnunetv2_micd.utils.files import shorten
    from nnunetv2_micd.utils.wording import counted

    if arguments.num_parts > 1 and arguments.part_id is None:
        sys.exit(f"error: -part_id is missing, from 0 to {arguments.num_parts - 1}; say which of the jobs this is")
    failures = preprocess_unlabeled(
        Dataset.find(arguments.d, arguments.p),
        configurations=arguments.c,
        folders=arguments.i,
        num_processes=DEFAULT_NUM_PROCESSES if arguments.np is None else arguments.np,
        overwrite=arguments.overwrite,
        part=Part(arguments.part_id or 0, arguments.num_parts),
    )
    for failure in failures:
        print(f"{failure.configuration}, {shorten([failure.case])}: {failure.reason}", file=sys.stderr)
    if failures:
        number = len({failure.case for failure in failures})
        sys.exit(f"error: {counted(number, 'image')} could not be preprocessed")
