"""Options that several commands share."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

Options = argparse._ActionsContainer
"""A parser, or a group of its options."""

DEFAULT_PLANS = "nnUNetPlans"  # as data.folders, which takes seconds to import
DEFAULT_TRAINER = "nnUNetTrainerSelfTraining"
DEFAULT_BASELINE = "nnUNetTrainer"


def add_dataset(parser: Options, text: str = "number or name of the dataset", required: bool = True) -> None:
    """Add ``-d``."""
    parser.add_argument("-d", metavar="DATASET", required=required, help=text)


def add_configuration(parser: Options, text: str = "configuration, such as 3d_fullres", required: bool = True) -> None:
    """Add ``-c``, one configuration."""
    parser.add_argument("-c", metavar="CONFIG", required=required, help=text)


def add_plans(parser: Options) -> None:
    """Add ``-p``."""
    parser.add_argument("-p", metavar="PLANS", default=DEFAULT_PLANS, help="name of the plans; default: %(default)s")


def add_device(parser: Options) -> None:
    """Add ``-device``, named as in nnU-Net's commands."""
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cuda", help="default: %(default)s")


def add_seeds(parser: Options, text: str) -> None:
    """Add ``--seeds``."""
    parser.add_argument("--seeds", metavar="SEED", type=int, nargs="+", default=[0], help=f"{text}; default: 0")


def add_validation_share(parser: Options) -> None:
    """Add ``--val``."""
    parser.add_argument("--val", metavar="FRACTION", type=float, default=0.2, help="share for validation; default: 0.2")


def add_grid(parser: Options, trainers: str, budgets: str) -> None:
    """Add the options for a :class:`Grid`: dataset, trainers, budgets, seeds and length.

    Args:
        parser: Parser of the command.
        trainers: Help text of ``-tr``.
        budgets: Help text of ``-n``.
    """
    group = parser.add_argument_group("what is trained")
    add_dataset(group)
    add_configuration(group)
    add_plans(group)
    group.add_argument("-tr", metavar="TRAINER", nargs="+", required=True, help=trainers)
    group.add_argument("-n", metavar="COUNT", nargs="+", required=True, help=budgets)
    add_seeds(group, "each draws other labeled cases")
    add_validation_share(group)
    group.add_argument("--epochs", metavar="E", type=int, help="another number of epochs than the trainers' own")
    group.add_argument("--iterations", metavar="I", type=int, help="another number of iterations per epoch")


def grid_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a :class:`Grid` from the options of `add_grid`."""
    from nnunetv2_micd.benchmark import Length

    return {
        "dataset": arguments.d,
        "configuration": arguments.c,
        "trainers": arguments.tr,
        "budgets": arguments.n,
        "seeds": arguments.seeds,
        "plans": arguments.p,
        "val_fraction": arguments.val,
        "length": Length(arguments.epochs, arguments.iterations),
    }


def add_execution(parser: Options) -> None:
    """Add the options that say how the runs of a grid take place."""
    group = parser.add_argument_group("how it is run")
    add_device(group)
    group.add_argument(
        "--jobs", metavar="N", type=int, help="runs side by side; default: 1, with an executor all of them"
    )
    group.add_argument(
        "--executor",
        choices=["slurm"],
        help="submit the runs as jobs with submitit; default: processes of this machine",
    )
    group.add_argument(
        "--executor-options",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="for submitit, such as slurm_partition=gpu timeout_min=1440",
    )


def execution_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `run_benchmark` and `run_tuning` from the options of `add_execution`."""
    return {
        "device": arguments.device,
        "jobs": arguments.jobs,
        "executor": arguments.executor,
        "options": arguments.executor_options,
    }


def exit_if_failed(failed: Sequence[Any]) -> None:
    """End the process with an error if runs failed."""
    if failed:
        from nnunetv2_micd.utils.wording import counted

        sys.exit(
            f"error: {counted(len(failed), 'run')} failed; the same command repeats only what failed or is not done"
        )
