"""``nnUNetv2_micd rank``: proposes which unlabeled images to label next."""

import argparse
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "rank",
        help="propose which unlabeled images to label next",
        description="Predicts all unlabeled images of a training and orders them by how unsure the model is of them. "
        "Proposes images that are uncertain and unlike each other. Writes a table, a page with pictures, "
        "segmentations of the proposals to correct, and a script that adds the corrected ones to the labeled cases.",
        epilog="Example: nnUNetv2_micd rank -d 4 -c 3d_fullres -f 0 -n 10 -o NEXT",
    )
    options.add_dataset(parser)
    options.add_configuration(parser)
    parser.add_argument("-f", metavar="FOLD", required=True, help="trained fold: a number, or all")
    parser.add_argument("-o", metavar="FOLDER", required=True, help="the folder to make")
    parser.add_argument("-n", metavar="N", type=int, default=10, help="number of proposals; default: %(default)s")
    parser.add_argument("-tr", metavar="TRAINER", default=options.DEFAULT_TRAINER, help="trainer; default: %(default)s")
    options.add_plans(parser)
    options.add_device(parser)
    parser.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint to take; default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Rank, and print the proposals and what to do with them."""
    import torch

    from nnunetv2_micd.data.results import ModelFolder
    from nnunetv2_micd.ranking import rank_unlabeled
    from nnunetv2_micd.ranking.rank import PAGE

    if arguments.f != "all" and not arguments.f.isdecimal():
        raise ValueError(f"{arguments.f} is not a fold; give a number or all, such as: -f 0")
    ranking = rank_unlabeled(
        ModelFolder(arguments.d, arguments.c, trainer=arguments.tr, plans=arguments.p),
        fold=int(arguments.f) if arguments.f != "all" else "all",
        output=arguments.o,
        number=arguments.n,
        device=torch.device(arguments.device),
        checkpoint_name=arguments.chk,
    )
    print(f"To label next, of {len(ranking.table)} images, with their uncertainty:")
    for row in ranking.table[ranking.table["proposed"]].itertuples():
        print(f"  {row.case}  {100 * row.uncertainty:.0f} %")
    print(f"Pictures, and what to do: {ranking.folder / PAGE}")
