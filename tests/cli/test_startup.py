"""Commands import torch and nnU-Net only if they need them, as these imports take seconds."""

import subprocess
import sys

import pytest
from helpers import TinyDataset

COMMANDS = (
    "path",
    "dataset",
    "preprocess",
    "split",
    "list",
    "doctor",
    "export",
    "draw",
    "report",
    "benchmark",
    "tune",
    "profile",
)
SLOW = "torch", "blosc2", "sklearn", "scipy", "matplotlib", "pandas", "nnunetv2.utilities.plans_handling.plans_handler"


def imported(*arguments: str) -> set[str]:
    """Run a command in a new process and return the modules that it imported."""
    code = (
        "import contextlib, io, sys; from nnunetv2_micd.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(sys.argv[1:])\n"
        "print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return set(result.stdout.split())


@pytest.mark.parametrize("arguments", [("path",), ("list",), ("--version",), *((name, "--help") for name in COMMANDS)])
def test_answers_without_nnunet(arguments: tuple[str, ...]) -> None:
    assert imported(*arguments).isdisjoint({"torch", "nnunetv2", "numpy", *SLOW})


def test_split_imports_nothing_slow(dataset: TinyDataset) -> None:
    dataset.splits_file.unlink()
    assert imported("split", "-d", "901", "-n", "2").isdisjoint(SLOW)
    assert imported("split", "-d", "901", "-n", "2", "--as-dataset", "902").isdisjoint(SLOW)
    assert dataset.splits_file.is_file()
    assert (dataset.raw.parent / "Dataset902_Tiny_2labels_seed0").is_dir()
