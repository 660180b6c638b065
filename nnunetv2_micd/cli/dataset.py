"""``nnUNetv2_micd dataset``: makes a raw dataset from ordinary folders."""

import argparse
import shlex
import sys
from typing import Any


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser(
        "dataset",
        help="make a raw dataset from folders of images and labels",
        description="Lays out the raw dataset that nnU-Net wants, of links to your files, which stay as they are. "
        "Reads all labels to find their values, and checks that they fit their images. Ends with the next commands.",
        epilog="Example: nnUNetv2_micd dataset -d 4 -n Hippocampus -i IMAGES -l LABELS -u UNLABELED --channels MR",
    )
    parser.add_argument("-d", metavar="NUMBER", type=int, required=True, help="number of the new dataset")
    parser.add_argument("-n", metavar="NAME", required=True, help="its name, such as Liver")
    parser.add_argument(
        "-i",
        metavar="FOLDER",
        nargs="+",
        required=True,
        help="folder of the labeled images; with several channels one for each, with files of the same names",
    )
    parser.add_argument("-l", metavar="FOLDER", required=True, help="folder of their labels, named like the images")
    parser.add_argument("-u", metavar="FOLDER", nargs="+", default=[], help="folders of the unlabeled images, like -i")
    parser.add_argument("-t", metavar="FOLDER", nargs="+", default=[], help="folders of images to predict, like -i")
    parser.add_argument(
        "--channels", metavar="NAME", nargs="+", help="name of each channel: CT for CT, such as MR or T1 T2 otherwise"
    )
    parser.add_argument(
        "--classes",
        metavar="NAME",
        nargs="+",
        default=[],
        help="name of each value of the labels but 0, in their order",
    )
    parser.add_argument("--copy", action="store_true", help="copy the files instead of linking to them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Make the dataset, and print the next commands."""
    from nnunetv2_micd.cli.options import DEFAULT_TRAINER
    from nnunetv2_micd.data.new_dataset import check_names, check_number_of_names, make_dataset
    from nnunetv2_micd.data.new_dataset_content import PHOTOGRAPH_CHANNELS, read_content
    from nnunetv2_micd.data.new_dataset_files import Sources, find_files

    # All that is wrong with the words of the command is said before the labels are read, which may take minutes.
    channels = arguments.channels or []
    check_names(arguments.d, arguments.n, channels, arguments.classes)
    files = find_files(Sources(arguments.i, arguments.l, arguments.u, arguments.t))
    if files.num_channels is not None:
        channels = channels or _ask(files.num_channels)
        check_names(arguments.d, arguments.n, channels, arguments.classes)
        check_number_of_names(channels, files.num_channels, "channels of the images")
    content = read_content(files)
    if not channels:
        of_photograph = PHOTOGRAPH_CHANNELS.get(content.num_channels) if content.is_2d else None
        channels = of_photograph or _ask(content.num_channels)
    folder = make_dataset(arguments.d, arguments.n, files, content, channels, arguments.classes, arguments.copy)
    values = ", ".join(map(str, [0, *content.values]))
    if not content.has_consecutive_values:
        values += f", written as {', '.join(map(str, range(len(content.values) + 1)))}"
    numbers = [(len(files.labeled), "labeled"), (len(files.unlabeled), "unlabeled"), (len(files.test), "to predict")]
    listed = ", ".join(f"{number} {what}" for number, what in numbers if number)
    print(f"{folder}: images: {listed}; labels: {values}")
    if not arguments.classes:
        names = ", ".join(f"class_{value}" for value in content.values)
        print(f"The classes are called {names}; give them other names in dataset.json, or with --classes.")
    if not files.unlabeled:
        print("There are no unlabeled images; give their folder with -u, or put them into imagesUn later.")
    configuration = "2d" if content.is_2d else "3d_fullres"
    print("Next:")
    print(f"nnUNetv2_plan_and_preprocess -d {arguments.d} -c {configuration} --verify_dataset_integrity")
    if files.unlabeled:
        print(f"nnUNetv2_micd preprocess -d {arguments.d} -c {configuration}")
    print(f"nnUNetv2_micd doctor -d {arguments.d}")
    fold = 0 if len(files.labeled) > 1 else "all"
    trainer = DEFAULT_TRAINER if files.unlabeled else f"{DEFAULT_TRAINER}_LabeledOnly"
    print(f"nnUNetv2_train {arguments.d} {configuration} {fold} -tr {trainer}")
    if files.test:
        images = shlex.quote(str(folder / "imagesTs"))
        options = f"-d {arguments.d} -c {configuration} -f {fold} -tr {trainer}"
        print(f"nnUNetv2_predict -i {images} -o PREDICTIONS {options}")


def _ask(number: int) -> list[str]:
    """Ask for the names of the channels, by which nnU-Net chooses the normalization.

    Raises:
        ValueError: There is nobody to ask, or no answer.
    """
    question = "Name of channel {} (CT for CT images, or such as MR, T1, PET): "
    try:
        if sys.stdin.isatty():
            return [input(question.format(index)) for index in range(number)]
    except EOFError:  # Ctrl-D
        print()
    raise ValueError(
        f"nnU-Net chooses the normalization by the name of each channel ({number} here); "
        "give them: --channels CT for CT images, --channels MR or T1 T2 for others"
    )
