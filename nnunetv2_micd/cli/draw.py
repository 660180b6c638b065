"""``nnUNetv2_micd draw``: draws predictions beside their images."""

import argparse
from typing import Any


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "draw",
        help="draw predictions beside their images",
        description="Draws some cases, a row each: image, label where there is one, and predictions, at the slice with "
        "the most foreground. With labels the cases range from the worst to the best.",
        epilog="Example: nnUNetv2_micd draw -i IMAGES -p PREDICTIONS -o cases.png",
    )
    parser.add_argument("-i", metavar="FOLDER", required=True, help="folder of the images, named CASE_0000")
    parser.add_argument(
        "-p",
        metavar="FOLDER",
        nargs="+",
        required=True,
        help="folders that nnUNetv2_predict has written, a column each",
    )
    parser.add_argument("-l", metavar="FOLDER", help="folder of the labels")
    parser.add_argument("-o", metavar="FILE", default="predictions.png", help="picture; default: %(default)s")
    parser.add_argument("-n", metavar="N", type=int, default=4, help="number of cases; default: %(default)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Draw, and say where the picture is."""
    from nnunetv2_micd.report.predictions import draw_predictions

    print(f"Written: {draw_predictions(arguments.i, arguments.p, arguments.o, arguments.l, arguments.n)}")
