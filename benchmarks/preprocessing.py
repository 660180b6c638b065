"""Measures how preprocessing of unlabeled images scales with processes.

Usage: ``python preprocessing.py DATASET [--processes 1 2 4] [--images 100] [--size 300 512 512]``. The dataset has to
have one channel and plans for 3d_fullres. Its labeled images serve as unlabeled ones or, with ``--size``, random
volumes whose spacing is 0.8 of the plans' on each axis. The script prints the speed and the memory of the largest
process.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nnunetv2_micd.cli.main import errors_in_one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="name or number of the dataset")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--size", type=int, nargs=3, help="size of random volumes, instead of the dataset's images")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        run(args.dataset, args.processes[0], args.images, args.size)
        return
    for processes in args.processes:  # in a process each, as only the end of a process tells its memory
        command = [sys.executable, __file__, args.dataset, "--here", "--processes", str(processes)]
        size = ["--size", *map(str, args.size)] if args.size else []
        status = subprocess.run([*command, "--images", str(args.images), *size]).returncode
        if status:
            sys.exit(
                f"{processes} processes were killed" if status < 0 else status
            )  # otherwise the process has printed the error


def run(dataset: str, processes: int, number: int, size: list[int] | None) -> None:
    """Preprocess in this process and its workers."""
    from nnunetv2_micd.data.dataset import Dataset
    from nnunetv2_micd.data.folders import find_dataset, preprocessed_folder, raw_folder
    from nnunetv2_micd.data.preprocessing import preprocess_unlabeled

    name = find_dataset(dataset)
    source = Path(preprocessed_folder(name))
    images = sorted(Path(raw_folder(name), "imagesTr").glob("[!.]*"))[:number]
    labeled = next((source / "nnUNetPlans_3d_fullres").glob("*.pkl"), None)
    if labeled is None:
        raise ValueError(f"{name} is not preprocessed; run: nnUNetv2_plan_and_preprocess -d {dataset} -c 3d_fullres")
    with tempfile.TemporaryDirectory() as folder:
        target, raw = Path(folder, "preprocessed", name), Path(folder, "raw", name, "imagesUn")
        for new_folder in (target / "nnUNetPlans_3d_fullres", raw):
            new_folder.mkdir(parents=True)
        for file in ("nnUNetPlans.json", "dataset.json", f"nnUNetPlans_3d_fullres/{labeled.stem}.b2nd"):
            shutil.copy(source / file, target / file)
        if size is None:
            for image in images:
                shutil.copy(image, raw / f"unlabeled_{image.name}")
        else:
            plans = json.loads((target / "nnUNetPlans.json").read_text())
            configuration = plans["configurations"]["3d_fullres"]
            images = write_volumes(raw, number, size, configuration["spacing"])
            configuration["median_image_size_in_voxels"] = size  # otherwise their size is refused as a wrong spacing
            (target / "nnUNetPlans.json").write_text(json.dumps(plans))
        os.environ |= {"nnUNet_preprocessed": str(target.parent), "nnUNet_raw": str(raw.parent.parent)}
        begin = time.perf_counter()
        failures = preprocess_unlabeled(Dataset.find(name), ["3d_fullres"], num_processes=processes)
        seconds = time.perf_counter() - begin
    if failures:
        raise ValueError(f"{failures[0].case}: {failures[0].reason}")
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    rate = 60 * len(images) / seconds
    print(f"{processes} processes: {rate:.1f} images per minute, largest process {memory:.2f} GiB", flush=True)


def write_volumes(folder: Path, number: int, size: list[int], spacing: list[float]) -> list[Path]:
    """Write one random volume and links to it as unlabeled images; return their paths."""
    import numpy as np
    import SimpleITK as sitk

    volume = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=size).astype(np.float32))
    volume.SetSpacing([0.8 * length for length in spacing[::-1]])
    images = [folder / f"unlabeled_{index:04}_0000.nii.gz" for index in range(number)]
    sitk.WriteImage(volume, str(images[0]), useCompression=True)
    for image in images[1:]:
        os.link(images[0], image)
    return images


if __name__ == "__main__":
    with errors_in_one_sentence():
        main()
