"""Generated trainers of another length: found by their names, and undisturbed by what else lies beside them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import MICD, TinyDataset, make_trainer
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.benchmark import Grid, Length, run
from nnunetv2_micd.benchmark.plan import plan_runs
from nnunetv2_micd.benchmark.records import read_record
from nnunetv2_micd.benchmark.trainers import write_trainers
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.training.registry import GENERATED_FOLDER, add_trainer_folders, find_trainer, join_folders

SHORT_TRAINERS = str(Path(__file__).parents[1] / "trainers")
IMPORT = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"


def search_in(monkeypatch: pytest.MonkeyPatch, *folders: str | Path) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", join_folders(map(str, folders)))


def write_user_trainer(folder: Path, name: str, mark: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name.lower()}.py").write_text(f"{IMPORT}class {name}(nnUNetTrainer):\n    mark = {mark!r}\n")
    return folder


def test_own_length_needs_no_other_class(dataset: TinyDataset, grid: Grid) -> None:
    runs = plan_runs(replace(grid, length=Length()))
    assert {(run.trainer == run.trainer_class, run.epochs, run.iterations) for run in runs} == {(True, 1000, 250)}
    assert write_trainers(runs) == {
        "nnUNetTrainer": (TRAINER_FOLDER,),
        "nnUNetTrainerMICD": (TRAINER_FOLDER, TRAINER_FOLDER),
    }
    assert not list(dataset.results.iterdir())


def test_generated_trainers_are_found_by_their_names(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_in(monkeypatch, TRAINER_FOLDER, SHORT_TRAINERS)
    folders = write_trainers(plan_runs(replace(grid, trainers=["nnUNetTrainerMICD"], length=Length(3, 25))))
    folders |= write_trainers(
        plan_runs(replace(grid, baseline="nnUNetTrainer_short", trainers=[MICD], length=Length(epochs=4)))
    )
    for _ in range(2):
        add_trainer_folders(folder for group in folders.values() for folder in group)
    searched = os.environ["nnUNet_extTrainer"].split(os.pathsep)
    assert len(searched) == len(set(searched)) == 2 + 4
    for name, length in (("nnUNetTrainerMICD_e3_i25", (3, 25, 5)), (f"{MICD}_e4", (4, 2, 1))):
        trainer_class = recursive_find_trainer_class_by_name(name)
        assert trainer_class.__name__ == name
        assert issubclass(trainer_class, nnUNetTrainerMICD)
        trainer = make_trainer(trainer_class, dataset, shortened=False)
        steps = trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch
        assert steps == length
        assert list(trainer.my_init_kwargs) == ["plans", "configuration", "fold", "dataset_json", "device"]


def test_the_order_of_the_folders_does_not_matter(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_in(monkeypatch, TRAINER_FOLDER, SHORT_TRAINERS)
    folders = write_trainers(plan_runs(replace(grid, trainers=[MICD])))[f"{MICD}_e2_i2"]
    for order in (folders, folders[::-1]):
        search_in(monkeypatch, *order)
        assert issubclass(recursive_find_trainer_class_by_name(f"{MICD}_e2_i2"), nnUNetTrainerMICD)
    search_in(monkeypatch, TRAINER_FOLDER)
    with pytest.raises(ValueError, match=f"was made by a benchmark; to find it, add its folder {folders[0]} to nnUNet"):
        find_trainer(f"{MICD}_e2_i2")


def test_a_missing_base_disturbs_no_other_trainer_and_is_named(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = write_user_trainer(tmp_path / "mine", "nnUNetTrainerMine")
    search_in(monkeypatch, TRAINER_FOLDER, mine)
    folders = write_trainers(plan_runs(replace(grid, trainers=["nnUNetTrainerMine", "nnUNetTrainerMICD"])))
    generated = [folders[f"{name}_e2_i2"][0] for name in ("nnUNetTrainerMine", "nnUNetTrainerMICD")]

    search_in(monkeypatch, generated[0])  # the generated class knows the folder of its base
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMine_e2_i2")
    moved = mine.rename(tmp_path / "moved")
    search_in(monkeypatch, *generated, TRAINER_FOLDER)
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMICD_e2_i2")
    with pytest.raises(ImportError, match="_e2_i2 derives from nnUNetTrainerMine, which is neither in"):
        recursive_find_trainer_class_by_name("nnUNetTrainerMine_e2_i2")
    with pytest.raises(ValueError, match="add the folder of nnUNetTrainerMine to nnUNet_extTrainer") as error:
        find_trainer("nnUNetTrainerMine_e2_i2")
    assert "\n" not in str(error.value)
    search_in(monkeypatch, generated[0], moved)
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMine_e2_i2")


def test_two_bases_of_one_name_are_not_confused(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = (write_user_trainer(tmp_path / name, "nnUNetTrainerMine", name) for name in ("first", "second"))
    search_in(monkeypatch, second, first)
    folders = write_trainers(plan_runs(replace(grid, trainers=["nnUNetTrainerMine"])))
    search_in(monkeypatch, first, folders["nnUNetTrainerMine_e2_i2"][0])
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMine_e2_i2").mark == "second"


def test_benchmarks_with_different_trainers_share_a_results_folder(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned = {}
    for name in ("nnUNetTrainerFirst", "nnUNetTrainerSecond"):
        search_in(monkeypatch, write_user_trainer(tmp_path / name, name))
        planned |= write_trainers(plan_runs(replace(grid, trainers=[name])))
    for name in ("nnUNetTrainerFirst", "nnUNetTrainerSecond"):
        generated = dataset.results / GENERATED_FOLDER / f"{name}_e2_i2"
        assert planned[f"{name}_e2_i2"] == (str(generated), str(tmp_path / name), TRAINER_FOLDER)
        search_in(monkeypatch, *planned[f"{name}_e2_i2"])
        assert recursive_find_trainer_class_by_name(f"{name}_e2_i2")


def test_files_of_others_do_not_reach_a_run(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A broken file of a stranger, one where classes were once written, and one that appears during the run."""
    (stock,) = plan_runs(replace(grid, trainers=["nnUNetTrainer"], length=Length(1, 1)))
    folders = write_trainers([stock])[stock.trainer_class]
    generated = dataset.results / GENERATED_FOLDER
    strange = write_user_trainer(tmp_path / "strange", "nnUNetTrainerStrange")
    search_in(monkeypatch, generated, strange, TRAINER_FOLDER)
    for folder in (generated, strange):
        (folder / "broken.py").write_text("def broken(")

    def make_trainer(*args: Any) -> Any:
        other = write_user_trainer(generated / "nnUNetTrainerOther_e2", "nnUNetTrainerOther_e2")
        (other / "broken.py").write_text("def broken(")
        return get_trainer_from_args(*args)

    monkeypatch.setattr(run, "get_trainer_from_args", make_trainer)
    run.execute(stock, "cpu", folders)
    record = read_record(stock.folder)
    assert record is not None
    assert record.result.status == "done"
    assert os.environ["nnUNet_extTrainer"] == join_folders(map(str, (generated, strange, TRAINER_FOLDER)))
