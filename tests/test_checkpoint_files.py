"""Checkpoints are read as data: nothing in them is run, and damage is said in a sentence."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.data.results import ModelFolder
from nnunetv2_micd.export import export_model, has_second_network
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.utils.checkpoint_files import read_checkpoint


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def content(**changed: Any) -> dict[str, Any]:
    return {
        "network_weights": {"weight": torch.ones(2)},
        "trainer_name": "nnUNetTrainer",
        "init_args": {"fold": 0},
        **changed,
    }


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_what_nnunet_and_this_package_write_is_read(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset)
    trainer.run_training()
    checkpoint = read_checkpoint(Path(trainer.output_folder, "checkpoint_final.pth"))
    assert checkpoint["trainer_name"] == "nnUNetTrainerMeanTeacher"
    assert checkpoint["nnunetv2_micd"]["iteration"] == 4


def test_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    numbers = {"a": np.float32(1.5), "b": np.arange(3, dtype=np.uint32), "c": np.float64(2), "d": np.bool_(True)}
    read = read_checkpoint(save(tmp_path / "checkpoint.pth", content(**numbers)), mapped=True)
    assert (read["a"], read["b"].tolist(), read["c"], read["d"]) == (1.5, [0, 1, 2], 2, True)


def test_code_is_not_run(tmp_path: Path, dataset: TinyDataset) -> None:
    trace = tmp_path / "trace"
    path = save(tmp_path / "checkpoint.pth", content(logging=Malicious(trace)))
    with pytest.raises(ValueError, match=r"checkpoint.pth is not read, because it holds \w"):
        read_checkpoint(path)
    fold = dataset.results / dataset.name / "nnUNetTrainerMeanTeacher__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        (fold.parent / name).write_text("{}")
    path = path.rename(fold / "checkpoint_final.pth")
    model = ModelFolder(dataset.name, "3d_fullres", "nnUNetTrainerMeanTeacher")
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset)
    for read in (
        lambda: export_model(model, [0], tmp_path / "model"),
        lambda: has_second_network(path),
        lambda: trainer.load_checkpoint(str(path)),  # as --c and --val do
    ):
        with pytest.raises(ValueError, match="is not read"):
            read()
    assert not trace.exists()
    assert not (tmp_path / "model").exists()


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(bytes(255 - byte for byte in path.read_bytes())),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "list": lambda path: save(path, []),
    "nothing": lambda path: save(path, {}),
    "tensor": lambda path: save(path, torch.ones(2)),
    "no weights": lambda path: save(path, content(network_weights={})),
    "weights of text": lambda path: save(path, content(network_weights={"a": "b"})),
    "no trainer": lambda path: save(path, content(trainer_name=None)),
    "no arguments": lambda path: save(path, content(init_args=5)),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("mapped", [False, True])
def test_damage_is_said_in_a_sentence(kind: str, mapped: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint_final.pth", content())
    save(tmp_path / "checkpoint_best.pth", content())
    DAMAGE[kind](path)
    with pytest.raises(
        ValueError, match=r"checkpoint_final.pth is (damaged|no checkpoint).*checkpoint_best.pth"
    ) as raised:
        read_checkpoint(path, mapped)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*absent.pth"):
        read_checkpoint(tmp_path / "absent.pth")
