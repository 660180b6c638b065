"""The mean of both networks: what it predicts, for which runs, and what a failure of it leaves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import TinyDataset, make_trainer
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_micd.benchmark import Grid, run_benchmark
from nnunetv2_micd.benchmark.plan import plan_runs
from nnunetv2_micd.benchmark.prediction import MEAN_PREDICTIONS, find_test_images, predict_mean
from nnunetv2_micd.benchmark.records import Record, Result, Run, read_record, write_record
from nnunetv2_micd.benchmark.run import execute
from nnunetv2_micd.benchmark.run_folder import is_done
from nnunetv2_micd.benchmark.trainers import write_trainers
from nnunetv2_micd.training.checkpoints import KEY
from nnunetv2_micd.training.registry import EXT_TRAINER, find_trainer, join_folders

MEASURED = {"training_seconds": 1.0, "prediction_seconds": 2.0}


def write_checkpoint(run: Run, *teachers: str) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    weights = {"encoder.weight": torch.zeros(1)}
    content = {"network_weights": weights, "trainer_name": run.trainer_class, "init_args": {}}
    ours = {KEY: {"teachers": dict.fromkeys(teachers, weights)}} if teachers else {}
    torch.save(content | ours, run.folder / "checkpoint_final.pth")


def read(run: Run) -> Record:
    record = read_record(run.folder)
    assert record is not None
    return record


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let runs only note what they would do; return the notes."""
    notes: list[str] = []

    def note(name: str, result: Any) -> Callable[..., Any]:
        return lambda run, *_: (notes.append(f"{name} {run.trainer}"), result)[1]

    monkeypatch.setattr("nnunetv2_micd.benchmark.run._train_and_predict", note("train", MEASURED))
    monkeypatch.setattr("nnunetv2_micd.benchmark.run.predict_mean", note("mean", 3.0))
    return notes


def test_the_mean_may_be_asked_for_later(dataset: TinyDataset, grid: Grid, calls: list[str]) -> None:
    stock, micd = plan_runs(grid)
    write_checkpoint(stock)
    write_checkpoint(micd, "a", "b")
    for run in (stock, micd):
        execute(run, "cpu", [])
    assert (is_done(stock, mean_of_both=True), is_done(micd, mean_of_both=True), is_done(micd)) == (True, False, True)
    for _ in range(2):
        for run in (stock, micd):
            execute(run, "cpu", [], mean_of_both=True)
            assert is_done(run, mean_of_both=True)
    assert calls == ["train nnUNetTrainer", "train nnUNetTrainerMICD", "mean nnUNetTrainerMICD"]
    assert read(stock) == (stock, read(stock).result.done(**MEASURED))
    assert read(stock).result.mean_predictions is None
    result = read(micd).result
    assert (result.mean_predictions, result.mean_prediction_seconds) == (MEAN_PREDICTIONS, 3)
    assert (result.training_seconds, result.prediction_seconds) == (1, 2)


def test_a_failed_mean_loses_no_training(
    dataset: TinyDataset, grid: Grid, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, micd = plan_runs(grid)
    write_checkpoint(micd, "a", "b")

    def fail(*_: Any) -> float:
        raise RuntimeError("no\nspace")

    with monkeypatch.context() as patch:
        patch.setattr("nnunetv2_micd.benchmark.run.predict_mean", fail)
        with pytest.raises(RuntimeError, match="space"):
            execute(micd, "cpu", [], mean_of_both=True)
    result = read(micd).result
    assert (result.status, result.error, result.training_seconds) == ("failed", "RuntimeError: no space", 1)
    failed = json.loads((micd.folder / "benchmark.json").read_text())

    execute(micd, "cpu", [])  # without the mean nothing is left to do
    assert (read(micd).result.status, read(micd).result.error) == ("done", None)
    (micd.folder / "benchmark.json").write_text(json.dumps(failed))
    execute(micd, "cpu", [], mean_of_both=True)
    assert (read(micd).result.status, read(micd).result.mean_prediction_seconds) == ("done", 3)
    assert calls == ["train nnUNetTrainerMICD", "mean nnUNetTrainerMICD"]


def test_the_checkpoint_is_needed_to_know(dataset: TinyDataset, grid: Grid) -> None:
    _, micd = plan_runs(grid)
    write_record(micd, Result.start(micd, "cpu").done())
    with pytest.raises(FileNotFoundError, match=r"checkpoint_final.pth, which --mean-of-both reads, is missing"):
        is_done(micd, mean_of_both=True)


def test_the_images_of_the_test_cases(dataset: TinyDataset, grid: Grid, test_set: tuple[str, str]) -> None:
    run, _ = plan_runs(replace(grid, mean_of_both=True))
    (case,) = json.loads(dataset.splits_file.read_text())[run.fold]["val"]
    image = dataset.raw / "imagesTr" / f"{case}_0000.nii.gz"
    assert find_test_images(run) == {case: [str(image)]}
    tested, _ = plan_runs(replace(grid, test=test_set))
    assert find_test_images(tested) == {f"test_{seed}": [f"{test_set[0]}/test_{seed}_0000.nii.gz"] for seed in (50, 51)}
    image.unlink()
    plan_runs(grid)
    with pytest.raises(ValueError, match=rf"validation cases are missing in .* \({case}\); .*leave out --mean-of-both"):
        plan_runs(replace(grid, mean_of_both=True))


def mean_by_hand(folder: Path, teacher_b: torch.nn.Module, image: Path) -> np.ndarray:
    """Return the labels with the largest mean of the probabilities of both networks."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder.parent), (folder.name.removeprefix("fold_"),))
    reader = predictor.plans_manager.image_reader_writer_class()
    data, properties = reader.read_images([str(image)])
    probabilities = [predictor.predict_single_npy_array(data, properties, save_or_return_probabilities=True)[1]]
    teacher_b.decoder.deep_supervision = False
    predictor.network, predictor.list_of_parameters = teacher_b, [teacher_b.state_dict()]
    probabilities.append(predictor.predict_single_npy_array(data, properties, save_or_return_probabilities=True)[1])
    assert (probabilities[0].argmax(0) != probabilities[1].argmax(0)).any()
    return np.mean(probabilities, axis=0).argmax(0)


def test_predicts_the_mean_of_the_probabilities(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunetv2_micd.benchmark.prediction.PREDICTION_PROCESSES", 1)
    _, micd = plan_runs(grid)
    monkeypatch.setenv(EXT_TRAINER, join_folders(write_trainers([micd])[micd.trainer_class]))
    trainer = make_trainer(find_trainer(micd.trainer_class).trainer_class, dataset, fold=micd.fold)
    trainer.on_train_start()
    with torch.no_grad():
        for teacher in trainer.teachers.values():
            for parameter in teacher.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    trainer.save_checkpoint(str(micd.folder / "checkpoint_final.pth"))
    before = {path.name for path in micd.folder.iterdir()}
    leftover = micd.folder / f"{MEAN_PREDICTIONS}_incomplete" / "model"
    leftover.mkdir(parents=True)
    (leftover / "rest.npz").touch()
    assert predict_mean(micd, torch.device("cpu")) > 0
    assert {path.name for path in micd.folder.iterdir()} == before | {MEAN_PREDICTIONS}
    (case,) = find_test_images(micd)
    predicted = micd.folder / MEAN_PREDICTIONS
    assert {path.name for path in predicted.iterdir()} == {f"{case}.nii.gz", "dataset.json"}
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(predicted / f"{case}.nii.gz")))
    image = dataset.raw / "imagesTr" / f"{case}_0000.nii.gz"
    assert (segmentation == mean_by_hand(micd.folder, trainer.teachers["b"], image)).mean() > 0.999


@pytest.mark.slow
def test_a_benchmark_with_the_mean(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    for mean_of_both, ended in ((False, 2), (True, 1), (True, 0)):
        assert run_benchmark(replace(grid, mean_of_both=mean_of_both), "cpu") == []
        assert capsys.readouterr().out.count("done: ") == ended
    stock, micd = (read(run).result for run in plan_runs(grid))
    assert (stock.mean_predictions, micd.mean_predictions) == (None, MEAN_PREDICTIONS)
    assert micd.mean_prediction_seconds is not None
    assert micd.mean_prediction_seconds > 0
