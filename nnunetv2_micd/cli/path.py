"""``nnUNetv2_micd path``: prints the folder of the trainers."""

import argparse
import sys
from typing import Any

from nnunetv2_micd import TRAINER_FOLDER


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "path",
        help="print the folder of the trainers, for nnUNet_extTrainer",
        description="Prints the folder in which nnU-Net finds the trainers of this package, for: "
        'export nnUNet_extTrainer="$(nnUNetv2_micd path)"',
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> None:
    """Print the folder, and to a terminal also the command that needs it."""
    print(TRAINER_FOLDER)
    if sys.stdout.isatty():  # not in "$(nnUNetv2_micd path)", where nobody would read it
        print('nnU-Net finds the trainers after: export nnUNet_extTrainer="$(nnUNetv2_micd path)"', file=sys.stderr)
