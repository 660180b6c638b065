"""``nnUNetv2_micd export``: makes a model folder that stock nnU-Net can predict with."""

import argparse
import shlex
from typing import Any

from nnunetv2_micd.cli import options


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "export",
        help="make a model folder that nnU-Net can predict with where this package is not installed",
        description="Copies a trained network into a folder for nnUNetv2_predict_from_modelfolder, which predicts the "
        "same with it and needs nothing but nnU-Net.",
        epilog="Example: nnUNetv2_micd export -d 4 -c 3d_fullres -f 0 -o MODEL_FOLDER",
    )
    options.add_dataset(parser)
    options.add_configuration(parser)
    parser.add_argument("-f", metavar="FOLD", nargs="+", required=True, help="trained folds: numbers, or all")
    parser.add_argument("-o", metavar="FOLDER", required=True, help="the folder to make")
    options.add_plans(parser)
    parser.add_argument("-tr", metavar="TRAINER", default=options.DEFAULT_TRAINER, help="trainer; default: %(default)s")
    parser.add_argument(
        "--network", choices=["a", "b"], default="a", help="which of MICD's networks; default: a, that of the plans"
    )
    parser.add_argument(
        "--as",
        dest="stock_trainer",
        metavar="TRAINER",
        default="nnUNetTrainer",
        help="nnU-Net's own trainer to predict with; default: %(default)s",
    )
    parser.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint to take; default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Export, and print the command that predicts with the folder; of a cascade also that for the stage before."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_micd.data.results import ModelFolder
    from nnunetv2_micd.export import export_model

    folder = export_model(
        ModelFolder(arguments.d, arguments.c, trainer=arguments.tr, plans=arguments.p),
        folds=arguments.f,
        output=arguments.o,
        network=arguments.network,
        stock_trainer=arguments.stock_trainer,
        checkpoint_name=arguments.chk,
    )
    previous = PlansManager(str(folder / "plans.json")).get_configuration(arguments.c).previous_stage_name
    model = f"-m {shlex.quote(str(folder))} -f {' '.join(arguments.f)}"
    print(
        "Predict with nnU-Net, here or elsewhere:\n"
        f"nnUNetv2_predict_from_modelfolder -i INPUT_FOLDER -o OUTPUT_FOLDER {model}"
        + (f" -prev_stage_predictions OUTPUT_FOLDER_{previous}" if previous else "")
    )
    if previous:
        print(
            f"OUTPUT_FOLDER_{previous} holds what the stage before predicts of the same images; to export that one:\n"
            f"nnUNetv2_micd export -d {arguments.d} -c {previous} -p {arguments.p} -tr {arguments.tr} -f FOLDS "
            f"-o MODEL_FOLDER_{previous}"
        )
