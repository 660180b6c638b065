"""``nnUNetv2_micd benchmark``: trains and tests several trainers with few labels."""

import argparse
import sys
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "benchmark",
        help="train and test several trainers with few labels, nnU-Net's own among them",
        description="Trains each trainer, and the baseline, with each number of labels and each seed, and predicts. "
        "Called again, it continues where it was interrupted. Exits with 1 if a run failed.",
    )
    _add_runs(parser)
    _add_test(parser)
    _add_execution(parser)
    parser.set_defaults(run=run)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained."""
    options.add_dataset(parser)
    options.add_configuration(parser)
    parser.add_argument("-tr", metavar="TRAINER", nargs="+", required=True, help="trainers; the baseline is added")
    parser.add_argument(
        "-n",
        metavar="COUNT",
        nargs="+",
        required=True,
        help="how many cases are labeled: 6, 10%%, or all (for the baseline only); f0: those of fold 0",
    )
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
        help="also train the baseline this many times as long, for the comparison at equal time; such as 2 4",
    )
    options.add_seeds(parser, "each draws other labeled cases")
    options.add_validation_share(parser)
    parser.add_argument("--epochs", metavar="E", type=int, help="another number of epochs than the trainers' own")
    parser.add_argument("--iterations", metavar="I", type=int, help="another number of iterations per epoch")


def _add_test(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is tested on."""
    parser.add_argument(
        "--test",
        metavar=("IMAGES", "LABELS"),
        nargs=2,
        help="folders of test images and their labels; default: the validation cases",
    )
    parser.add_argument(
        "--transductive", action="store_true", help="allow that test images are among the unlabeled ones"
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the runs take place."""
    options.add_plans(parser)
    options.add_device(parser)
    parser.add_argument(
        "--jobs", metavar="N", type=int, help="runs side by side; default: 1, with an executor all of them"
    )
    parser.add_argument(
        "--executor",
        choices=["local", "slurm"],
        help="submit the runs with submitit; default: processes of this machine",
    )
    parser.add_argument(
        "--executor-options",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="for submitit, such as slurm_partition=gpu timeout_min=1440",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the benchmark; exit with an error if a run failed."""
    from nnunetv2_micd.benchmark import Grid, Length, run_benchmark

    grid = Grid(
        dataset=arguments.d,
        configuration=arguments.c,
        trainers=arguments.tr,
        budgets=arguments.n,
        seeds=arguments.seeds,
        plans=arguments.p,
        val_fraction=arguments.val,
        length=Length(arguments.epochs, arguments.iterations),
        test=tuple(arguments.test) if arguments.test else None,
        transductive=arguments.transductive,
        baseline=arguments.baseline,
        longer=arguments.longer,
    )
    failed = run_benchmark(
        grid,
        device=arguments.device,
        jobs=arguments.jobs,
        executor=arguments.executor,
        options=arguments.executor_options,
    )
    if failed:
        sys.exit(
            f"error: {len(failed)} runs failed; the others are done, and the same command repeats only what failed"
        )
