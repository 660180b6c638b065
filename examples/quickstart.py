"""What unlabeled images are worth, from raw images to test scores, with the commands that a user would type.

The script trains nnU-Net on one labeled volume of ``examples/hippocampus``, and MICD on the same volume and 26 that are
not labeled. Both predict 12 test volumes, which are compared with their labels. It writes everything to
``quickstart/``, which each run deletes first. Run it with ``make quickstart``.
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
TRAINERS = {"nnU-Net": "nnUNetTrainer_small", "MICD": "nnUNetTrainerMICD_small"}
FOLD = 5  # the first five are nnU-Net's own, of all labels
LEAST_DICE = 0.5
CASES_SHOWN = 4


def main() -> None:
    start = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    raw = WORK / "nnUNet_raw" / DATASET
    preprocessed = WORK / "nnUNet_preprocessed" / DATASET
    shutil.copytree(DATA, raw)
    processes = str(min(4, os.cpu_count() or 1))
    set_environment(processes)

    title("Plan and preprocess the labeled images")
    run(f"nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -npfp {processes} -np {processes} --verify_dataset_integrity")
    title("Shrink the network so that it trains on a CPU in minutes")
    write_small_plans(preprocessed)
    title("Preprocess the unlabeled images (imagesUn)")
    run(f"nnUNetv2_micd preprocess -d 4 -c 3d_fullres -p {PLANS} -np {processes}")
    title("Hide all labels but one, of a volume that the seed draws; one more volume is for the online validation")
    run("nnUNetv2_micd split -d 4 -n 1 --seeds 0")

    images, labels = (shlex.quote(relative(raw / folder)) for folder in ("imagesTs", "labelsTs"))
    minutes, outputs = {}, {name: WORK / "predictions" / name for name in TRAINERS}
    for name, trainer in TRAINERS.items():
        minutes[name] = train_and_predict(name, trainer, images, labels, outputs[name], processes)

    title("Draw some predictions, from the worst to the best of nnU-Net")
    folders = " ".join(shlex.quote(relative(output)) for output in outputs.values())
    picture = shlex.quote(relative(WORK / "prediction.png"))
    run(f"nnUNetv2_micd draw -i {images} -l {labels} -p {folders} -o {picture} -n {CASES_SHOWN}")

    title("Result")
    names = json.loads((raw / "dataset.json").read_text())["labels"]
    summaries = {name: json.loads((output / "summary.json").read_text()) for name, output in outputs.items()}
    report(summaries, {str(value): name for name, value in names.items()}, minutes)
    print(f"Picture of some predictions: {relative(WORK / 'prediction.png')}")
    print(f"Everything took {(time.monotonic() - start) / 60:.1f} minutes.")
    for name, summary in summaries.items():
        if not summary["foreground_mean"]["Dice"] >= LEAST_DICE:
            sys.exit(f"The mean Dice of {name} is below {LEAST_DICE}, which a working installation reaches.")


def train_and_predict(name: str, trainer: str, images: str, labels: str, output: Path, processes: str) -> float:
    """Train with one label, predict the test images and score them; return the minutes of the training."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    title(f"Train {name}")
    start = time.monotonic()
    run(f"nnUNetv2_train 4 3d_fullres {FOLD} -p {PLANS} -tr {trainer} -device {device}")
    minutes = (time.monotonic() - start) / 60
    title(f"Predict the test images with {name}, and compare them with their labels")
    folder = shlex.quote(relative(output))
    run(
        f"nnUNetv2_predict -i {images} -o {folder} -d 4 -c 3d_fullres -f {FOLD} -p {PLANS} -tr {trainer} "
        f"-npp {processes} -nps {processes} -device {device}"
    )
    run(
        f"nnUNetv2_evaluate_folder {labels} {folder} -djfile {folder}/dataset.json -pfile {folder}/plans.json "
        f"-np {processes}"
    )
    return minutes


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


def report(summaries: dict[str, dict], class_names: dict[str, str], minutes: dict[str, float]) -> None:
    """Print the Dice of both trainings, and what the unlabeled images have gained on these test volumes."""
    print(f"{'Dice in percent':<18}" + "".join(f"{name:>10}" for name in summaries))
    for value, label in class_names.items():
        if value != "0":
            print(f"{label:<18}" + "".join(f"{100 * each['mean'][value]['Dice']:10.1f}" for each in summaries.values()))
    means = {name: 100 * summary["foreground_mean"]["Dice"] for name, summary in summaries.items()}
    print(f"{'mean':<18}" + "".join(f"{mean:10.1f}" for mean in means.values()))
    print(f"{'training, minutes':<18}" + "".join(f"{minutes[name]:10.1f}" for name in summaries))
    ours, stock = (case_dice(summaries[name]) for name in ("MICD", "nnU-Net"))
    better = sum(ours[case] > stock[case] for case in ours)
    gain = means["MICD"] - means["nnU-Net"]
    verdict = f"gained {gain:.1f} points" if gain > 0 else f"lost {-gain:.1f} points"
    print(
        f"\nWith the same label and 26 unlabeled images, MICD {verdict} of Dice over nnU-Net; it is better on "
        f"{better} of {len(ours)} test volumes."
    )
    print(
        "This is one labeled volume and one training of each; another run gives other figures. For the measurement, "
        "with three labeled volumes in turn, 159 unlabeled ones and 40 for testing, see "
        "docs/results/hippocampus_1_label."
    )


def case_dice(summary: dict) -> dict[str, float]:
    """Return the mean Dice of each test volume."""
    return {
        Path(case["prediction_file"]).name: sum(scores["Dice"] for scores in case["metrics"].values())
        for case in summary["metric_per_case"]
    }


if __name__ == "__main__":
    main()
