"""Trainers are found as nnU-Net finds them, and a file that keeps nnU-Net from it is named."""

from pathlib import Path
from typing import Any

import pytest
from helpers import TinyDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.training.registry import find_trainer, join_folders, training_length

IMPORT = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return two empty folders that nnU-Net searches, and ours after them."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    monkeypatch.setenv("nnUNet_extTrainer", join_folders(map(str, (first, second, TRAINER_FOLDER))))
    return first, second


def test_trainers_and_their_folders(folders: tuple[Path, Path]) -> None:
    _, second = folders
    (second / "mine.py").write_text(f"{IMPORT}class nnUNetTrainerMine(nnUNetTrainer): pass\n")
    stock = find_trainer("nnUNetTrainer")
    assert (stock.trainer_class, stock.folder, stock.search_folders) == (nnUNetTrainer, None, ())
    ours = find_trainer("nnUNetTrainerMICD")
    assert (ours.trainer_class, ours.folder) == (nnUNetTrainerMICD, TRAINER_FOLDER)
    assert find_trainer("nnUNetTrainerMine").search_folders == (str(second),)


def test_a_trainer_that_searches_for_its_base_needs_all_folders(folders: tuple[Path, Path]) -> None:
    first, second = folders
    (second / "base.py").write_text(f"{IMPORT}class nnUNetTrainerBase(nnUNetTrainer): pass\n")
    (first / "derived.py").write_text(
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "class nnUNetTrainerDerived(find('nnUNetTrainerBase')): pass\n"
    )
    assert find_trainer("nnUNetTrainerDerived").search_folders == (str(first), str(second), TRAINER_FOLDER)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("def broken(", "SyntaxError"),
        ("import a_package_that_is_not_installed", "ModuleNotFoundError: No module named 'a_package_that_is_not_in"),
        ("raise RuntimeError('Could not find my\\ndata')", "RuntimeError: Could not find my data"),
    ],
)
def test_a_broken_file_is_named(folders: tuple[Path, Path], content: str, reason: str) -> None:
    first, second = folders
    (first / "broken.py").write_text(content)
    (second / "mine.py").write_text(f"{IMPORT}class nnUNetTrainerMine(nnUNetTrainer): pass\n")
    with pytest.raises((SyntaxError, ModuleNotFoundError, RuntimeError)):
        recursive_find_trainer_class_by_name("nnUNetTrainerMine")
    with pytest.raises(ValueError, match="nnU-Net does not find nnUNetTrainerMine") as error:
        find_trainer("nnUNetTrainerMine")
    message = str(error.value)
    assert f"{first / 'broken.py'} cannot be imported ({reason}" in message
    assert f"correct or remove it, or take {first} out of nnUNet_extTrainer" in message
    assert "\n" not in message
    assert find_trainer("nnUNetTrainer").trainer_class is nnUNetTrainer  # nnU-Net looks in its own folder first


def test_what_is_not_a_trainer(folders: tuple[Path, Path]) -> None:
    (folders[0] / "names.py").write_text("NOTHING = 1\n")
    with pytest.raises(ValueError, match="NOTHING cannot be used as a trainer"):
        find_trainer("NOTHING")
    with pytest.raises(
        ValueError,
        match=r"nnUNetTrainerMCID \(did you mean nnUNetTrainerMICD\?\); see: nnUNetv2_micd",
    ):
        find_trainer("nnUNetTrainerMCID")


def test_lengths_come_from_the_constructor(dataset: TinyDataset, plans: Any) -> None:
    arguments = plans.plans_manager.plans, "3d_fullres", plans.dataset_json
    assert training_length(nnUNetTrainer, *arguments) == (1000, 250)

    class Failing(nnUNetTrainer):
        def __init__(self, *args: Any) -> None:
            raise RuntimeError("no such disk")

    with pytest.raises(ValueError, match=r"Failing cannot be used as a trainer \(RuntimeError\('no such disk'\)\)"):
        training_length(Failing, *arguments)
    assert not list(dataset.results.iterdir())
