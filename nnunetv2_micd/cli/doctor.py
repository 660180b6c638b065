"""``nnUNetv2_micd doctor``: finds out what keeps a training from running."""

import argparse
import sys
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "doctor",
        help="find out what keeps a training from running",
        description="Checks the installation, nnU-Net's folders and, with -d, whether a dataset is fit for training. "
        "Changes nothing. Exits with 1 if something prevents training.",
        epilog="Example: nnUNetv2_micd doctor -d 4",
    )
    options.add_dataset(parser, "number or name of a dataset to check as well", required=False)
    options.add_configuration(parser, "configuration; default: all, at least one of which must be fit", required=False)
    options.add_plans(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the findings; exit with 1 if one is a problem."""
    from nnunetv2_micd.doctor.diagnose import diagnose
    from nnunetv2_micd.doctor.finding import format_findings

    findings = diagnose(arguments.d, arguments.c, arguments.p)
    print(format_findings(findings))
    if any(finding.level == "problem" for finding in findings):
        sys.exit(1)
