"""Measures whether labels that `nnUNetv2_micd rank` chooses are worth more than labels drawn at random.

First makes folds: those of the given ones with further labels that a model of each has chosen. All cases have labels;
only their names are looked at. Then, when the new folds and drawn ones of the same size have been trained, compares
them on the validation cases:

    nnUNetv2_micd split -d 4 -n 2 --seeds 0 1 2        # folds 5 6 7
    nnUNetv2_micd split -d 4 -n 10 --seeds 0 1 2       # folds 8 9 10, each with the 2 cases of the same seed
    for fold in 5 6 7 8 9 10; do nnUNetv2_train 4 3d_fullres $fold -tr TRAINER; done
    python chosen_labels.py choose 4 3d_fullres TRAINER --folds 5 6 7 -n 8     # adds folds 11 12 13
    for fold in 11 12 13; do nnUNetv2_train 4 3d_fullres $fold -tr TRAINER; done
    python chosen_labels.py compare 4 3d_fullres TRAINER --drawn 8 9 10 --chosen 11 12 13
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from nnunetv2_micd.cli.main import errors_in_one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("dataset", help="name or number of the dataset")
    shared.add_argument("configuration")
    shared.add_argument("trainer")
    shared.add_argument("-p", default="nnUNetPlans", help="name of the plans")
    chooser = commands.add_parser("choose", parents=[shared])
    chooser.add_argument("--folds", type=int, nargs="+", required=True, help="trained folds")
    chooser.add_argument("-n", type=int, default=8, help="number of further labels")
    chooser.add_argument("-device", default="cpu")
    chooser.set_defaults(run=choose)
    comparer = commands.add_parser("compare", parents=[shared])
    comparer.add_argument("--drawn", type=int, nargs="+", required=True, help="folds with drawn labels")
    comparer.add_argument(
        "--chosen", type=int, nargs="+", required=True, help="folds with chosen ones, in the same order"
    )
    comparer.set_defaults(run=compare)
    arguments = parser.parse_args()
    arguments.run(arguments)


def choose(arguments: argparse.Namespace) -> None:
    """Add a fold with chosen labels for each given fold."""
    # nnU-Net is imported after --help and the environment, because it takes seconds and reads its variables.
    import torch

    from nnunetv2_micd.data.dataset import Dataset
    from nnunetv2_micd.data.results import ModelFolder
    from nnunetv2_micd.data.splits import lock_splits, write_splits
    from nnunetv2_micd.ranking import rank_unlabeled

    dataset = Dataset.find(arguments.dataset, arguments.p)
    model = ModelFolder(dataset.name, arguments.configuration, arguments.trainer, arguments.p)
    for fold in arguments.folds:
        with tempfile.TemporaryDirectory() as folder:
            device = torch.device(arguments.device)
            chosen = rank_unlabeled(model, fold, Path(folder, "ranking"), arguments.n, device).proposals
        with lock_splits(dataset.splits_file):
            splits = dataset.splits() or []
            entry = splits[fold]
            others = [case for case in entry["unlabeled"] if case not in chosen]
            splits.append({"train": sorted([*entry["train"], *chosen]), "val": entry["val"], "unlabeled": others})
            write_splits(splits, dataset.splits_file)
        print(f"fold {len(splits) - 1}: that of fold {fold} and {', '.join(chosen)}")


def compare(arguments: argparse.Namespace) -> None:
    """Print the mean Dice of both kinds of folds, and their difference over the validation cases."""
    from nnunetv2_micd.data.dataset import Dataset
    from nnunetv2_micd.data.groups import group_cases, load_groups
    from nnunetv2_micd.data.results import ModelFolder
    from nnunetv2_micd.report.statistics import compare_paired

    folder = ModelFolder(arguments.dataset, arguments.configuration, arguments.trainer, arguments.p).path()
    drawn, chosen = (
        [read_dice(folder / f"fold_{fold}") for fold in folds] for folds in (arguments.drawn, arguments.chosen)
    )
    for name, folds in (("drawn", drawn), ("chosen", chosen)):
        means = [100 * np.mean(list(dice.values())) for dice in folds]
        listed = " ".join(f"{mean:.1f}" for mean in means)
        print(f"{name:8}{np.mean(means):6.1f} +- {np.std(means, ddof=1):.1f}   {listed}")
    gains = {case: np.mean([b[case] - a[case] for a, b in zip(drawn, chosen, strict=True)]) for case in drawn[0]}
    groups = group_cases(list(gains), load_groups(Dataset.find(arguments.dataset, arguments.p).name))
    result = compare_paired([float(np.mean([gains[case] for case in cases])) for cases in groups.values()])
    interval = f"{100 * result.low:.1f} to {100 * result.high:.1f}"
    print(f"chosen - drawn: {100 * result.difference:+.1f} ({interval}), p {result.p:.2g}, n {result.n}")


def read_dice(fold_folder: Path) -> dict[str, float]:
    """Return the Dice of each validation case, mean over the classes that are in truth or prediction."""
    ending = json.loads((fold_folder.parent / "dataset.json").read_text())["file_ending"]
    summary = json.loads((fold_folder / "validation" / "summary.json").read_text())
    return {
        Path(case["prediction_file"]).name.removesuffix(ending): float(
            np.nanmean([values["Dice"] for values in case["metrics"].values()])
        )
        for case in summary["metric_per_case"]
    }


if __name__ == "__main__":
    with errors_in_one_sentence():
        main()
