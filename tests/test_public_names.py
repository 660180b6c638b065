"""Trainers and the names that other trainers need are names of the package, imported when they are first used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import nnunetv2_micd
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported


def names_for_type_checkers() -> dict[str, str]:
    """Return the module of each name that the package imports for type checkers."""
    tree = ast.parse(Path(nnunetv2_micd.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name: str(node.module) for node in imports for alias in node.names}
    return {name: module for name, module in names.items() if module.startswith("nnunetv2_micd.")}


def test_import_takes_neither_torch_nor_nnunet() -> None:
    code = "import sys, nnunetv2_micd; dir(nnunetv2_micd); print(*{'torch', 'nnunetv2', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("\n", "")


def test_names_are_those_of_their_modules() -> None:
    names = names_for_type_checkers()
    assert names.pop("*") == exported.__name__
    assert {*nnunetv2_micd.__all__} == {*names, "nnUNetTrainerMICD", "TRAINER_FOLDER", "__version__"}
    assert {*nnunetv2_micd.__all__} <= {*dir(nnunetv2_micd)}
    for name, module in names.items():
        assert getattr(nnunetv2_micd, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", exported.__all__)
def test_every_trainer_that_nnunet_finds_is_a_name(name: str) -> None:
    assert getattr(nnunetv2_micd, name) is getattr(exported, name)


@pytest.mark.parametrize("name", ["nnUNetTrainerNone", "nnUNetTrainer", "NoneConfig"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'nnunetv2_micd' has no attribute '{name}'"):
        getattr(nnunetv2_micd, name)
    with pytest.raises(ImportError):
        exec(f"from nnunetv2_micd import {name}")
