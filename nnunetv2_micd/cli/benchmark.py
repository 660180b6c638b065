"""``nnUNetv2_micd benchmark``: trains and tests several trainers with few labels."""

import argparse
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "benchmark",
        help="train and test several trainers with few labels, nnU-Net's own among them",
        description="Trains each trainer, and the baseline, with each number of labels and each seed, and predicts. "
        "Called again, it continues where it was interrupted. Exits with 1 if a run failed.",
        epilog="Example: nnUNetv2_micd benchmark -d 4 -c 3d_fullres -tr nnUNetTrainerMICD -n 2 6 --controls",
    )
    options.add_grid(
        parser,
        trainers="trainers; the baseline is added",
        budgets="how many cases are labeled: 6, 10%%, or all (for the baseline only); f0: those of fold 0",
    )
    _add_further_runs(parser.add_argument_group("what is trained beside that"))
    _add_test(parser.add_argument_group("what it is tested on"))
    options.add_execution(parser)
    parser.set_defaults(run=run)


def _add_further_runs(parser: options.Options) -> None:
    """Add the options that say what is trained beside the given trainers."""
    parser.add_argument(
        "--baseline",
        metavar="TRAINER",
        default=options.DEFAULT_BASELINE,
        help="trained on the labels alone, the row that all others are compared with; default: %(default)s",
    )
    parser.add_argument(
        "--longer",
        metavar="TIMES",
        type=int,
        nargs="+",
        default=[],
        help="also train the baseline and the controls this many times as long, to compare at equal time; such as 2 4",
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="also train parts of the methods that use no unlabeled images: nnUNetTrainerEMA, "
        "nnUNetTrainerSelfTraining_LabeledOnly, nnUNetTrainerBCP_LabeledOnly, "
        "nnUNetTrainerMICD_SupervisedOnly; name your own controls with -tr",
    )
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="also train each trainer with the unsupervised weight that nnUNetv2_micd tune has chosen",
    )


def _add_test(parser: options.Options) -> None:
    """Add the options that say what is tested on."""
    parser.add_argument(
        "--test",
        metavar=("IMAGES", "LABELS"),
        nargs=2,
        help="folders of test images and their labels; default: the validation cases",
    )
    parser.add_argument(
        "--mean-of-both",
        action="store_true",
        help="trainers with two networks also predict with the mean of both; may be added when all runs are done",
    )
    parser.add_argument(
        "--transductive", action="store_true", help="allow that test images are among the unlabeled ones"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the benchmark; exit with an error if a run failed."""
    from nnunetv2_micd.benchmark import CONTROLS, Grid, run_benchmark

    fields = options.grid_fields(arguments)
    if arguments.controls:
        fields["trainers"] = [*arguments.tr, *CONTROLS]
    grid = Grid(
        **fields,
        test=tuple(arguments.test) if arguments.test else None,
        transductive=arguments.transductive,
        baseline=arguments.baseline,
        longer=arguments.longer,
        mean_of_both=arguments.mean_of_both,
        tuned=arguments.tuned,
    )
    options.exit_if_failed(run_benchmark(grid, **options.execution_fields(arguments)))
