"""A run of a benchmark: what it is, in which folder, and its ``benchmark.json``, which says how far it is."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

import nnunetv2_micd
from nnunetv2_micd.export import FINAL, Training

RECORD = "benchmark.json"

STOCK = "nnUNetTrainer"
"""nnU-Net's own trainer."""

ALL_LABELS = "all"
"""The budget with which nothing is unlabeled: the ceiling, of the baseline only."""


@dataclass(frozen=True)
class Run:
    """What a run is: two runs in one folder are the same if all of this is.

    Attributes:
        dataset: full name.
        configuration: such as ``3d_fullres``.
        plans: name of the plans.
        trainer: as after ``-tr``.
        trainer_class: the trained class, another one where the length is not the trainer's own.
        fold: the entry of ``splits_final.json``.
        budget: how many cases are labeled, as the user wrote it.
        seed: decides which, and seeds the process.
        labeled: these cases.
        num_unlabeled: how many images this trainer uses without labels.
        epochs: of the training.
        iterations: of an epoch.
        test_images: folder of the test images, or None for the fold's validation cases.
        test_labels: folder of their labels.
        transductive: whether a test image is among the unlabeled ones.
        plans_hash: of the configuration's part of the plans.
    """

    dataset: str
    configuration: str
    plans: str
    trainer: str
    trainer_class: str
    fold: int
    budget: str
    seed: int
    labeled: tuple[str, ...]
    num_unlabeled: int
    epochs: int
    iterations: int
    test_images: str | None
    test_labels: str | None
    transductive: bool
    plans_hash: str

    def __str__(self) -> str:
        return f"{self.trainer}, {self.budget} labeled, seed {self.seed}, {self.epochs} epochs"

    @property
    def folder(self) -> Path:
        """Where nnU-Net puts the run."""
        training = Training(self.dataset, self.configuration, self.trainer_class, self.plans)
        return training.find_folder() / f"fold_{self.fold}"

    def settings(self) -> dict[str, Any]:
        """Return the run as it stands in its ``benchmark.json``, which calls the class ``class``."""
        content = {**asdict(self), "labeled": list(self.labeled), "num_labeled": len(self.labeled)}
        content["class"] = content.pop("trainer_class")
        return content


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's ``benchmark.json``, or None where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if record["status"] not in ("running", "done", "failed"):
            raise ValueError(f"status {record['status']!r}")
        return dict(record)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete the folder {folder} to do this run again") from None


def write_record(run: Run, status: str, device: str, **figures: Any) -> None:
    """Write a run's ``benchmark.json``, seen only once it is whole."""
    predictions, truth = evaluated_folders(run)
    record = {
        "status": status,
        "error": None,
        **run.settings(),
        "predictions": predictions,
        "truth": truth,
        "checkpoint": FINAL,
        "device": device,
        "machine": _machine(device),
        "versions": _versions(),
        **figures,
    }
    run.folder.mkdir(parents=True, exist_ok=True)
    temporary = run.folder / f"{RECORD}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, run.folder / RECORD)
    finally:
        temporary.unlink(missing_ok=True)


def evaluated_folders(run: Run) -> tuple[str, str]:
    """Return the folders of the predictions, relative to that of the run, and of their labels."""
    if run.test_labels is not None:
        return "benchmark_predictions", run.test_labels
    return "validation", os.path.join(str(nnUNet_preprocessed), run.dataset, "gt_segmentations")


def _machine(device: str) -> str:
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "no GPU used"
    return f"{platform.platform()}, {os.cpu_count()} CPU cores, {gpu}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "nnunetv2_micd": nnunetv2_micd.__version__,
        "nnunetv2": version("nnunetv2"),
        "torch": version("torch"),
        "python": platform.python_version(),
    }
