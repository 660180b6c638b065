"""Compare supervised training, Mean Teacher and MICD on few labels: same plans, labels, steps, patches and seeds.

Needs the hippocampus data of the Medical Segmentation Decathlon as ``Dataset004_Hippocampus``, planned and
preprocessed for 3d_fullres. Forty cases are for testing and twenty for choosing settings; of the rest a few keep their
labels and the others are used without. Each run is one process and writes one JSON file; a run whose file exists is not
repeated::

    python examples/compare_hippocampus.py --methods supervised mean_teacher micd --budgets 2 6 --seeds 0 1 2
    python examples/compare_hippocampus.py --methods micd --set mcpc_reading=peer_clean --budgets 2 --seeds 0 --choose
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from scipy import stats

DATASET = "Dataset004_Hippocampus"
STEPS_PER_EPOCH = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["supervised"], help="supervised, mean_teacher, micd")
    parser.add_argument("--budgets", nargs="+", type=int, default=[2, 6], help="labeled cases")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the method's config")
    parser.add_argument("--choose", action="store_true", help="score on the cases for choosing, not on the test cases")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("-o", "--output", type=Path, default=Path("comparison"))
    parser.add_argument("--table", action="store_true", help="train nothing, print what is in the output folder")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print_table(args.output, "choose" if args.choose else "test")
        return
    if args.here:
        run(args, args.methods[0], args.budgets[0], args.seeds[0])
        return
    # Seeds outermost, so that an interrupted comparison is still one of equals.
    runs = [(method, budget, seed) for seed in args.seeds for budget in args.budgets for method in args.methods]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda one: run_in_process(args, *one), runs))


def result_file(args: argparse.Namespace, method: str, budget: int, seed: int) -> Path:
    """Return the file of a run, named after everything that the run depends on."""
    purpose = "choose" if args.choose else "test"
    parts = [purpose, method, *args.set, f"{budget}labels", f"{args.steps}steps", f"seed{seed}"]
    return args.output / f"{'-'.join(parts)}.json"


def run_in_process(args: argparse.Namespace, method: str, budget: int, seed: int) -> None:
    result = result_file(args, method, budget, seed)
    if result.exists():
        return
    args.output.mkdir(parents=True, exist_ok=True)
    options = ["--methods", method, "--budgets", str(budget), "--seeds", str(seed), "--steps", str(args.steps)]
    options += ["--set", *args.set, "-o", str(args.output), "--here", *(["--choose"] if args.choose else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}
    with result.with_suffix(".log").open("w") as log:
        command = [sys.executable, __file__, *options]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    print(result.stem, "done" if code == 0 else f"FAILED, see {result.with_suffix('.log')}", flush=True)


def run(args: argparse.Namespace, method: str, budget: int, seed: int) -> None:
    """Train and score one run in this process."""
    result = result_file(args, method, budget, seed)
    base = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    os.environ["nnUNet_results"] = str(args.output / "runs" / result.stem)
    torch.set_num_threads(1)
    np.random.seed(seed)
    torch.manual_seed(seed)
    identifiers = sorted(path.name.removesuffix(".nii.gz") for path in (base / "gt_segmentations").iterdir())
    trainer_class = build_trainer(method, args.steps, split(budget, seed, args.choose, identifiers), args.set)
    trainer = trainer_class(
        {**small_plans(base), "continue_training": False},
        "3d_fullres",
        0,
        json.loads((base / "dataset.json").read_text()),
        torch.device("cpu"),
    )
    trainer.disable_checkpointing = True
    begin = time()
    trainer.run_training()
    record = {"method": method, "set": args.set, "budget": budget, "seed": seed, "steps": args.steps}
    record |= {
        "seconds": time() - begin,
        "scores": {name: dice(trainer, net) for name, net in networks(trainer).items()},
    }
    result.write_text(json.dumps(record, indent=1))


def small_plans(base: Path) -> dict[str, Any]:
    """nnU-Net's plans with a network and batch that a CPU core can train in minutes."""
    plans = json.loads((base / "nnUNetPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["batch_size"] = 2
    configuration["patch_size"] = [32, 40, 32]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 16, 32, 64]
    return plans


def split(budget: int, seed: int, choose: bool, identifiers: list[str]) -> dict[str, list[str]]:
    """Test cases and cases for choosing are the same in all runs; a larger budget contains the smaller ones."""
    shuffled = [str(name) for name in np.random.default_rng(12345).permutation(identifiers)]
    test, chooser, pool = shuffled[:40], shuffled[40:60], sorted(shuffled[60:])
    pool = [str(name) for name in np.random.default_rng([seed, int(choose)]).permutation(pool)]
    return {"train": pool[:budget], "unlabeled": pool[budget:], "val": chooser if choose else test}


def build_trainer(method: str, steps: int, entry: dict[str, list[str]], settings: list[str]) -> type:
    """Return the method's trainer with the recipe of the quickstart, this split and these settings."""
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainerNoMirroring,
    )

    from nnunetv2_micd.mean_teacher import nnUNetTrainerMeanTeacher
    from nnunetv2_micd.micd import nnUNetTrainerMICD

    # Supervised training is Mean Teacher without its unsupervised loss: the student is nnU-Net's own network, trained
    # as nnU-Net does, and the teacher shows what the moving average alone is worth.
    parent = nnUNetTrainerMICD if method == "micd" else nnUNetTrainerMeanTeacher
    fields = {name: parse(value) for name, value in (setting.split("=") for setting in settings)}
    if method == "supervised":
        fields["ramp_peak"] = 0.0

    class Comparison(nnUNetTrainerNoMirroring, parent):  # type: ignore[misc, valid-type]
        config = replace(parent.config, **fields)

        def __init__(self, plans, configuration, fold, dataset_json, device):  # type: ignore[no-untyped-def]
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_iterations_per_epoch = STEPS_PER_EPOCH
            self.num_epochs = steps // STEPS_PER_EPOCH
            self.num_val_iterations_per_epoch = 2
            self.initial_lr = 3e-3

        def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
            optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
            return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

        def initialize(self) -> None:
            super().initialize()
            for network in networks(self).values():
                network.to(memory_format=torch.channels_last_3d)

        def do_split(self) -> tuple[list[str], list[str]]:
            return list(entry["train"]), list(entry["val"])

        def split_unlabeled(self) -> list[str]:
            return entry["unlabeled"]

    return Comparison


def parse(value: str) -> bool | float | str:
    if value in ("True", "False"):
        return value == "True"
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError:
        return value


def networks(trainer: Any) -> dict[str, torch.nn.Module]:
    students = {f"student_{name}": network for name, network in trainer.students.items()}
    return {**students, **{f"teacher_{name}": network for name, network in trainer.teachers.items()}}


def dice(trainer: Any, network: torch.nn.Module) -> list[list[float]]:
    """Dice of each class of each case, on the whole volume, predicted as nnU-Net predicts."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
    network.decoder.deep_supervision = False
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    _, cases = trainer.do_split()
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, cases)
    scores = []
    for case in cases:
        image, truth, _, _ = dataset.load_case(case)  # the data has 1 mm spacing and is not cropped: nothing to undo
        predicted = predictor.predict_sliding_window_return_logits(torch.from_numpy(image[:])).argmax(0).numpy()
        truth = truth[0]
        pairs = [(predicted == label, truth == label) for label in trainer.label_manager.foreground_labels]
        scores.append([float(2 * (p & t).sum() / (p.sum() + t.sum())) for p, t in pairs])
    return scores


def print_table(folder: Path, purpose: str) -> None:
    """Print mean Dice and its standard deviation over seeds for each network, and the gain over supervised training.

    The gain is that of the deployed network, the teacher of A, over nnU-Net's own, the student of supervised training,
    on the same cases; its interval (95 %) and p (Wilcoxon) are over cases, each averaged over the seeds.
    """
    runs: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"{purpose}-*.json")):
        run = json.loads(path.read_text())
        runs.setdefault((run["budget"], " ".join([run["method"], *run["set"]])), {})[run["seed"]] = run
    names = ("student_a", "teacher_a", "student_b", "teacher_b")
    print(f"| labels | method | seeds | {' | '.join(names)} | gain | p | minutes |")
    print("| --- " * (len(names) + 6) + "|")
    for (budget, method), by_seed in sorted(runs.items()):
        cells = [cell([run["scores"].get(name) for run in by_seed.values()]) for name in names]
        minutes = np.mean([run["seconds"] for run in by_seed.values()]) / 60
        gain, p = gain_over_supervised(by_seed, runs.get((budget, "supervised"), {}))
        seeds = ", ".join(str(seed) for seed in sorted(by_seed))
        print(f"| {budget} | {method} | {seeds} | {' | '.join(cells)} | {gain} | {p} | {minutes:.1f} |")


def cell(scores: list[list[list[float]] | None]) -> str:
    means = [100 * np.mean(seed) for seed in scores if seed is not None]
    return f"{np.mean(means):.1f} ± {np.std(means, ddof=min(1, len(means) - 1)):.1f}" if means else ""


def gain_over_supervised(runs: dict[int, dict[str, Any]], supervised: dict[int, dict[str, Any]]) -> tuple[str, str]:
    seeds = sorted(runs.keys() & supervised.keys())
    if not seeds:
        return "", ""
    gains = [
        np.mean(runs[seed]["scores"]["teacher_a"], axis=1) - np.mean(supervised[seed]["scores"]["student_a"], axis=1)
        for seed in seeds
    ]
    of_cases = 100 * np.mean(gains, axis=0)
    interval = stats.bootstrap((of_cases,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    p = stats.wilcoxon(of_cases).pvalue
    return f"{of_cases.mean():+.1f} ({interval.low:+.1f} to {interval.high:+.1f})", f"{p:.2g}"


if __name__ == "__main__":
    main()
