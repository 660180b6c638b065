"""Losses and augmentation are plain PyTorch: they need no nnU-Net, and the examples in their docstrings hold."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import nnunetv2_micd.augmentation
import nnunetv2_micd.losses
from nnunetv2_micd.training import config, ema, monitor, schedules, step, students
from nnunetv2_micd.utils import random_states

PURE = (nnunetv2_micd.losses, nnunetv2_micd.augmentation)
MODULES = [
    *PURE,
    *(config, ema, monitor, schedules, step, students, random_states),  # of these the examples only
    *(
        importlib.import_module(module.name)
        for package in PURE
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("package", PURE, ids=lambda package: package.__name__)
def test_every_public_name_has_an_example(package: ModuleType) -> None:
    for name in package.__all__:
        public = getattr(package, name)
        if getattr(public, "__module__", "").startswith(package.__name__):  # neither a constant nor a type alias
            assert ">>>" in public.__doc__, name


@pytest.mark.parametrize("package", PURE, ids=lambda package: package.__name__)
def test_public_names_exist(package: ModuleType) -> None:
    assert package.__all__ == sorted(package.__all__, key=lambda name: (name.islower(), not name.isupper(), name))
    assert all(hasattr(package, name) for name in package.__all__)


def test_losses_and_augmentation_need_no_nnunet() -> None:
    names = ", ".join(package.__name__ for package in PURE)
    code = f"import sys; sys.modules['nnunetv2'] = None; import {names}"
    subprocess.run([sys.executable, "-c", code], check=True)
