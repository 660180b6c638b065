"""Predicts all unlabeled images with the networks of a training and orders them by what these are unsure of."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.groups import load_groups
from nnunetv2_micd.data.preprocessed import find_unfinished, list_preprocessed, preprocessing_fingerprint
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER
from nnunetv2_micd.data.results import FINAL, ModelFolder
from nnunetv2_micd.data.splits import SPLITS_FILE, Entry, default_splits, load_split_unlabeled
from nnunetv2_micd.data.unlabeled import UnlabeledCase, find_unlabeled_cases, raw_cases
from nnunetv2_micd.ranking.assess import DisputedSlice
from nnunetv2_micd.ranking.committee import Committee
from nnunetv2_micd.ranking.judge import Judge, load_properties
from nnunetv2_micd.ranking.page import write_page
from nnunetv2_micd.ranking.script import write_script
from nnunetv2_micd.ranking.selection import choose, groups_of
from nnunetv2_micd.training.loader import UnlabeledImages
from nnunetv2_micd.utils.devices import check_device
from nnunetv2_micd.utils.files import read_json_object, shorten
from nnunetv2_micd.utils.locks import new_folder

TABLE, PAGE, SCRIPT, SEGMENTATIONS = "ranking.csv", "ranking.html", "add_labels.sh", "segmentations"
"""What a ranking consists of; the script only where proposals lie in ``imagesUn``."""


@dataclass(frozen=True)
class Ranking:
    """A ranking of unlabeled images.

    Attributes:
        folder: Folder of the table, the page, the segmentations and the script.
        table: One row for each image, the proposals first, then the least certain: ``case``, ``proposed``,
            ``uncertainty`` (mean entropy of the voxels that may be foreground), and the same for each class.
    """

    folder: Path
    table: pd.DataFrame

    @property
    def proposals(self) -> list[str]:
        """The images to label next, in the order of choice."""
        return list(self.table["case"][self.table["proposed"]])


def rank_unlabeled(
    model: ModelFolder,
    fold: int | str,
    output: str | os.PathLike[str],
    number: int = 10,
    device: torch.device = torch.device("cuda"),  # noqa: B008 - a constant
    checkpoint_name: str = FINAL,
) -> Ranking:
    """Order the unlabeled images of a training by what its networks are unsure of, and propose some to label next.

    Writes a table, a page with a picture of each proposal, a segmentation of each proposal to be corrected, and a
    script that adds the corrected proposals to the labeled cases.

    If this fails or is interrupted, what is found out is kept in a hidden folder beside ``output``, and the same call
    goes on there.

    Args:
        model: The trained model.
        fold: The fold, or ``"all"``.
        output: Folder to make.
        number: Number of proposals.
        device: Device for the predictions.
        checkpoint_name: File name of the checkpoint.

    Raises:
        FileExistsError: ``output`` exists and is not an empty folder.
        FileNotFoundError: There is no such training.
        ValueError: There are no unlabeled images, one cannot be predicted, or the model is the second stage of a
            cascade.

    Examples:
        >>> rank_unlabeled(ModelFolder(4, "3d_fullres"), 0, "next").proposals  # doctest: +SKIP
        ['hippocampus_017', 'hippocampus_204', ...]
    """
    if number < 1:
        raise ValueError(f"The number of proposals must be at least 1, not {number}")
    check_device(device.type)
    target = Path(output).resolve()
    dataset = Dataset.find(model.dataset, model.plans)
    if dataset.configuration(model.configuration).previous_stage_name is not None:
        raise ValueError(
            f"{model.configuration} is the second stage of a cascade; rank with a model of its first stage instead"
        )
    checkpoint = model.path() / f"fold_{fold}" / checkpoint_name
    if not checkpoint.is_file():
        raise FileNotFoundError(f"There is no {checkpoint}; train it first: {model.train_command(fold)}")
    _check_plans(model, dataset, fold)
    entry, groups = _entry(dataset, model.configuration, fold), load_groups(dataset.name)
    cases = find_unlabeled_cases(dataset, model.configuration, entry)
    _check_properties(cases, dataset, model)
    kept = target.with_name(f".{target.name}.unfinished")
    committee = Committee(model.path(), fold, checkpoint_name, device)
    judge = Judge(committee, checkpoint, UnlabeledImages(cases), kept)
    with new_folder(target, f"ranking into {target}") as incomplete:
        segmentations = incomplete / SEGMENTATIONS
        segmentations.mkdir()
        for name in ("dataset.json", "plans.json"):  # as nnUNetv2_predict does
            shutil.copyfile(model.path() / name, segmentations / name)
        rows, features = judge.judge_all()
        table = _order(rows, features, number, groups, [*entry["train"], *entry["val"]])
        ranking = Ranking(target, table)
        table.to_csv(incomplete / TABLE, index=False, float_format="%.4f")
        raw, hidden = raw_cases(dataset), entry.get("unlabeled", [])
        addable = [case for case in ranking.proposals if case in raw]
        if addable:
            write_script(incomplete / SCRIPT, dataset, model, fold, addable, SEGMENTATIONS, device.type)
        elsewhere = [case for case in ranking.proposals if case not in {*raw, *hidden}]
        steps = next_steps(addable, [case for case in ranking.proposals if case in hidden], elsewhere)
        slices = judge.segment_all(ranking.proposals, segmentations)
        _write_page(incomplete / PAGE, ranking, slices, committee, model, fold, steps)
    shutil.rmtree(kept, ignore_errors=True)  # the ranking is complete all the same
    return ranking


def _check_plans(model: ModelFolder, dataset: Dataset, fold: int | str) -> None:
    """Check that the images are preprocessed as those that the model was trained on."""
    plans, dataset_json = (read_json_object(model.path() / name) for name in ("plans.json", "dataset.json"))
    manager = PlansManager(plans)
    of_model = preprocessing_fingerprint(manager, manager.get_configuration(model.configuration), dataset_json)
    if of_model != dataset.fingerprint(model.configuration):
        raise ValueError(
            f"{model.path()} was trained with other plans than those of {dataset.name} now; train it again: "
            f"{model.train_command(fold)}"
        )


def _check_properties(cases: Sequence[UnlabeledCase], dataset: Dataset, model: ModelFolder) -> None:
    """Check the geometry of each image, without which no segmentation can be written, before hours of prediction."""
    of_folder: dict[str, list[str]] = {}
    for case in cases:
        of_folder.setdefault(case.folder, []).append(case.identifier)
    missing = [case for folder, names in of_folder.items() for case in find_unfinished(folder, names)]
    command = f"nnUNetv2_micd preprocess -d {dataset.number} -c {model.configuration} -p {model.plans}"
    if missing:
        raise ValueError(f"Some images are not preprocessed to the end ({shorten(missing)}); run: {command}")
    # SimpleITK's image of all channels in one file: nnU-Net reads it, but has no file for its segmentation.
    four_axes = [
        case.identifier
        for case in cases
        if len(load_properties(case.folder, case.identifier).get("sitk_stuff", {}).get("spacing", ())) > 3
    ]
    if four_axes:
        raise ValueError(
            f"nnU-Net cannot write segmentations of 4D images ({shorten(four_axes)}); export each channel to a 3D file "
            f"of its own, named CASE_0000, CASE_0001 and so on, and run: {command}"
        )


def _entry(dataset: Dataset, configuration: str, fold: int | str) -> Entry:
    """Return the labeled cases of a fold and those whose labels it hides, as the training used them."""
    labeled = list_preprocessed(dataset.labeled_folder(configuration))
    if not isinstance(fold, int):
        return {"train": labeled, "val": labeled}
    hidden = load_split_unlabeled(dataset.splits_file, fold)
    splits = dataset.splits() or default_splits(labeled, load_groups(dataset.name))
    if fold >= len(splits):
        raise ValueError(
            f"There is no fold {fold} of the {len(labeled)} labeled cases, but folds 0 to {len(splits) - 1}"
        )
    return {**splits[fold], "unlabeled": hidden}


def _order(
    rows: Sequence[dict[str, Any]], features: Tensor, number: int, groups: dict[str, str], labeled: Sequence[str]
) -> pd.DataFrame:
    """Return the table: first the proposals in the order of choice, then the others, the least certain first."""
    table = pd.DataFrame(rows)
    group_of_each, labeled_groups = (groups_of(cases, groups) for cases in (table["case"], labeled))
    chosen = choose(table["uncertainty"].tolist(), features, number, group_of_each, labeled_groups)
    others = table.drop(index=chosen).sort_values("uncertainty", ascending=False, kind="stable")
    table = pd.concat((table.loc[chosen], others), ignore_index=True)
    table.insert(1, "proposed", table.index < len(chosen))
    return table


def _write_page(
    file: Path,
    ranking: Ranking,
    slices: Sequence[DisputedSlice],
    committee: Committee,
    model: ModelFolder,
    fold: int | str,
    steps: Sequence[str],
) -> None:
    table = ranking.table[ranking.table["proposed"]]
    rows = [
        {name: f"{100 * value:.0f} %" for name, value in row.items() if value == value}
        for row in table.drop(columns=["case", "proposed"]).to_dict("records")
    ]
    facts = {
        "Dataset": committee.predictor.plans_manager.dataset_name,
        "Model": f"{model.trainer}, {model.configuration}, fold {fold}",
        "Images": f"{len(ranking.table)} without labels, {len(table)} proposed",
        "Uncertainty": "mean entropy of the voxels that may be foreground, as a share of the largest possible one",
        "Choice": "the most uncertain image, then such as are uncertain and unlike those before",
    }
    labels = committee.predictor.dataset_json["labels"]
    names = {value: name for name, value in labels.items() if isinstance(value, int) and value > 0}
    write_page(file, facts, slices, rows, names, steps)


def next_steps(addable: Sequence[str], hidden: Sequence[str], elsewhere: Sequence[str]) -> list[str]:
    """Return sentences that say what to do with the proposals.

    Args:
        addable: Proposals in ``imagesUn``, for which there is a script.
        hidden: Proposals with a label that the fold hides.
        elsewhere: Proposals whose raw images are not in ``imagesUn`` of this machine.
    """
    steps = []
    if addable or elsewhere:
        steps.append(f"Correct the proposals in the folder {SEGMENTATIONS}, for instance in ITK-SNAP or 3D Slicer.")
    if addable:
        steps.append(
            f"Look at {SCRIPT}, delete the lines of images that you did not correct, and run it: it moves the images "
            "to the labeled ones, preprocesses and trains again."
        )
    if elsewhere:
        steps.append(
            f"The raw images of {shorten(elsewhere)} are not in {IMAGES_FOLDER} here; link them into it, and "
            "nnUNetv2_micd label makes labeled cases of them."
        )
    if hidden:
        steps.append(
            f"{shorten(hidden)} are used without the labels that they have: move them from unlabeled to train in "
            f"{SPLITS_FILE}, and train again."
        )
    return steps
