"""Checks the versions, nnU-Net's folders, the trainers and the GPUs of this machine."""

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
from contextlib import redirect_stdout
from io import StringIO

import nnunetv2_micd
from nnunetv2_micd.doctor.finding import Finding, Level

NNUNET = "nnunetv2>=2.8.1,<2.9"
"""Supported versions, as in ``pyproject.toml``."""

TORCH = "torch>=2.6"
"""Supported versions of PyTorch, as in pyproject.toml."""

EXCLUDED_TORCH = (2, 9)
"""Version that nnU-Net excludes."""

DISK_SPACE = 4e9
"""Bytes that a training writes: up to three checkpoints, and a temporary copy of one while it is written. For MICD with
nnU-Net's default 3D network a checkpoint takes 0.7e9 bytes: two networks, each with a teacher and a momentum."""


def check_versions() -> list[Finding]:
    """Check the versions of Python, PyTorch, nnU-Net and this package."""
    return [
        Finding("ok", "Python", f"{platform.python_version()} on {platform.system()}"),
        _check_torch(),
        _check_nnunet(),
        Finding("ok", "nnunetv2_micd", nnunetv2_micd.__version__),
    ]


def check_folders() -> list[Finding]:
    """Check the folders that nnU-Net's environment variables name."""
    return [
        _check_folder("nnUNet_raw", "warning", "ok"),  # only planning and preprocessing read it
        _check_folder("nnUNet_preprocessed", "problem", "warning"),
        _check_folder("nnUNet_results", "problem", "problem"),
    ]


def _check_torch() -> Finding:
    version = installed_version("torch")
    if version is None:
        return Finding("problem", "PyTorch", "not installed", "see https://pytorch.org")
    if _numbers(version) < _numbers(TORCH.removeprefix("torch>=")):
        text = f"{version}, which runs code in checkpoints that are read as data"
        return Finding("problem", "PyTorch", text, f'pip install "{TORCH}"')
    if _numbers(version)[:2] == EXCLUDED_TORCH:
        return Finding("warning", "PyTorch", f"{version}, which nnU-Net excludes", 'pip install "torch!=2.9.*"')
    return Finding("ok", "PyTorch", version)


def _check_nnunet() -> Finding:
    version = installed_version("nnunetv2")
    oldest, first_unsupported = map(_numbers, NNUNET.removeprefix("nnunetv2").split(","))
    remedy = f'pip install "{NNUNET}"'
    if version is None:
        return Finding("problem", "nnU-Net", "not installed", remedy)
    if not oldest <= _numbers(version) < first_unsupported:
        return Finding("problem", "nnU-Net", f"{version}, which is not supported", remedy)
    return Finding("ok", "nnU-Net", version)


def installed_version(package: str) -> str | None:
    """Return the version of an installed package without importing it, or None."""
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
        remedy = f"correct the variable, or: mkdir -p {shlex.quote(folder)}"
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


def check_trainers() -> list[Finding]:
    """Check that nnU-Net's own commands find the trainers of this package.

    These commands do not import this package first, so only the variable in the shell tells them where to look.
    """
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
    except Exception as error:  # a broken installation raises various types
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
        with redirect_stdout(StringIO()):  # nnU-Net prints where it searches
            trainer = recursive_find_trainer_class_by_name(nnUNetTrainerMICD.__name__)
    except Exception as error:  # nnU-Net imports all files in these folders, some of them not from this package
        return [*findings, Finding("problem", "trainers", f"nnU-Net fails to search for trainers: {error!r}")]
    if trainer is not nnUNetTrainerMICD:
        text = f"nnU-Net finds another nnUNetTrainerMICD first, in {trainer.__module__}"
        return [*findings, Finding("problem", "trainers", text, "remove that copy")]
    return [*findings, Finding("ok", "trainers", "nnU-Net finds nnUNetTrainerMICD")]


def check_gpus() -> list[Finding]:
    """List the GPUs that PyTorch sees."""
    import torch  # here so that there is a report when PyTorch is broken

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
