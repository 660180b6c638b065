"""Checks that a training on a certain dataset can run."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.groups import group_cases, load_groups
from nnunetv2_micd.data.labeled import find_damaged_labeled
from nnunetv2_micd.data.orientations import describe_turned
from nnunetv2_micd.data.preprocessed import list_preprocessed
from nnunetv2_micd.data.raw_images import IMAGES_FOLDER, group_images
from nnunetv2_micd.data.splits import DEFAULT_FOLDS, KEYS, SPLITS_FILE, Entry, can_nnunet_split
from nnunetv2_micd.data.unlabeled import find_unlabeled_cases, raw_cases
from nnunetv2_micd.doctor.advice import advise
from nnunetv2_micd.doctor.finding import Finding
from nnunetv2_micd.training.memory import estimate_memory
from nnunetv2_micd.training.networks import check_architecture
from nnunetv2_micd.utils.errors import describe_error
from nnunetv2_micd.utils.files import shorten
from nnunetv2_micd.utils.wording import counted


def check_dataset(dataset_name: str, configuration: str | None, plans_name: str) -> list[Finding]:
    """Check a dataset.

    Args:
        dataset_name: Name or number of the dataset.
        configuration: The only configuration to check. By default all are checked, and one must be fit for training.
        plans_name: Name of the plans.
    """
    try:
        dataset = Dataset.find(dataset_name, plans_name)
        splits = dataset.splits()
        groups = load_groups(dataset.name)
    except (ValueError, OSError) as error:
        return [Finding("problem", f"dataset {dataset_name}", describe_error(error))]
    available = dataset.plans.available_configurations
    if configuration is not None and configuration not in available:
        text = f"{plans_name} has no configuration {configuration}, only {', '.join(available)}"
        return [Finding("problem", dataset.name, text)]
    findings = [Finding("ok", dataset.name, f"planned: {plans_name} with {', '.join(available)}")]
    if splits == []:
        remedy = "delete it, and the next training makes folds"
        findings.append(Finding("problem", "splits", f"{SPLITS_FILE} has no folds", remedy))
    if splits is None:
        names = available if configuration is None else [configuration]
        findings.append(_check_missing_splits(dataset, names, groups))
    findings += _check_divided_groups(dataset, splits or [], groups)
    configurations = available if configuration is None else [configuration]
    checks = _excuse([_check_readable(dataset, name, splits) for name in configurations])
    findings += [finding for check in checks for finding in check]
    try:
        findings += _check_orientations(dataset, configurations)
        return findings + _advise(dataset, configurations, splits)
    except OSError:  # a folder that cannot be read is among the findings
        return findings


def _check_orientations(dataset: Dataset, configurations: Sequence[str]) -> list[Finding]:
    name = max(configurations, key=lambda name: len(list_preprocessed(dataset.unlabeled_folder(name))))
    found = describe_turned(dataset, name)
    return [Finding("warning", dataset.name, *found)] if found else []


def _advise(dataset: Dataset, configurations: Sequence[str], splits: list[Entry] | None) -> list[Finding]:
    """Say what to train, by the numbers of images of the first fold."""
    labeled = [list_preprocessed(dataset.labeled_folder(name)) for name in configurations]
    entry = splits[0] if splits else {"train": max(labeled, key=len, default=[]), "val": []}
    # Ordinary folds take turns in validating; where labels are hidden, the others count as they are.
    number_labeled = len(entry["train"]) + (0 if "unlabeled" in entry else len(entry["val"]))
    if not number_labeled:
        return []
    unlabeled = [list_preprocessed(dataset.unlabeled_folder(name)) for name in configurations]
    number = max(map(len, [*unlabeled, raw_cases(dataset)]), default=0) + len(set(entry.get("unlabeled", [])))
    return [advise(number_labeled, number)]


def _check_missing_splits(dataset: Dataset, configurations: Sequence[str], groups: Mapping[str, str]) -> Finding:
    cases = max((list_preprocessed(dataset.labeled_folder(name)) for name in configurations), key=len)
    try:
        number = len(group_cases(cases, groups))
    except ValueError as error:
        return Finding("problem", "splits", str(error))
    if not cases or can_nnunet_split(cases, groups):
        return Finding("ok", "splits", "none yet: the first training makes nnU-Net's five folds")
    unit = "group" if groups else "case"
    if number == 1:
        return Finding("warning", "splits", f"one labeled {unit} makes no folds", "train with fold all instead of 0")
    folds = (
        f"folds of the {number} groups" if number >= DEFAULT_FOLDS else f"{number} folds, each with one {unit} to test"
    )
    otherwise = "would divide groups" if len(cases) >= DEFAULT_FOLDS else "have no folds for so few"
    text = f"none yet: preprocess makes {folds}; without it, nnU-Net's own trainers {otherwise}"
    return Finding("ok", "splits", text, dataset.preprocess_command)


def _check_divided_groups(dataset: Dataset, splits: Sequence[Entry], groups: Mapping[str, str]) -> list[Finding]:
    """Warn of folds that train on some cases of a group and validate on others."""
    divided: dict[int, set[str]] = {}
    for fold, entry in enumerate(splits):
        trained = set(entry["train"]) - set(entry["val"])  # the same case in both is a finding of its own
        train, val = ({groups[case] for case in cases if case in groups} for cases in (trained, entry["val"]))
        divided[fold] = train & val
    folds = [fold for fold, both in divided.items() if both]
    if not folds:
        return []
    text = (
        f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}: groups have cases in training and in "
        f"validation ({shorten(sorted(divided[folds[0]]))}), so the validation flatters every trainer"
    )
    remedy = (
        f"before any training, move {SPLITS_FILE} elsewhere, which also holds the folds of split and benchmark, and "
        f"run {dataset.preprocess_command}, which makes folds of groups"
    )
    return [Finding("warning", "splits", text, remedy)]


def _excuse(alternatives: list[list[Finding]]) -> list[list[Finding]]:
    """Turn problems into warnings if one of the alternatives has none, since a training can use that one."""
    if all(any(finding.level == "problem" for finding in findings) for findings in alternatives):
        return alternatives
    return [
        [replace(finding, level="warning") if finding.level == "problem" else finding for finding in findings]
        for findings in alternatives
    ]


def _check_readable(dataset: Dataset, name: str, splits: list[Entry] | None) -> list[Finding]:
    try:
        return _check_configuration(dataset, name, splits)
    except OSError as error:
        return [Finding("problem", name, describe_error(error))]


def _check_configuration(dataset: Dataset, name: str, splits: list[Entry] | None) -> list[Finding]:
    labeled = list_preprocessed(dataset.labeled_folder(name))
    remedy = f"nnUNetv2_preprocess -d {dataset.number} -c {name} -plans_name {dataset.plans.plans_name}"
    if not labeled:
        return [Finding("problem", name, "not preprocessed", remedy)]
    try:
        configuration = dataset.configuration(name)
        check_architecture(configuration.network_arch_class_name, configuration.network_arch_init_kwargs)
        memory = check_memory(dataset, name)
    except ValueError as error:
        return [Finding("problem", name, str(error))]
    except Exception as error:  # errors in the plans show as any type when the network is built
        cause = " ".join(repr(error).split())
        text = f"the plans {dataset.plans.plans_name} describe no network that can be built: {cause}"
        return [Finding("problem", name, text, "correct them, or plan the dataset again")]
    planned = dataset.dataset_json.get("numTraining", len(labeled))
    findings = [Finding("ok", name, f"{counted(len(labeled), 'labeled case')} preprocessed")]
    if isinstance(planned, int) and len(labeled) > planned:  # labels were added since, which is no harm
        text = f"{counted(len(labeled), 'labeled case')} preprocessed, {planned} when it was planned"
        findings = [Finding("ok", name, text)]
    elif len(labeled) != planned:
        text = f"{counted(len(labeled), 'labeled case')} preprocessed, but {planned} in dataset.json (numTraining)"
        findings = [Finding("warning", name, text, remedy)]
    unlabeled = len(list_preprocessed(dataset.unlabeled_folder(name)))
    findings.append(Finding("ok", name, f"{_count_raw(dataset)} images in {IMAGES_FOLDER}, {unlabeled} preprocessed"))
    findings.append(memory)
    if any(configuration.use_mask_for_norm) and dataset.plans.get_label_manager(dataset.dataset_json).has_ignore_label:
        text = (
            "nnU-Net normalizes images inside of their nonzero mask, and takes voxels with the ignore label for "
            "inside; unlabeled images have none, so they may be normalized differently"
        )
        findings.append(Finding("warning", name, text, "give the ignore label to voxels of the body only"))
    findings += _check_labeled_files(dataset, name, labeled, remedy)
    findings += _check_all_used(name, labeled, splits)
    return findings + _check_folds(dataset, name, labeled, splits)


def check_memory(dataset: Dataset, name: str) -> Finding:
    """Estimate the GPU memory of a training with the configuration ``name``; warn if no GPU has that much."""
    configuration = dataset.configuration(name)
    channels = determine_num_input_channels(dataset.plans, configuration, dataset.dataset_json)
    labels = dataset.plans.get_label_manager(dataset.dataset_json)
    estimate = estimate_memory(configuration, channels, labels.num_segmentation_heads, labels.has_ignore_label)
    text = f"about {_gib(estimate)} of GPU memory for a training of MICD"
    less = "; self-training should take less"
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    memory = max((torch.cuda.get_device_properties(index).total_memory for index in gpus), default=None)
    if memory is None or memory >= estimate:
        return Finding("ok", name, text + less)
    remedy = "if it does not fit, copy the plans under another name with a smaller batch_size, and train with these: -p"
    return Finding("warning", name, f"{text}, more than the {_gib(memory)} of the GPU{less}", remedy)


def _gib(size: float) -> str:
    size /= 2**30
    return f"{size:.1f} GiB" if size < 10 else f"{size:.0f} GiB"


def _check_labeled_files(dataset: Dataset, name: str, labeled: Sequence[str], remedy: str) -> list[Finding]:
    folder = dataset.labeled_folder(name)
    findings = []
    foreign = sorted(file.name for file in os.scandir(folder) if file.is_file() and not _is_of_nnunet(file.name))
    if foreign:
        text = f"files in {folder} keep nnU-Net from reading it ({shorten(foreign)})"
        findings.append(Finding("problem", name, text, "delete these files"))
    damaged = find_damaged_labeled(dataset, name, labeled)
    if damaged:
        text = f"labeled cases in {folder} are damaged ({shorten(damaged)})"
        findings.append(Finding("problem", name, text, remedy))
    return findings


def _check_all_used(name: str, labeled: Sequence[str], splits: list[Entry] | None) -> list[Finding]:
    """Warn of labeled cases in no fold, such as those that were added by hand after the folds were made."""
    unused = sorted(set(labeled).difference(*(entry.get(key, []) for entry in splits or [] for key in KEYS)))
    if not (splits and unused):
        return []
    text = f"no fold in {SPLITS_FILE} names these labeled cases, so only fold all trains on them ({shorten(unused)})"
    return [Finding("warning", name, text, "add them to the train entries, unless this is intended")]


def _is_of_nnunet(file_name: str) -> bool:
    return file_name.endswith((".b2nd", ".pkl")) and not file_name.startswith(".")


def _count_raw(dataset: Dataset) -> str:
    """Return the number of raw unlabeled images; the raw data need not be on the machine of the training."""
    try:
        folder = dataset.raw / IMAGES_FOLDER
        return str(len(group_images(folder, dataset.file_ending)) if folder.is_dir() else 0)
    except (ValueError, OSError):
        return "unknown number of"


def _check_folds(dataset: Dataset, name: str, labeled: Sequence[str], splits: list[Entry] | None) -> list[Finding]:
    """Check every fold, or the fold ``all`` if there are no others yet; report once what several folds share."""
    folds: dict[int | str, Entry] = {"all": {"train": list(labeled), "val": []}}
    if splits is not None:
        folds = dict(enumerate(splits))
    checks = _excuse([_check_fold(dataset, name, labeled, fold, entry) for fold, entry in folds.items()])
    folds_of: dict[Finding, list[int | str]] = {}
    for fold, findings in zip(folds, checks, strict=True):
        for finding in findings:
            folds_of.setdefault(finding, []).append(fold)
    return [
        replace(finding, text=f"fold{'s' if len(same) > 1 else ''} {', '.join(map(str, same))}: {finding.text}")
        for finding, same in folds_of.items()
    ]


def _check_fold(dataset: Dataset, name: str, labeled: Sequence[str], fold: int | str, entry: Entry) -> list[Finding]:
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
        findings.append(Finding("warning", name, text, f"correct {SPLITS_FILE}, unless this is intended"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            unlabeled = find_unlabeled_cases(dataset, name, entry)
        except ValueError as error:
            # With labels alone, nnU-Net's own trainer and the controls can be trained all the same.
            preprocessed = list_preprocessed(dataset.unlabeled_folder(name))
            is_without = not (entry.get("unlabeled") or raw_cases(dataset) or preprocessed)
            return [*findings, Finding("warning" if is_without else "problem", name, str(error))]
    findings.append(Finding("ok", name, f"{len(train)} labeled, {len(unlabeled)} unlabeled, {len(val)} validation"))
    messages = [str(warning.message) for warning in caught if warning.category is UserWarning]
    return findings + [Finding("warning", name, message) for message in messages]
