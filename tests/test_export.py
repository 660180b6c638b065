"""An exported model needs nothing but nnU-Net: it predicts the same without this package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TinyDataset, make_trainer
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.results import ModelFolder
from nnunetv2_micd.export import export_model
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.training.networks import PLAIN, RESIDUAL

MICD = "nnUNetTrainerMICD"

PREDICT_WITHOUT_US = """
import os, sys, torch
assert "nnUNet_extTrainer" not in os.environ
sys.modules["nnunetv2_micd"] = None  # an import fails, of a part of it as well
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
image, result, *folders = sys.argv[1:]
logits = []
for folder in folders:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(folder, use_folds=None)
    logits.append(predictor.predict_logits_from_preprocessed_data(torch.load(image)))
torch.save(logits, result)
"""


@pytest.fixture
def train(dataset: TinyDataset) -> Callable[..., Any]:
    """Return a function that leaves what a training leaves: every network has weights of its own."""

    def write(trainer_class: type, *folds: int | str, configuration: str = "3d_fullres") -> Any:
        for fold in folds:
            trainer = make_trainer(trainer_class, dataset, configuration, fold)
            trainer.on_train_start()
            for network in [trainer.network, *getattr(trainer, "teachers", {}).values()]:
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter.add_(0.1 * torch.randn_like(parameter))
            trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
        return trainer

    return write


def predict(folder: str | Path, image: torch.Tensor, network: torch.nn.Module | None = None) -> torch.Tensor:
    """Predict as nnU-Net does, with the network that it builds for the folder or with the given one."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    if network is not None:
        network.decoder.deep_supervision = False
        predictor.network, predictor.list_of_parameters = network, [network.state_dict()]
    return predictor.predict_logits_from_preprocessed_data(image)


def test_predicts_the_same_without_this_package(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    image = torch.randn(1, 4, 25, 31)
    torch.save(image, tmp_path / "image.pt")
    folders, expected = [], []
    for configuration in ("2d", "3d_fullres"):
        trainer = train(nnUNetTrainerMICD, 0, configuration=configuration)
        original = trainer.output_folder_base
        teacher_b = trainer.teachers["b"].to(memory_format=torch.contiguous_format)  # as networks are that load weights
        expected += [predict(original, image), predict(original, image, teacher_b)]
        for name in "ab":
            output = tmp_path / f"{configuration}_{name}"
            folders.append(export_model(ModelFolder(dataset.id, configuration, MICD), [0], output, name))

    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    command = [sys.executable, "-c", PREDICT_WITHOUT_US, tmp_path / "image.pt", tmp_path / "logits.pt", *folders]
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True, text=True)
    exported = torch.load(tmp_path / "logits.pt")
    assert all(torch.equal(*pair) for pair in zip(expected, exported, strict=True))
    assert not torch.equal(exported[0], exported[1])


def test_content_is_plain_and_says_where_it_comes_from(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = train(nnUNetTrainerMICD, 0, 1, "all")
    folder = export_model(ModelFolder(dataset.name, "3d_fullres", MICD), [0, "all"], tmp_path / "new" / "model", "b")
    assert folder == tmp_path / "new" / "model"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "dataset.json",
        "dataset_fingerprint.json",
        "fold_0/checkpoint_final.pth",
        "fold_all/checkpoint_final.pth",
        "plans.json",
    ]

    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)  # refuses any class of ours
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert "optimizer_state" not in checkpoint
    assert checkpoint["inference_allowed_mirroring_axes"] == trainer.inference_allowed_mirroring_axes
    provenance = checkpoint["nnunetv2_micd"]
    assert {name: provenance[name] for name in ("trainer", "network", "checkpoint")} == {
        "trainer": "nnUNetTrainerMICD",
        "network": "b",
        "checkpoint": "checkpoint_final.pth",
    }
    assert provenance["config"]["mask_ratio"] == 0.5
    assert provenance["version"]

    plans = json.loads((folder / "plans.json").read_text())
    assert checkpoint["init_args"]["plans"] == plans
    original = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    changed = plans["configurations"]["3d_fullres"].pop("architecture")
    replaced = original["configurations"]["3d_fullres"].pop("architecture")
    assert (replaced["network_class_name"], changed["network_class_name"]) == (PLAIN, RESIDUAL)
    assert plans == original


def test_plans_of_network_a_stay_as_they_are(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = train(nnUNetTrainerMeanTeacher, 0)
    folder = export_model(ModelFolder(dataset.id, "3d_fullres", "nnUNetTrainerMeanTeacher"), [0], tmp_path / "model")
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        assert (folder / name).read_bytes() == (Path(trainer.output_folder_base) / name).read_bytes()


def test_two_networks_of_the_plans(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = train(nnUNetTrainerCPS, 0)
    export_model(ModelFolder(dataset.id, "3d_fullres", "nnUNetTrainerCPS"), [0], str(tmp_path / "b"), "b")
    image = torch.randn(1, 16, 20, 24)
    expected = predict(Path(trainer.output_folder).parent, image, trainer.teachers["b"])
    assert torch.equal(predict(tmp_path / "b", image), expected)


def test_another_checkpoint_and_trainer(
    train: Callable, dataset: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trainer = train(nnUNetTrainerMICD, 0)
    final = Path(trainer.output_folder, "checkpoint_final.pth")
    final.rename(final.with_name("checkpoint_best.pth"))
    (tmp_path / "model").mkdir()  # empty, so it may be used
    arguments = ["export", "-d", "901", "-c", "3d_fullres", "-tr", "nnUNetTrainerMICD", "-f", "0"]
    arguments += ["-o", str(tmp_path / "model")]
    with pytest.raises(SystemExit, match=r"nnUNetv2_train 901 3d_fullres 0 .*-chk checkpoint_best\.pth"):
        main(arguments)
    capsys.readouterr()
    main([*arguments, "-chk", "checkpoint_best.pth", "--as", "nnUNetTrainer_5epochs"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"-m {tmp_path / 'model'} -f 0")
    checkpoint = torch.load(tmp_path / "model" / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer_5epochs"


def test_the_second_stage_of_a_cascade_names_the_first(
    dataset: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    dataset.plans_file.write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerMICD, dataset, "3d_cascade_fullres")
    trainer.initialize()
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        source = dataset.plans_file if name == "plans.json" else dataset.preprocessed / name
        (folder.parent / name).write_bytes(source.read_bytes())
    capsys.readouterr()
    options = f"export -d {dataset.id} -c 3d_cascade_fullres -f 0 -tr {MICD} -o"
    main([*options.split(), str(tmp_path / "model")])
    *_, predict, _, export = capsys.readouterr().out.splitlines()
    assert predict.endswith("-f 0 -prev_stage_predictions OUTPUT_FOLDER_3d_lowres")
    options = f"-d {dataset.id} -c 3d_lowres -p nnUNetPlans -tr {MICD} -f FOLDS -o MODEL_FOLDER_3d_lowres"
    assert export == f"nnUNetv2_micd export {options}"


def test_refused_without_a_trace(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    for trainer_class in (nnUNetTrainer, nnUNetTrainerMeanTeacher, nnUNetTrainerMICD):
        train(trainer_class, 0)
    stock, mean_teacher, micd = (
        ModelFolder(dataset.id, "3d_fullres", name)
        for name in ("nnUNetTrainer", "nnUNetTrainerMeanTeacher", "nnUNetTrainerMICD")
    )
    output = tmp_path / "output" / "model"
    output.parent.mkdir()
    for training, options, message in (
        (stock, {"network": "b"}, "nnUNetTrainer, which wrote .* has no second network"),
        (mean_teacher, {"network": "b"}, "nnUNetTrainerMeanTeacher, which wrote .* has no second network"),
        (micd, {"stock_trainer": "nnUNetTrainerMICD"}, "nnUNetTrainerMICD is none of nnU-Net's own trainers"),
        (micd, {"stock_trainer": "nnUNetPredictor"}, "nnUNetPredictor is none of nnU-Net's own"),
        (micd, {"stock_trainer": "nnUNetTrainerBN"}, "nnUNetTrainerBN builds a different network"),
        (micd, {"stock_trainer": "nnUNet_Primus_S_Trainer"}, "nnUNet_Primus_S_Trainer cannot build a network"),
        (ModelFolder(dataset.id, "2d", MICD), {}, r"nnUNetTrainerMICD__nnUNetPlans__2d.*: nnUNetv2_train 901 2d 0 -tr"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            export_model(training, [0], output, **options)
        assert "\n" not in str(error.value)
        assert list(output.parent.iterdir()) == []
    with pytest.raises(ValueError, match="five is not a fold"):
        export_model(micd, ["five"], output)
    with pytest.raises(FileNotFoundError, match=r"fold_1 .*nnUNetv2_train 901 3d_fullres 1 -tr nnUNetTrainerMICD"):
        export_model(micd, [0, 1], output)


def test_files_beside_the_checkpoints(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    """nnU-Net predicts without the fingerprint, but not without the plans."""
    train(nnUNetTrainerMICD, 0)
    model = ModelFolder(dataset.id, "3d_fullres", MICD)
    (model.path() / "dataset_fingerprint.json").unlink(missing_ok=True)
    exported = export_model(model, [0], tmp_path / "model")
    assert sorted(path.name for path in exported.iterdir()) == ["dataset.json", "fold_0", "plans.json"]
    (model.path() / "plans.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no plans.json in .*; put it back"):
        export_model(model, [0], tmp_path / "other")


def test_a_folder_that_is_not_empty_stays_as_it_is(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    train(nnUNetTrainerMICD, 0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    (tmp_path / ".model.lock").touch()  # as an export leaves it that was killed when all was done
    for target in (tmp_path / "model", tmp_path / "model" / "mine.txt"):
        with pytest.raises(FileExistsError, match="is not an empty folder"):
            export_model(ModelFolder(dataset.id, "3d_fullres", MICD), [0], target)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]
    assert not (tmp_path / ".model.lock").exists()


def test_results_variable_is_needed(dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(ValueError, match="nnUNet_results is not set"):
        export_model(ModelFolder(dataset.id, "3d_fullres", MICD), [0], tmp_path / "model")
