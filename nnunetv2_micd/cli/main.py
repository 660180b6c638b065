"""The command ``nnUNetv2_micd``, for what nnU-Net's own commands do not do."""

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.cli.comparison import add_benchmark, add_profile, add_report


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, by default that of the process."""
    arguments = _make_parser().parse_args(argv)
    with errors_in_one_sentence():
        arguments.run(arguments)


@contextmanager
def errors_in_one_sentence() -> Iterator[None]:
    """End the process with the message of a `ValueError` or `OSError` instead of a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nnUNetv2_micd", description="Semi-supervised training with nnU-Net.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    path = commands.add_parser(
        "path",
        help="print the folder of the trainers, for nnUNet_extTrainer",
        description="Prints the folder in which nnU-Net finds the trainers of this package, for: "
        'export nnUNet_extTrainer="$(nnUNetv2_micd path)"',
    )
    path.set_defaults(run=_path)

    preprocess = commands.add_parser(
        "preprocess",
        help="preprocess the unlabeled images of a dataset",
        description="Preprocesses the images in imagesUn of the raw dataset, named CASE_0000.nii.gz like those in "
        "imagesTr. They need no labels. Images that are done already are skipped.",
    )
    preprocess.add_argument("-d", metavar="DATASET", required=True, help="number or name of the dataset")
    preprocess.add_argument(
        "-c", metavar="CONFIG", nargs="+", help="configurations; default: all that nnU-Net preprocessed"
    )
    preprocess.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans; default: %(default)s"
    )
    preprocess.add_argument("-i", metavar="FOLDER", nargs="+", help="folders of the images; default: imagesUn")
    preprocess.add_argument(
        "-np", metavar="N", type=int, help="number of processes; default: nnU-Net's, at most one a core"
    )
    preprocess.add_argument("--overwrite", action="store_true", help="preprocess again what is done already")
    preprocess.set_defaults(run=_preprocess)

    split = commands.add_parser(
        "split",
        help="add folds in which only some cases keep their labels",
        description="Adds to splits_final.json one fold for each seed: a few labeled cases, the other training cases "
        "without their labels, and the same validation cases in all of them.",
    )
    split.add_argument("-d", metavar="DATASET", required=True, help="number or name of the dataset")
    split.add_argument("-n", metavar="COUNT", required=True, help="how many cases keep their labels: 6, or 10%%")
    split.add_argument(
        "--seeds", metavar="SEED", type=int, nargs="+", default=[0], help="one fold for each; default: 0"
    )
    split.add_argument("--val", metavar="FRACTION", type=float, default=0.2, help="share for validation; default: 0.2")
    split.add_argument(
        "--as-dataset",
        metavar="NUMBER",
        type=int,
        help="make raw datasets instead, this number for the first seed and the following for the others: imagesTr "
        "holds the labeled cases only, imagesUn the others, imagesTs and labelsTs those for validation",
    )
    split.set_defaults(run=_split)
    _add_list(commands)
    _add_doctor(commands)
    _add_export(commands)
    add_report(commands)
    add_benchmark(commands)
    add_profile(commands)
    return parser


def _add_list(commands: Any) -> None:
    trainers = commands.add_parser(
        "list", help="list the trainers", description="Lists the trainers for nnUNetv2_train."
    )
    trainers.set_defaults(run=_list)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="find out what keeps a training from running",
        description="Checks the installation, nnU-Net's folders and, with -d, whether a dataset is fit for training. "
        "Changes nothing. Exits with 1 if something prevents training.",
    )
    doctor.add_argument("-d", metavar="DATASET", help="number or name of a dataset to check as well")
    doctor.add_argument("-c", metavar="CONFIG", help="configuration; default: all, of which one has to be fit")
    doctor.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans; default: %(default)s")
    doctor.set_defaults(run=_doctor)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="make a model folder that nnU-Net predicts with where this package is not",
        description="Copies a trained network into a folder for nnUNetv2_predict_from_modelfolder, which predicts the "
        "same with it and needs nothing but nnU-Net.",
    )
    export.add_argument("-d", metavar="DATASET", required=True, help="number or name of the dataset")
    export.add_argument("-c", metavar="CONFIG", required=True, help="configuration, such as 3d_fullres")
    export.add_argument("-f", metavar="FOLD", nargs="+", required=True, help="trained folds: numbers, or all")
    export.add_argument("-o", metavar="FOLDER", required=True, help="the folder to make")
    export.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans; default: %(default)s")
    export.add_argument("-tr", metavar="TRAINER", default="nnUNetTrainerMICD", help="trainer; default: %(default)s")
    export.add_argument(
        "--network", choices=["a", "b"], default="a", help="which of MICD's networks; default: a, that of the plans"
    )
    export.add_argument(
        "--as",
        dest="stock_trainer",
        metavar="TRAINER",
        default="nnUNetTrainer",
        help="nnU-Net's own trainer to predict with; default: %(default)s",
    )
    export.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint to take; default: %(default)s"
    )
    export.set_defaults(run=_export)


def _path(_: argparse.Namespace) -> None:
    print(TRAINER_FOLDER)
    if sys.stdout.isatty():  # somebody looks; in "$(nnUNetv2_micd path)" nobody does
        print('nnU-Net finds the trainers after: export nnUNet_extTrainer="$(nnUNetv2_micd path)"', file=sys.stderr)


def _preprocess(arguments: argparse.Namespace) -> None:
    # imported here because it takes seconds, which "path" in a shell's start-up file should not
    from nnunetv2_micd.data.preprocessing import DEFAULT_NUM_PROCESSES, preprocess_unlabeled

    num_processes = DEFAULT_NUM_PROCESSES if arguments.np is None else arguments.np
    failures = preprocess_unlabeled(
        arguments.d, arguments.c, arguments.p, arguments.i, num_processes, arguments.overwrite
    )
    for failure in failures:
        print(f"{failure.configuration}, {failure.case}: {failure.reason}", file=sys.stderr)
    if failures:
        sys.exit(f"error: {len(failures)} images could not be preprocessed")


def _split(arguments: argparse.Namespace) -> None:
    if arguments.as_dataset is not None:
        _derive(arguments)
        return
    from nnunetv2_micd.data.budgets import add_budget_splits
    from nnunetv2_micd.data.folders import find_dataset, labeled_folders

    splits = add_budget_splits(arguments.d, arguments.n, arguments.seeds, arguments.val)
    print(f"{'fold':>6}{'seed':>6}{'labeled':>9}{'unlabeled':>11}{'val':>6}")
    for fold, seed, entry in splits:
        print(f"{fold:6}{seed:6}{len(entry['train']):9}{len(entry['unlabeled']):11}{len(entry['val']):6}")
    is_3d = any(folder.endswith("3d_fullres") for folder in labeled_folders(find_dataset(arguments.d)))
    print("Train with:")
    for fold, _, _ in splits:
        print(f"nnUNetv2_train {arguments.d} {'3d_fullres' if is_3d else '2d'} {fold} -tr nnUNetTrainerMICD")


def _derive(arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.data.derive import derive_dataset

    for number, seed in enumerate(arguments.seeds, start=arguments.as_dataset):
        name, entry = derive_dataset(arguments.d, number, arguments.n, seed, arguments.val)
        counts = f"{len(entry['train'])} labeled, {len(entry['unlabeled'])} unlabeled, {len(entry['val'])} for testing"
        print(f"{name}: {counts}")
    print("Plan, preprocess and train each as any other, here with all its labeled cases:")
    print(
        f"nnUNetv2_plan_and_preprocess -d {arguments.as_dataset} && nnUNetv2_micd preprocess -d {arguments.as_dataset}"
    )
    print(f"nnUNetv2_train {arguments.as_dataset} 3d_fullres all -tr nnUNetTrainerMICD")


def _list(_: argparse.Namespace) -> None:
    from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported

    width = max(map(len, exported.__all__))
    for name in exported.__all__:
        summary = (inspect.getdoc(getattr(exported, name)) or "").partition("\n\n")[0]
        print(f"{name:{width}}  {' '.join(summary.split())}")


def _doctor(arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.doctor.installation import diagnose, format_findings

    findings = diagnose(arguments.d, arguments.c, arguments.p)
    print(format_findings(findings))
    if any(finding.level == "problem" for finding in findings):
        sys.exit(1)


def _export(arguments: argparse.Namespace) -> None:
    from nnunetv2_micd.export import Training, export_model

    training = Training(arguments.d, arguments.c, arguments.tr, arguments.p)
    folder = export_model(training, arguments.f, arguments.o, arguments.network, arguments.stock_trainer, arguments.chk)
    print(
        "Predict with nnU-Net, here or elsewhere:\n"
        f"nnUNetv2_predict_from_modelfolder -i INPUT_FOLDER -o OUTPUT_FOLDER -m {folder} -f {' '.join(arguments.f)}"
    )
