"""``nnUNetv2_micd report``: writes tables, figures and a page about the finished runs of a benchmark."""

import argparse
import sys
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "report",
        help="tables, figures and a page of the finished runs of a benchmark",
        description="Scores the predictions of the runs that nnUNetv2_micd benchmark has finished and writes tables, "
        "figures and a page (report.html). Trains nothing.",
        epilog="Example: nnUNetv2_micd report -d 4 -o report",
    )
    options.add_dataset(parser)
    parser.add_argument("-o", metavar="FOLDER", required=True, help="folder to write into")
    options.add_configuration(parser, "configuration; needed if there are runs of several", required=False)
    parser.add_argument("-p", metavar="PLANS", help="name of the plans; needed if there are runs of several")
    parser.add_argument(
        "--tolerance",
        metavar="MM",
        type=float,
        default=1.0,
        help="of the normalized surface Dice in mm, of photographs in pixels; default: 1",
    )
    parser.add_argument(
        "--epochs",
        metavar="N",
        type=int,
        help="only runs of this length, and longer ones of the baseline and the controls",
    )
    parser.add_argument(
        "--baseline",
        metavar="TRAINER",
        default=options.DEFAULT_BASELINE,
        help="baseline of the benchmark, against which all others are tested; default: %(default)s",
    )
    parser.add_argument(
        "-np", metavar="N", type=int, default=1, help="number of processes for the scores; default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the report and print its notes."""
    from nnunetv2_micd.report import write_report

    page, notes = write_report(
        arguments.d,
        arguments.o,
        configuration=arguments.c,
        plans=arguments.p,
        tolerance=arguments.tolerance,
        epochs=arguments.epochs,
        num_processes=arguments.np,
        baseline=arguments.baseline,
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"Written: {page}; the tables lie beside it as CSV and Markdown")
