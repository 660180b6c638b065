"""Looks for what would keep a training from running, and says what to do about it."""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Literal

import nnunetv2_micd

NNUNET = "nnunetv2>=2.8.1,<2.9"  # as in pyproject.toml
EXCLUDED_TORCH = (2, 9)  # by nnU-Net
DISK_SPACE = 4e9
"""Bytes that a training writes: up to three checkpoints, and one more beside while it is written. With the default 3D
network of nnU-Net, one of MICD takes 0.7e9, for two networks with a teacher and a momentum each."""

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Attributes:
        level: ``problem`` if it prevents training.
        subject: what was checked, in a word or two.
        text: what was found.
        remedy: what to do, where the text does not say it.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


def diagnose(
    dataset: str | None = None, configuration: str | None = None, plans_name: str = "nnUNetPlans"
) -> list[Finding]:
    """Check the installation and, if one is given, a dataset; nothing is changed.

    Args:
        dataset: name or number of the dataset.
        configuration: check this one of the dataset only.
        plans_name: name of the plans.

    Raises:
        ValueError: a configuration without a dataset.
    """
    if configuration is not None and dataset is None:
        raise ValueError(f"The configuration {configuration} can only be checked together with a dataset; add -d")
    findings = [_check_python(), _check_torch(), _check_nnunet()]
    findings.append(Finding("ok", "nnunetv2_micd", nnunetv2_micd.__version__))
    findings += [
        _check_folder("nnUNet_raw", "warning", "ok"),  # only planning and preprocessing read it
        _check_folder("nnUNet_preprocessed", "problem", "warning"),
        _check_folder("nnUNet_results", "problem", "problem"),
    ]
    trainers = _check_trainers()
    findings += trainers
    if any(finding.subject == "import" for finding in trainers):
        return findings
    findings += _check_gpus()
    if dataset is not None:
        from nnunetv2_micd.doctor.dataset import check_dataset  # where nnU-Net is broken there still is a report

        findings += check_dataset(dataset, configuration, plans_name)
    return findings


def format_findings(findings: Sequence[Finding]) -> str:
    """Return the report: a line for each finding, its remedy below, and a sum at the end."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:9}{finding.subject:{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':{9 + width}}  -> {finding.remedy}")
    problems, warnings = (sum(finding.level == level for finding in findings) for level in ("problem", "warning"))
    return "\n".join([*lines, "", f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}"])


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _check_python() -> Finding:
    return Finding("ok", "Python", f"{platform.python_version()} on {platform.system()}")


def _check_torch() -> Finding:
    version = _version("torch")
    if version is None:
        return Finding("problem", "PyTorch", "not installed", "see https://pytorch.org")
    if _numbers(version)[:2] == EXCLUDED_TORCH:
        return Finding("warning", "PyTorch", f"{version}, which nnU-Net excludes", 'pip install "torch!=2.9.*"')
    return Finding("ok", "PyTorch", version)


def _check_nnunet() -> Finding:
    version = _version("nnunetv2")
    oldest, first_unsupported = map(_numbers, NNUNET.removeprefix("nnunetv2").split(","))
    remedy = f'pip install "{NNUNET}"'
    if version is None:
        return Finding("problem", "nnU-Net", "not installed", remedy)
    if not oldest <= _numbers(version) < first_unsupported:
        return Finding("problem", "nnU-Net", f"{version}, which is not supported", remedy)
    return Finding("ok", "nnU-Net", version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _check_folder(variable: str, if_missing: Level, if_read_only: Level) -> Finding:
    folder = os.environ.get(variable)
    if not folder:
        return Finding(if_missing, variable, "not set", f"export {variable}=/path/to/{variable}")
    if not os.path.isdir(folder):
        remedy = f"correct the variable, or: mkdir -p {folder}"
        return Finding(if_missing, variable, f"{folder} does not exist", remedy)
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "" if if_read_only == "ok" else "correct its permissions, or name another folder"
        return Finding(if_read_only, variable, f"{folder} cannot be written to", remedy)
    free = shutil.disk_usage(folder).free
    text = f"{folder}, {free / 1e9:.0f} GB free"
    if variable == "nnUNet_results" and free < DISK_SPACE:
        remedy = f"free some space: a training with nnU-Net's default 3D network writes about {DISK_SPACE / 1e9:.0f} GB"
        return Finding("warning", variable, text, remedy)
    return Finding("ok", variable, text)


def _check_trainers() -> list[Finding]:
    """Look where nnU-Net's own commands will look; without a variable of the shell they find nothing of ours."""
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
    except Exception as error:  # a broken installation fails in any way
        return [Finding("problem", "import", f"nnU-Net or a trainer cannot be imported: {error!r}")]
    variable = "nnUNet_extTrainer"
    folders = [folder for folder in nnunetv2_micd.EXT_TRAINER_BEFORE_IMPORT.split(os.pathsep) if folder.strip()]
    if os.path.realpath(nnunetv2_micd.TRAINER_FOLDER) not in map(os.path.realpath, folders):
        others = "".join(os.pathsep + folder for folder in folders)
        remedy = f'export {variable}="$(nnUNetv2_micd path){others}"'
        return [Finding("problem", variable, "does not name the folder of the trainers", remedy)]
    gone = [folder for folder in folders if not os.path.exists(folder)]
    text = f"names folders that do not exist: {', '.join(gone)}" if gone else os.pathsep.join(folders)
    findings = [Finding("warning" if gone else "ok", variable, text, "correct the variable" if gone else "")]
    try:
        with redirect_stdout(StringIO()):  # nnU-Net tells where it searches
            found = recursive_find_trainer_class_by_name(nnUNetTrainerMICD.__name__)
    except Exception as error:  # nnU-Net imports all files in these folders, also those of others
        return [*findings, Finding("problem", "trainers", f"nnU-Net fails to search for trainers: {error!r}")]
    if found is not nnUNetTrainerMICD:
        text = f"nnU-Net finds another nnUNetTrainerMICD first, in {found.__module__}"
        return [*findings, Finding("problem", "trainers", text, "remove that copy")]
    return [*findings, Finding("ok", "trainers", "nnU-Net finds nnUNetTrainerMICD")]


def _check_gpus() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        remedy = (
            "add -device cpu to nnUNetv2_train, which is slow; for a GPU install PyTorch as https://pytorch.org says"
        )
        return [Finding("warning", "GPU", "PyTorch sees no CUDA GPU", remedy)]
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        Finding("ok", f"GPU {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
        for index, device in enumerate(devices)
    ]
