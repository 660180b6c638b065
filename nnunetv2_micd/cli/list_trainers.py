"""``nnUNetv2_micd list``: lists the trainers in groups, with one sentence each.

The groups follow from the names and from the first words of the docstrings, so a new trainer finds its own.

The sentences are read from the source files. Importing the trainers would import torch and nnU-Net, which takes
seconds.
"""

import argparse
import ast
from functools import cache
from pathlib import Path
from typing import Any

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.cli.options import DEFAULT_TRAINER

PACKAGE = Path(TRAINER_FOLDER).parent
EXPORTS = f"{PACKAGE.name}.ext_trainers.nnunetv2_micd_trainers"
"""Module that nnU-Net searches; its ``__all__`` names the trainers."""


GROUPS = {
    "recommended": "Recommended",
    "micd": "MICD and its variants",
    "method": "Other methods",
    "reconstruction": "Reconstructions of methods without public code: do not compare them with published figures",
    "control": "Controls, which learn from labeled images only",
}
"""Title of each group, in the order in which they are printed."""


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of nnUNetv2_micd."""
    parser = commands.add_parser("list", help="list the trainers", description="Lists the trainers for nnUNetv2_train.")
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> None:
    """Print the groups, with a line for each trainer."""
    summaries = read_summaries()
    width = max(map(len, summaries))
    for group, title in GROUPS.items():
        print(f"{title}:")
        for name, summary in summaries.items():
            if group_of(name, summary) == group:
                print(f"  {name:{width}}  {summary}")


def group_of(name: str, summary: str) -> str:
    """Return the group of a trainer, a key of :data:`GROUPS`.

    Args:
        name: Name of the trainer.
        summary: First paragraph of its docstring.

    Examples:
        >>> group_of("nnUNetTrainerEMA", "Control: nnU-Net with averaged weights.")
        'control'
    """
    if name == DEFAULT_TRAINER:
        return "recommended"
    if summary.startswith("Control:"):
        return "control"
    if summary.startswith("Reconstruction of "):
        return "reconstruction"
    return "micd" if name.startswith("nnUNetTrainerMICD") else "method"


def read_summaries() -> dict[str, str]:
    """Return the names of the exported trainers, each with the first paragraph of its docstring on one line."""
    for node in _parse(EXPORTS).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    return {name: " ".join(_docstring(EXPORTS, name).partition("\n\n")[0].split()) for name in names}


@cache
def _parse(module: str) -> ast.Module:
    path = PACKAGE.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _docstring(module: str, name: str) -> str:
    """Return the docstring of a class that a module of this package defines or imports, or else of its first base."""
    if module.split(".")[0] != PACKAGE.name:
        return ""  # a class of nnU-Net
    for node in _parse(module).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _docstring(str(node.module), alias.name)
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = (_docstring(module, ast.unparse(base)) for base in node.bases)
            return ast.get_docstring(node) or next(filter(None, bases), "")
    return ""
