"""Record what every trainer computes from a seed, so that two versions of the code can be compared bit by bit.

Usage: ``python same_results.py record FOLDER OUTPUT.json`` with each version (``PYTHONPATH`` chooses it), then
``python same_results.py compare BEFORE.json AFTER.json``. FOLDER holds the tiny dataset of the tests; it is made where
there is none, and is never changed.

Recorded are, from a seed and in one process: hashes of all weights and of the history of every trainer after some
steps, in 2D and 3D, with classes, regions and an ignore label, uninterrupted and continued from a checkpoint; hashes of
the logits of exported models; and hashes of the tables of the report of a small benchmark.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

MODES: dict[str, dict[str, Any]] = {
    "classes": {},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "second": 2}, "regions_class_order": [1, 2]},
    "ignore": {"labels": {"background": 0, "first": 1, "second": 2, "ignore": 3}},
}
TABLES = ("cases", "summary", "comparisons")
GRID = "-tr nnUNetTrainerMICD nnUNetTrainerBCP -n 2 3 --seeds 0 3 --val 0.4 --epochs 2 --iterations 2 --longer 2"


def main() -> None:
    command, *paths = sys.argv[1:]
    if command == "record":
        if not Path(paths[0]).is_dir():
            make_data(Path(paths[0]))
        record(Path(paths[0]), Path(paths[1]))
    else:
        compare(*(json.loads(Path(path).read_text()) for path in paths))


def make_data(folder: Path) -> None:
    """Make the tiny dataset of the tests."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers import make_dataset

    folder.mkdir(parents=True)
    make_dataset(folder)


def record(source: Path, output: Path) -> None:
    from nnunetv2_micd import TRAINER_FOLDER

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for mode, description in MODES.items():
            root = Path(folder, mode)
            shutil.copytree(source, root)
            for kind in ("raw", "preprocessed", "results"):
                os.environ[f"nnUNet_{kind}"] = str(root / kind)
            os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_extTrainer": TRAINER_FOLDER, "OMP_NUM_THREADS": "1"}
            relabel(next((root / "raw").iterdir()), next((root / "preprocessed").iterdir()), description)
            for name in trainer_names():
                if mode != "classes" and name.endswith(("epochs", "NoMirroring")):
                    continue  # the same method, only longer or not mirrored
                for configuration in ("2d", "3d_fullres"):
                    key = f"{name}, {configuration}, {mode}"
                    results[key] = train(name, configuration, root / "preprocessed")
                    print(key, results[key]["weights"][:12], flush=True)
            output.write_text(json.dumps(results, indent=1))
            if mode == "classes":
                results["exported logits"] = exported_logits(root)
                results["report"] = report(root)
                print(results["report"], flush=True)
            output.write_text(json.dumps(results, indent=1))


def relabel(raw: Path, preprocessed: Path, description: dict[str, Any]) -> None:
    """Change the labels and preprocess again, in this process."""
    import numpy as np
    import SimpleITK as sitk
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    for path in (raw / "dataset.json", preprocessed / "dataset.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | description))
    if "ignore" in description.get("labels", {}):
        for path in (raw / "labelsTr").iterdir():
            image = sitk.ReadImage(str(path))
            labels = sitk.GetArrayFromImage(image)
            middle = len(labels) // 2
            labels[: middle - 3] = labels[middle + 3 :] = 3
            new = sitk.GetImageFromArray(labels)
            new.CopyInformation(image)
            sitk.WriteImage(new, str(path))
    manager = PlansManager(str(preprocessed / "nnUNetPlans.json"))
    np.random.seed(0)
    for name in ("2d", "3d_fullres"):
        configuration = manager.get_configuration(name)
        preprocessor = configuration.preprocessor_class(verbose=False)
        folder = preprocessed / configuration.data_identifier
        for file in folder.iterdir():
            file.unlink()
        for label in sorted((raw / "labelsTr").iterdir()):
            case = label.name.removesuffix(".nii.gz")
            images = sorted(str(path) for path in (raw / "imagesTr").glob(f"{case}_*"))
            preprocessor.run_case_save(
                str(folder / case), images, str(label), manager, configuration, str(raw / "dataset.json")
            )


def trainer_names() -> list[str]:
    from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported

    return list(exported.__all__)


def make(name: str, configuration: str, preprocessed: Path, seed: int) -> Any:
    import random

    import numpy as np
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    folder = next(preprocessed.iterdir())
    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
    dataset_json = json.loads((folder / "dataset.json").read_text())
    trainer = recursive_find_trainer_class_by_name(name)(plans, configuration, 1, dataset_json, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 2, 1
    trainer.save_every = 1
    return trainer


def train(name: str, configuration: str, preprocessed: Path) -> dict[str, str]:
    """Train, and continue a copy from the checkpoint after the second epoch; return hashes."""
    import torch

    with redirect_stdout(StringIO()):
        trainer = make(name, configuration, preprocessed, seed=1)
        kept = Path(trainer.output_folder, "kept.pth")
        save = trainer.save_checkpoint

        def save_and_keep(filename: str) -> None:
            save(filename)
            if trainer.current_epoch == 1 and str(filename).endswith("latest.pth"):
                shutil.copy(filename, kept)

        trainer.save_checkpoint = save_and_keep
        trainer.run_training()
        final = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
        result = {
            "weights": digest([trainer.students, trainer.teachers]),
            "deployed": digest_of(final["network_weights"]),
            "history": hashlib.sha256(Path(trainer.output_folder, "semi_supervised.csv").read_bytes()).hexdigest(),
        }
        continued = make(name, configuration, preprocessed, seed=2)
        continued.load_checkpoint(str(kept))
        continued.run_training()
        result["continued"] = digest([continued.students, continued.teachers])
    assert result["continued"] == result["weights"], name
    return result


def digest(groups: list[dict[str, Any]]) -> str:
    return hashlib.sha256(
        "".join(name + digest_of(network.state_dict()) for group in groups for name, network in group.items()).encode()
    ).hexdigest()


def digest_of(state: dict[str, Any]) -> str:
    value = hashlib.sha256()
    for key, tensor in state.items():
        value.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return value.hexdigest()


def exported_logits(root: Path) -> dict[str, str]:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    logits = {}
    for network in "ab":
        folder = root / f"model_{network}"
        run(f"export -d 901 -c 3d_fullres -f 1 -o {folder} --network {network}")
        predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
        with redirect_stdout(StringIO()):
            predictor.initialize_from_trained_model_folder(str(folder), use_folds=(1,))
            image = torch.randn(1, 20, 24, 28, generator=torch.Generator().manual_seed(0))
            values = predictor.predict_sliding_window_return_logits(image)
        logits[network] = hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
    return logits


def report(root: Path) -> dict[str, str]:
    """Return hashes of the tables of the report of a small benchmark."""
    (next((root / "preprocessed").iterdir()) / "splits_final.json").unlink()
    run(f"benchmark -d 901 -c 3d_fullres {GRID} -device cpu --jobs 1")
    run(f"report -d 901 -c 3d_fullres -o {root / 'report'}")
    return {name: hashlib.sha256((root / "report" / f"{name}.csv").read_bytes()).hexdigest() for name in TABLES}


def run(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "nnunetv2_micd", *command.split()], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    different = [key for key in before if after.get(key) != before[key]]
    for key in different:
        print(f"differs: {key}\n  {before[key]}\n  {after.get(key)}")
    new = sorted(after.keys() - before.keys())
    print(f"{len(before) - len(different)} of {len(before)} equal; only in the second: {', '.join(new) or 'none'}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
