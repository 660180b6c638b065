"""Semi-supervised training from raw images to test scores, with the commands that a user would type.

The script trains on 6 labeled and 22 unlabeled volumes of ``examples/hippocampus``, predicts 12 test volumes and
compares the predictions with their labels. It writes everything to ``quickstart/``, which each run deletes first.
Run it with ``make quickstart``.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from small_plans import PLANS, write_small_plans

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "examples" / "hippocampus"
WORK = REPOSITORY / "quickstart"
DATASET = "Dataset004_Hippocampus"
TRAINER = "nnUNetTrainerMICD_small"
LEAST_DICE = 0.75
CASES_SHOWN = 4


def main() -> None:
    start = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    raw = WORK / "nnUNet_raw" / DATASET
    preprocessed = WORK / "nnUNet_preprocessed" / DATASET
    predictions = WORK / "predictions"
    shutil.copytree(DATA, raw)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes = str(min(4, os.cpu_count() or 1))
    set_environment(processes)

    title("Plan and preprocess the labeled images")
    run(f"nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -npfp {processes} -np {processes} --verify_dataset_integrity")
    title("Shrink the network so that it trains on a CPU in minutes")
    write_small_plans(preprocessed)
    title("Preprocess the unlabeled images (imagesUn)")
    run(f"nnUNetv2_micd preprocess -d 4 -c 3d_fullres -p {PLANS} -np {processes}")

    title("Train on 6 labeled and 22 unlabeled images")
    training_start = time.monotonic()
    run(f"nnUNetv2_train 4 3d_fullres all -p {PLANS} -tr {TRAINER} -device {device}")
    training_seconds = time.monotonic() - training_start

    title("Predict the 12 test images with nnU-Net's own command and compare them with their labels")
    paths = raw / "imagesTs", raw / "labelsTs", predictions, WORK / "prediction.png"
    images, labels, output, picture = (shlex.quote(relative(path)) for path in paths)
    run(
        f"nnUNetv2_predict -i {images} -o {output} -d 4 -c 3d_fullres -f all -p {PLANS} -tr {TRAINER} "
        f"-npp {processes} -nps {processes} -device {device}"
    )
    run(
        f"nnUNetv2_evaluate_folder {labels} {output} -djfile {output}/dataset.json -pfile {output}/plans.json "
        f"-np {processes}"
    )
    summary = json.loads((predictions / "summary.json").read_text())
    class_names = {str(value): name for name, value in json.loads((raw / "dataset.json").read_text())["labels"].items()}
    title("Draw some predictions, from the worst to the best")
    run(f"nnUNetv2_micd draw -i {images} -l {labels} -p {output} -o {picture} -n {CASES_SHOWN}")
    report(summary, class_names, training_seconds, time.monotonic() - start)


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def relative(path: Path) -> str:
    return os.path.relpath(path, REPOSITORY)


def set_environment(processes: str) -> None:
    """Set the variables that the commands need, and print them so that the commands can be typed by hand."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    trainers = subprocess.run(["nnUNetv2_micd", "path"], check=True, capture_output=True, text=True).stdout.strip()
    variables = {f"nnUNet_{name}": str(WORK / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")}
    variables["nnUNet_extTrainer"] = os.pathsep.join([trainers, str(REPOSITORY / "examples" / "trainers")])
    variables["nnUNet_def_n_proc"] = processes
    variables["nnUNet_compile"] = "f"  # compiling the networks takes longer than it saves in such a short training
    title("Paste these lines before you repeat single commands")
    print(f"cd {shlex.quote(str(REPOSITORY))}\nsource {shlex.quote(str(Path(sys.executable).parent / 'activate'))}")
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    os.environ |= variables


def run(command: str) -> None:
    print(f"\n$ {command}", flush=True)
    try:
        subprocess.run(shlex.split(command), check=True, cwd=REPOSITORY)
    except subprocess.CalledProcessError as error:
        sys.exit(f"\nThe quickstart stopped because this command failed (exit code {error.returncode}): {command}")


def report(summary: dict, class_names: dict[str, str], training_seconds: float, total_seconds: float) -> None:
    title("Result")
    for value, metrics in summary["mean"].items():
        print(f"Dice {class_names[value]:<12} {metrics['Dice']:.3f}")
    mean = summary["foreground_mean"]["Dice"]
    print(f"Dice {'mean':<12} {mean:.3f}   ({len(summary['metric_per_case'])} test volumes)")
    print(f"Training took {training_seconds / 60:.1f} minutes, everything {total_seconds / 60:.1f}.")
    print(f"Picture of some predictions: {relative(WORK / 'prediction.png')}")
    if not mean >= LEAST_DICE:
        sys.exit(f"The mean Dice {mean:.3f} is below {LEAST_DICE}, which a working installation reaches.")


if __name__ == "__main__":
    main()
