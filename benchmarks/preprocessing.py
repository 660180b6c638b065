"""Measure how preprocessing of unlabeled images scales with processes.

Usage: ``python preprocessing.py DATASET [--processes 1 2 4] [--images 100]``, a dataset with one channel that is
planned for 3d_fullres; its labeled images are taken for unlabeled ones. Beside the speed it prints the memory of the
largest process.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="name or number")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        run(args.dataset, args.processes[0], args.images)
        return
    for processes in args.processes:  # a process for each, whose memory is known only in the end
        command = [sys.executable, __file__, args.dataset, "--here", "--processes", str(processes)]
        subprocess.run([*command, "--images", str(args.images)], check=True)


def run(dataset: str, processes: int, number: int) -> None:
    """Preprocess in this process and its workers."""
    from nnunetv2_micd.dataset_folders import find_dataset
    from nnunetv2_micd.preprocessing import preprocess_unlabeled

    name = find_dataset(dataset)
    source = Path(os.environ["nnUNet_preprocessed"], name)
    images = sorted(Path(os.environ["nnUNet_raw"], name, "imagesTr").glob("[!.]*"))[:number]
    labeled = next((source / "nnUNetPlans_3d_fullres").glob("*.pkl")).stem
    with tempfile.TemporaryDirectory() as folder:
        target, raw = Path(folder, "preprocessed", name), Path(folder, "raw", name, "imagesUn")
        for each in (target / "nnUNetPlans_3d_fullres", raw):
            each.mkdir(parents=True)
        for file in ("nnUNetPlans.json", "dataset.json", f"nnUNetPlans_3d_fullres/{labeled}.b2nd"):
            shutil.copy(source / file, target / file)
        for image in images:
            shutil.copy(image, raw / f"unlabeled_{image.name}")
        os.environ |= {"nnUNet_preprocessed": str(target.parent), "nnUNet_raw": str(raw.parent.parent)}
        begin = time.perf_counter()
        failures = preprocess_unlabeled(name, ["3d_fullres"], num_processes=processes)
        seconds = time.perf_counter() - begin
    if failures:
        raise SystemExit(f"{failures[0].case}: {failures[0].reason}")
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    print(f"{processes} processes: {len(images) / seconds:.1f} images per second, largest process {memory:.2f} GiB")


if __name__ == "__main__":
    main()
