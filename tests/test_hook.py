import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, TRAINER_FOLDER),
        ("", TRAINER_FOLDER),
        ("/mine", f"/mine{os.pathsep}{TRAINER_FOLDER}"),
        (f"{TRAINER_FOLDER}{os.pathsep}/mine", f"{TRAINER_FOLDER}{os.pathsep}/mine"),
    ],
)
def test_import_adds_the_folder_once(before: str | None, after: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    environment |= {} if before is None else {"nnUNet_extTrainer": before}
    code = "import os, nnunetv2_micd; print(os.environ['nnUNet_extTrainer'])"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == after


def test_the_folder_holds_one_file_that_defines_nothing() -> None:
    assert [path.name for path in Path(TRAINER_FOLDER).glob("*.py")] == ["nnunetv2_micd_trainers.py"]
    for name in exported.__all__:
        trainer = getattr(exported, name)
        assert trainer.__module__.startswith("nnunetv2_micd.")
        assert pickle.loads(pickle.dumps(trainer)) is trainer
