"""Whole benchmarks as a user runs them: finished, killed, continued and submitted."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import MICD, Shell, TinyDataset

from nnunetv2_micd.benchmark import Grid
from nnunetv2_micd.benchmark.plan import plan_runs
from nnunetv2_micd.benchmark.run import _train

COMMAND = "nnUNetv2_micd benchmark -d 901 -c 3d_fullres -n 2 -device cpu"


def records(dataset: TinyDataset) -> dict[str, dict[str, Any]]:
    files = (dataset.results / dataset.name).glob("*/fold_*/benchmark.json")
    return {
        content["trainer"]: content | {"folder": file.parent}
        for file in files
        for content in [json.loads(file.read_text())]
    }


@pytest.mark.slow
def test_grid_from_start_to_end(dataset: TinyDataset, test_set: tuple[str, str]) -> None:
    shell = Shell(dataset)
    command = f"{COMMAND} -tr nnUNetTrainerMICD --epochs 2 --iterations 2 --test {test_set[0]} {test_set[1]} --jobs 2"
    output = shell(command)
    assert "done: nnUNetTrainerMICD, 2 labeled, seed 0" in output
    runs = records(dataset)
    assert set(runs) == {"nnUNetTrainer", "nnUNetTrainerMICD"}
    for name, record in runs.items():
        assert (record["status"], record["error"], record["class"]) == ("done", None, f"{name}_e2_i2")
        assert (record["epochs"], record["iterations"], record["num_labeled"]) == (2, 2, 2)
        assert record["training_seconds"] > 0
        assert record["prediction_seconds"] > 0
        assert record["peak_memory_bytes"] > 10**7
        assert record["peak_gpu_bytes"] is None
        predicted = record["folder"] / record["predictions"]
        assert {path.name for path in predicted.glob("*.nii.gz")} == {"test_50.nii.gz", "test_51.nii.gz"}
        assert record["truth"] == test_set[1]
        assert (record["folder"] / record["checkpoint"]).exists()

    before = {name: (record["folder"] / "benchmark.json").stat().st_mtime_ns for name, record in runs.items()}
    assert "2 runs, 2 of them done before." in shell(command)
    assert before == {name: (r["folder"] / "benchmark.json").stat().st_mtime_ns for name, r in runs.items()}

    variable = re.search(r'export nnUNet_extTrainer="(.*)"', output)
    assert variable
    fold = runs["nnUNetTrainerMICD"]["fold"]
    shell(
        f"nnUNetv2_predict -d 901 -i {test_set[0]} -o {dataset.root / 'again'} -c 3d_fullres -f {fold} "
        "-tr nnUNetTrainerMICD_e2_i2 -device cpu -npp 1 -nps 1",
        nnUNet_extTrainer=variable[1],
    )
    for name in ("test_50.nii.gz", "test_51.nii.gz"):
        files = (dataset.root / "again" / name, runs["nnUNetTrainerMICD"]["folder"] / "benchmark_predictions" / name)
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_killed_run_fails_alone_and_continues(dataset: TinyDataset) -> None:
    shell = Shell(dataset)
    command = f"{COMMAND} -tr {MICD} --epochs 3 --iterations 2"
    output = shell(command, code=1, KILL_IN="step")
    assert f"FAILED: {MICD}, 2 labeled, seed 0, 3 epochs: it was killed (signal 9); see " in output
    assert "error: 1 run failed" in output
    runs = records(dataset)
    assert runs["nnUNetTrainer"]["status"] == "done"
    assert (runs[MICD]["status"], runs[MICD]["error"]) == ("failed", "it was killed (signal 9)")
    shell(command)
    record = records(dataset)[MICD]
    assert (record["status"], record["error"]) == ("done", None)
    assert (record["folder"] / "validation" / "case_1.nii.gz").parent.is_dir()
    assert record["predictions"] == "validation"
    logs = sorted(record["folder"].glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    assert "Epoch 0" in logs[0].read_text()
    assert "Epoch 0" not in logs[-1].read_text()
    assert "Epoch 2" in logs[-1].read_text()


def test_a_training_that_was_killed_before_its_last_deed_keeps_one_checkpoint(
    dataset: TinyDataset, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan_runs(grid)[0]
    run.folder.mkdir(parents=True)
    for name in ("final", "latest"):
        torch.save({}, run.folder / f"checkpoint_{name}.pth")
    validated = []
    configuration = SimpleNamespace(configuration={"next_stage": "3d_cascade_fullres"})
    trainer = SimpleNamespace(
        perform_actual_validation=lambda: validated.append(True), configuration_manager=configuration
    )
    monkeypatch.setattr("nnunetv2_micd.benchmark.run.get_trainer_from_args", lambda *_: trainer)
    monkeypatch.setattr("nnunetv2_micd.benchmark.run.maybe_load_checkpoint", lambda *_, **__: None)
    assert not _train(run, torch.device("cpu"))  # so its memory tells nothing about the training
    assert validated == [True]
    assert configuration.configuration == {}  # so nothing is written for the user's own next stage
    assert [path.name for path in run.folder.glob("*.pth")] == ["checkpoint_final.pth"]


@pytest.mark.slow
def test_a_killed_benchmark_takes_its_runs_along_and_goes_on(dataset: TinyDataset) -> None:
    shell = Shell(dataset)
    words = f"{COMMAND} -tr nnUNetTrainer --epochs 40 --iterations 2".split()
    process = subprocess.Popen([Path(sys.executable).parent / words[0], *words[1:]], env=shell.environment)
    folder = dataset.results / dataset.name / "nnUNetTrainer_e40_i2__nnUNetPlans__3d_fullres" / "fold_2"
    while not any("Epoch 2 " in path.read_text() for path in folder.glob("training_log_*.txt")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((folder / "benchmark.json").read_text())["status"] == "running"
    lock = (
        "from pathlib import Path; from nnunetv2_micd.benchmark.run import lock_folder\n"
        f"with lock_folder(Path('{folder}')): pass"
    )
    subprocess.run([sys.executable, "-c", lock], check=True, env=shell.environment)  # nobody is at it
    shell(" ".join(words))
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    assert "Epoch 39 " in logs[0].read_text() + logs[-1].read_text()
    assert "Epoch 0 " not in logs[-1].read_text()
    assert "Epoch 39 " not in logs[0].read_text()
