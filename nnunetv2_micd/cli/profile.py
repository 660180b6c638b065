"""``nnUNetv2_micd profile``: measures what a training step costs."""

import argparse
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "profile",
        help="measure what a training step of some trainers costs",
        description="Takes some steps with each trainer and with nnU-Net's own, in turns, and prints what they took: "
        "time by parts, beside the time of the passes alone (floor), and memory. Trains nothing.",
        epilog="Example: nnUNetv2_micd profile -d 4 -c 3d_fullres",
    )
    options.add_dataset(parser)
    options.add_configuration(parser)
    parser.add_argument("-f", metavar="FOLD", default="0", help="fold whose patches are loaded; default: 0")
    options.add_plans(parser)
    parser.add_argument(
        "-tr",
        metavar="TRAINER",
        nargs="+",
        default=[options.DEFAULT_TRAINER],
        help=f"trainers; default: {options.DEFAULT_TRAINER}",
    )
    options.add_device(parser)
    parser.add_argument("--rounds", metavar="N", type=int, default=10, help="steps of each; default: %(default)s")
    parser.add_argument("-o", metavar="FOLDER", help="folder for the table as CSV and a picture of it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write it if a folder is given."""
    from nnunetv2_micd.profiling.measure import profile_dataset
    from nnunetv2_micd.profiling.report import format_table, make_table, write_profile

    costs = profile_dataset(
        arguments.d,
        arguments.c,
        plans=arguments.p,
        trainers=arguments.tr,
        device=arguments.device,
        fold=int(arguments.f) if arguments.f.isdecimal() else arguments.f,
        rounds=arguments.rounds,
    )
    print(format_table(make_table(costs)))
    print("floor: the time of the passes through the networks alone")
    if arguments.o:
        print(f"Written: {write_profile(costs, arguments.o)}; the table lies beside it as CSV")
