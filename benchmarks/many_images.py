"""Measures the start of a training, and an unlabeled batch, with more and more unlabeled images.

Usage: ``python many_images.py DATASET [--numbers 10 1000 10000]``. The dataset has to be preprocessed for 3d_fullres.
Its preprocessed folder is copied to a temporary one, where links to one image stand for many images.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

from nnunetv2_micd.cli.main import errors_in_one_sentence

BATCHES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="name or number of the dataset")
    parser.add_argument(
        "--numbers", type=int, nargs="+", default=[10, 1000, 10_000], help="numbers of unlabeled images"
    )
    args = parser.parse_args()
    # nnU-Net is imported after --help and the environment, because it takes seconds and reads its variables.
    from nnunetv2_micd.data.folders import find_dataset, preprocessed_folder

    name = find_dataset(args.dataset)
    source = Path(preprocessed_folder(name))
    print(f"{'images':>8}{'find ms':>10}{'start s':>10}{'batch ms':>10}")
    for number in args.numbers:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "preprocessed", name)
            shutil.copytree(source, target)
            os.environ |= {"nnUNet_preprocessed": str(target.parent), "nnUNet_results": str(Path(folder, "results"))}
            os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_raw": str(Path(folder, "raw"))}
            print(f"{number:8}" + "".join(f"{value:10.1f}" for value in measure(target, number)), flush=True)


def measure(dataset: Path, number: int) -> tuple[float, float, float]:
    """Return ms to find the images, s to start all loaders, and ms of an unlabeled batch."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_micd.data.dataset import Dataset
    from nnunetv2_micd.data.preprocessed import FINGERPRINT_FILE, preprocessing_fingerprint, unlabeled_folder
    from nnunetv2_micd.data.unlabeled import find_unlabeled_cases
    from nnunetv2_micd.methods.micd import nnUNetTrainerMICD

    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((dataset / "dataset.json").read_text())
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    labeled = dataset / configuration.data_identifier
    cases = sorted(path.stem for path in labeled.glob("*.pkl"))
    if not cases:
        raise ValueError(f"{dataset.name} is not preprocessed, see: nnUNetv2_plan_and_preprocess -h")
    unlabeled = Path(unlabeled_folder(str(labeled)))
    shutil.rmtree(unlabeled, ignore_errors=True)
    unlabeled.mkdir()
    for index in range(number):
        for end in (".b2nd", ".pkl"):
            os.link(labeled / f"{cases[-1]}{end}", unlabeled / f"unlabeled_{index:05}{end}")
    fingerprint = preprocessing_fingerprint(manager, configuration, dataset_json)
    (unlabeled / FINGERPRINT_FILE).write_text(json.dumps({"fingerprint": fingerprint}))
    (dataset / "splits_final.json").write_text(json.dumps([{"train": cases[:2], "val": cases[2:4]}]))
    begin = time.perf_counter()
    images = find_unlabeled_cases(
        Dataset(dataset.name, manager, dataset_json), "3d_fullres", {"train": cases[:2], "val": cases[2:4]}
    )
    finding = time.perf_counter() - begin
    assert len(images) == number
    with redirect_stdout(StringIO()):
        trainer = nnUNetTrainerMICD(
            {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu")
        )
        trainer.initialize()
        begin = time.perf_counter()
        trainer.on_train_start()
        starting = time.perf_counter() - begin
        batches = []
        for _ in range(BATCHES):
            begin = time.perf_counter()
            next(trainer.dataloader_unlabeled)
            batches.append(time.perf_counter() - begin)
    return 1000 * finding, starting, 1000 * median(batches)


if __name__ == "__main__":
    with errors_in_one_sentence():
        main()
