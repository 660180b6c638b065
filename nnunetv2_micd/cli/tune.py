"""``nnUNetv2_micd tune``: chooses the unsupervised weight of trainers on cases that no benchmark reports."""

import argparse
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "tune",
        help="choose the unsupervised weight of trainers for benchmark --tuned, all with the same effort",
        description="Trains each trainer with several unsupervised weights on cases that the benchmark does not "
        "report, and chooses the weight with the best validation Dice. Called again, it continues where it was "
        "interrupted. Exits with 1 if a run failed.",
        epilog="Example: nnUNetv2_micd tune -d 4 -c 3d_fullres -tr nnUNetTrainerMICD -n 6 --seeds 0 1",
    )
    options.add_grid(
        parser,
        trainers="trainers that use unlabeled images",
        budgets="how many cases are labeled, as for the benchmark: 6, 10%%; f0: as many as in fold 0",
    )
    parser.add_argument(
        "--weights",
        metavar="FACTOR",
        nargs="+",
        default=["1/3", "1", "3"],
        help="factors of the unsupervised weight; default: 1/3 1 3",
    )
    options.add_execution(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Tune; exit with an error if a run failed."""
    from nnunetv2_micd.benchmark import Grid, run_tuning

    grid = Grid(**options.grid_fields(arguments))
    options.exit_if_failed(run_tuning(grid, arguments.weights, **options.execution_fields(arguments)))
