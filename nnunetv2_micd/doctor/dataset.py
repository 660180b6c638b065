"""Looks for what would keep a training on a certain dataset from running."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

from nnunetv2_micd.data.dataset import SPLITS_FILE, Dataset
from nnunetv2_micd.data.preprocessed import find_damaged, list_preprocessed, unlabeled_folder
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images
from nnunetv2_micd.data.unlabeled import find_unlabeled_cases
from nnunetv2_micd.doctor.installation import Finding
from nnunetv2_micd.training.memory import check_memory
from nnunetv2_micd.training.networks import check_architecture
from nnunetv2_micd.utils.files import shorten


def check_dataset(dataset: str, configuration: str | None, plans_name: str) -> list[Finding]:
    """Check a dataset: one configuration or, if None is given, all, of which one has to be fit for training."""
    try:
        data = Dataset.find(dataset, plans_name)
        splits = data.splits()
    except (ValueError, OSError) as error:
        return [Finding("problem", f"dataset {dataset}", str(error))]
    name = data.name
    names = data.plans.available_configurations
    if configuration is not None and configuration not in names:
        text = f"{plans_name} has no configuration {configuration}, only {', '.join(names)}"
        return [Finding("problem", name, text)]
    findings = [Finding("ok", name, f"planned: {plans_name} with {', '.join(names)}")]
    if splits is None:
        findings.append(Finding("ok", "splits", "none yet: the first training makes nnU-Net's five folds"))
    chosen = names if configuration is None else [configuration]
    checked = _any_will_do([_check_configuration(data, each) for each in chosen])
    return findings + [finding for each in checked for finding in each]


def _any_will_do(alternatives: list[list[Finding]]) -> list[list[Finding]]:
    """Return the findings of alternatives: where one of them has no problem, those of the others prevent nothing."""
    if all(any(finding.level == "problem" for finding in findings) for findings in alternatives):
        return alternatives
    return [
        [replace(finding, level="warning") if finding.level == "problem" else finding for finding in findings]
        for findings in alternatives
    ]


def _check_configuration(data: Dataset, name: str) -> list[Finding]:
    configuration = data.plans.get_configuration(name)
    folder = str(data.labeled_folder(name))
    labeled = list_preprocessed(folder)
    remedy = f"nnUNetv2_preprocess -d {data.number} -c {name} -plans_name {data.plans.plans_name}"
    if not labeled:
        return [Finding("problem", name, "not preprocessed", remedy)]
    try:
        check_architecture(configuration.network_arch_class_name)
        memory = check_memory(data.plans, name, data.dataset_json)
    except ValueError as error:
        return [Finding("problem", name, str(error))]
    except Exception as error:  # what is wrong with the plans shows in any way
        text = (
            f"the plans {data.plans.plans_name} describe no network that can be built: {' '.join(repr(error).split())}"
        )
        return [Finding("problem", name, text, "correct them, or plan the dataset again")]
    planned = data.dataset_json.get("numTraining", len(labeled))
    findings = [Finding("ok", name, f"{len(labeled)} labeled cases preprocessed")]
    if len(labeled) != planned:
        text = f"{len(labeled)} labeled cases preprocessed, but {planned} in dataset.json (numTraining)"
        findings = [Finding("warning", name, text, remedy)]
    unlabeled = len(list_preprocessed(unlabeled_folder(folder)))
    findings.append(Finding("ok", name, f"{_count_raw(data)} images in {IMAGES_FOLDER}, {unlabeled} preprocessed"))
    findings.append(memory)
    return findings + _check_labeled_files(data, name, folder, labeled, remedy) + _check_folds(data, name, labeled)


def _check_labeled_files(data: Dataset, name: str, folder: str, labeled: Sequence[str], remedy: str) -> list[Finding]:
    findings = []
    foreign = sorted(file.name for file in os.scandir(folder) if file.is_file() and not _is_of_nnunet(file.name))
    if foreign:
        text = f"files in {folder} keep nnU-Net from reading it ({shorten(foreign)})"
        findings.append(Finding("problem", name, text, "delete these files"))
    damaged = find_damaged(folder, labeled, data.dataset_json)
    if damaged:
        text = f"labeled cases in {folder} are damaged ({shorten(damaged)})"
        findings.append(Finding("problem", name, text, remedy))
    return findings


def _is_of_nnunet(file_name: str) -> bool:
    return file_name.endswith((".b2nd", ".pkl")) and not file_name.startswith(".")


def _count_raw(data: Dataset) -> str:
    """The raw data need not be on the machine that trains."""
    try:
        folder = os.path.join(data.raw, IMAGES_FOLDER)
    except (ValueError, OSError):
        return "unknown number of"
    return str(len(group_images(folder, data.dataset_json["file_ending"])) if os.path.isdir(folder) else 0)


def _check_folds(data: Dataset, name: str, labeled: Sequence[str]) -> list[Finding]:
    """Check every fold, or that of all cases where there are none yet; say once what is the same in several."""
    splits: dict[int | str, dict[str, list[str]]] = {"all": {"train": list(labeled), "val": []}}
    found = data.splits()
    if found is not None:
        splits = dict(enumerate(found))
    checked = _any_will_do([_check_fold(data, name, labeled, fold, entry) for fold, entry in splits.items()])
    folds: dict[Finding, list[int | str]] = {}
    for fold, findings in zip(splits, checked, strict=True):
        for finding in findings:
            folds.setdefault(finding, []).append(fold)
    return [
        replace(finding, text=f"fold{'s' if len(same) > 1 else ''} {', '.join(map(str, same))}: {finding.text}")
        for finding, same in folds.items()
    ]


def _check_fold(
    data: Dataset, name: str, labeled: Sequence[str], fold: int | str, entry: dict[str, list[str]]
) -> list[Finding]:
    train, val = entry["train"], entry["val"]
    absent = sorted({*train, *val}.difference(labeled))
    if absent:
        text = f"{SPLITS_FILE} names cases that are not preprocessed ({shorten(absent)})"
        return [Finding("problem", name, text, "correct the split, or preprocess these cases")]
    if not train:
        return [Finding("problem", name, "no labeled training case", f"add some to its train entry in {SPLITS_FILE}")]
    if not val and fold != "all":
        return [Finding("problem", name, "no validation case", f"add some to its val entry in {SPLITS_FILE}")]
    findings = []
    both = sorted(set(train).intersection(val))
    if both:
        text = f"training cases are validation cases, too ({shorten(both)})"
        findings.append(Finding("warning", name, text, f"correct {SPLITS_FILE}, unless it is meant so"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            unlabeled = find_unlabeled_cases(data, name, entry)
        except ValueError as error:
            return [*findings, Finding("problem", name, str(error))]
    text = f"{len(train)} labeled, {len(unlabeled)} unlabeled, {len(val)} validation"
    findings.append(Finding("ok", name, text))
    return findings + [Finding("warning", name, str(each.message)) for each in caught if each.category is UserWarning]
