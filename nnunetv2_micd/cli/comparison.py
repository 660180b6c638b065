"""The commands ``nnUNetv2_micd benchmark``, ``report`` and ``profile``, which compare trainers."""

import argparse
import sys
from typing import Any


def add_benchmark(commands: Any) -> None:
    """Add the command to those of nnUNetv2_micd."""
    benchmark = commands.add_parser(
        "benchmark",
        help="train and test several trainers with few labels, nnU-Net's own among them",
        description="Trains each trainer, and the baseline, with each number of labels and each seed, and predicts. "
        "Called again it goes on where it was interrupted. Exits with 1 if a run failed.",
    )
    benchmark.add_argument("-d", metavar="DATASET", required=True, help="number or name of the dataset")
    benchmark.add_argument("-c", metavar="CONFIG", required=True, help="configuration, such as 3d_fullres")
    benchmark.add_argument("-tr", metavar="TRAINER", nargs="+", required=True, help="trainers; the baseline is added")
    benchmark.add_argument(
        "-n",
        metavar="COUNT",
        nargs="+",
        required=True,
        help="how many cases are labeled: 6, 10%%, or all (for the baseline only); f0: those of fold 0",
    )
    benchmark.add_argument(
        "--baseline",
        metavar="TRAINER",
        default="nnUNetTrainer",
        help="trained on the labels alone, the row that all others are compared with; default: %(default)s",
    )
    benchmark.add_argument(
        "--longer",
        metavar="TIMES",
        type=int,
        nargs="+",
        default=[],
        help="train the baseline so many times as long as well, for the comparison at equal time; such as 2 4",
    )
    benchmark.add_argument(
        "--seeds", metavar="SEED", type=int, nargs="+", default=[0], help="each draws other labeled cases; default: 0"
    )
    benchmark.add_argument(
        "--val", metavar="FRACTION", type=float, default=0.2, help="share for validation; default: 0.2"
    )
    benchmark.add_argument("--epochs", metavar="E", type=int, help="another number of epochs than the trainers' own")
    benchmark.add_argument("--iterations", metavar="I", type=int, help="another number of iterations per epoch")
    benchmark.add_argument(
        "--test",
        metavar=("IMAGES", "LABELS"),
        nargs=2,
        help="folders of test images and their labels; default: the validation cases",
    )
    benchmark.add_argument(
        "--transductive", action="store_true", help="allow that test images are among the unlabeled ones"
    )
    benchmark.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans; default: %(default)s")
    benchmark.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cuda", help="default: %(default)s")
    benchmark.add_argument(
        "--jobs", metavar="N", type=int, help="runs side by side; default: 1, with an executor all of them"
    )
    benchmark.add_argument(
        "--executor",
        choices=["local", "slurm"],
        help="submit the runs with submitit; default: processes of this machine",
    )
    benchmark.add_argument(
        "--executor-options",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="for submitit, such as slurm_partition=gpu timeout_min=1440",
    )
    benchmark.set_defaults(run=_benchmark)


def add_report(commands: Any) -> None:
    """Add the command to those of nnUNetv2_micd."""
    report = commands.add_parser(
        "report",
        help="tables, figures and a page of the finished runs of a benchmark",
        description="Scores the predictions of the runs that nnUNetv2_micd benchmark has finished and writes tables, "
        "figures and a page (report.html) of them. Trains nothing.",
    )
    report.add_argument("-d", metavar="DATASET", required=True, help="number or name of the dataset")
    report.add_argument("-o", metavar="FOLDER", required=True, help="folder to write into")
    report.add_argument("-c", metavar="CONFIG", help="configuration; needed where there are runs of several")
    report.add_argument("-p", metavar="PLANS", help="name of the plans; needed where there are runs of several")
    report.add_argument(
        "--tolerance", metavar="MM", type=float, default=1.0, help="of the normalized surface Dice in mm; default: 1"
    )
    report.add_argument(
        "--epochs", metavar="N", type=int, help="only runs of this length, and longer ones of the baseline"
    )
    report.add_argument(
        "--baseline",
        metavar="TRAINER",
        default="nnUNetTrainer",
        help="that of the benchmark, against which all others are tested; default: %(default)s",
    )
    report.add_argument(
        "-np", metavar="N", type=int, default=1, help="number of processes for the scores; default: %(default)s"
    )
    report.set_defaults(run=_report)


def add_profile(commands: Any) -> None:
    """Add the command to those of nnUNetv2_micd."""
    profile = commands.add_parser(
        "profile",
        help="measure what a training step of some trainers costs",
        description="Takes some steps with each trainer and with nnU-Net's own, in turns, and prints what they took: "
        "time by parts, beside that of the passes alone (floor), and memory. Trains nothing.",
    )
    profile.add_argument("-d", metavar="DATASET", required=True, help="number or name of the dataset")
    profile.add_argument("-c", metavar="CONFIG", required=True, help="configuration, such as 3d_fullres")
    profile.add_argument("-f", metavar="FOLD", default="0", help="fold whose patches are loaded; default: 0")
    profile.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans; default: %(default)s")
    profile.add_argument(
        "-tr", metavar="TRAINER", nargs="+", default=["nnUNetTrainerMICD"], help="trainers; default: nnUNetTrainerMICD"
    )
    profile.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cuda", help="default: %(default)s")
    profile.add_argument("--rounds", metavar="N", type=int, default=10, help="steps of each; default: %(default)s")
    profile.add_argument("-o", metavar="FOLDER", help="folder for the table as CSV and a picture of it")
    profile.set_defaults(run=_profile)


def _benchmark(arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.benchmark.grid import Grid
    from nnunetv2_micd.benchmark.scheduler import run_benchmark
    from nnunetv2_micd.benchmark.trainers import Length

    grid = Grid(
        arguments.d,
        arguments.c,
        arguments.tr,
        arguments.n,
        arguments.seeds,
        arguments.p,
        arguments.val,
        Length(arguments.epochs, arguments.iterations),
        tuple(arguments.test) if arguments.test else None,
        arguments.transductive,
        arguments.baseline,
        arguments.longer,
    )
    failed = run_benchmark(grid, arguments.device, arguments.jobs, arguments.executor, arguments.executor_options)
    if failed:
        sys.exit(
            f"error: {len(failed)} runs failed; the others are done, and the same command repeats only what failed"
        )


def _report(arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.report.write import write_report

    page, notes = write_report(
        arguments.d,
        arguments.o,
        arguments.c,
        arguments.p,
        arguments.tolerance,
        arguments.epochs,
        arguments.np,
        arguments.baseline,
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"Written: {page}; the tables lie beside it as CSV and Markdown")


def _profile(arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.profiling.measure import profile_dataset
    from nnunetv2_micd.profiling.report import format_table, make_table, write_profile

    fold = int(arguments.f) if arguments.f.isdecimal() else arguments.f
    costs = profile_dataset(
        arguments.d, arguments.c, arguments.p, arguments.tr, arguments.device, fold, arguments.rounds
    )
    print(format_table(make_table(costs)))
    if arguments.o:
        print(f"Written: {write_profile(costs, arguments.o)}; the table lies beside it as CSV")
