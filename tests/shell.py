"""Runs commands as a user does, with nnU-Net's variables set to the data of a test."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conftest import TinyDataset

from nnunetv2_micd import TRAINER_FOLDER

MICD = "nnUNetTrainerMICD_short"


class Shell:
    """Runs commands with nnU-Net's variables set to the data of a test."""

    def __init__(self, dataset: TinyDataset):
        self.dataset = dataset
        self.environment = {
            **os.environ,
            "nnUNet_extTrainer": os.pathsep.join((TRAINER_FOLDER, str(Path(__file__).parent / "trainers"))),
            "nnUNet_def_n_proc": "1",
        }

    def __call__(self, command: str, code: int = 0, **environment: str) -> str:
        """Run a command of the environment of these tests and return what it printed."""
        name, *words = command.split()
        path = Path(sys.executable).parent / name
        result = subprocess.run(
            [path, *words],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert result.returncode == code, f"{command}\n{result.stdout[-4000:]}"
        return result.stdout

    def train(self, options: str, trainer: str = MICD, **more: Any) -> str:
        return self(f"nnUNetv2_train {self.dataset.id} {options} -tr {trainer} -device cpu", **more)

    def train_folds(self, configuration: str, folds: int, trainer: str = MICD) -> None:
        """Train two folds side by side, as users with two GPUs do; each is one thread here."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda fold: self.train(f"{configuration} {fold} --npz", trainer), range(folds)))

    def predict(self, options: str, trainer: str = MICD, output: str = "predicted", images: Path | None = None) -> Path:
        folder = self.dataset.root / output
        source = f"-d {self.dataset.id} -i {images or self.dataset.images} -o {folder}"
        self(f"nnUNetv2_predict {source} {options} -tr {trainer} -device cpu --disable_tta -npp 1 -nps 1")
        return folder
