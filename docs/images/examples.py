"""Draws ``examples.png`` of the README from runs of docs/results/self_training_elsewhere, with seed 2.

The cases are those at the 5 % and 50 % quantiles of nnU-Net's Dice, so nobody has picked them.
"""

from pathlib import Path

import pandas as pd

from nnunetv2_micd.report import examples
from nnunetv2_micd.report.aggregate import mean_over_classes
from nnunetv2_micd.report.collect import collect_runs
from nnunetv2_micd.report.run_scores import load_scores

BASELINE = "nnUNetTrainer_small_3200steps"
ORDER = ["nnUNetTrainer", "nnUNetTrainerSelfTraining_LabeledOnly (control)", "nnUNetTrainerSelfTraining"]


def main() -> None:
    runs, _, _ = collect_runs(18, "2d", "nnUNetPlans_small", 128, BASELINE)
    runs = sorted((run for run in runs if run.settings.seed == 2), key=lambda run: ORDER.index(run.trainer))
    tables = [load_scores(run, 1.0, map).assign(trainer=run.trainer, budget="10", seed=2) for run in runs]
    scores = pd.concat(tables)
    examples.QUANTILES = (0.05, 0.5)
    chosen = examples.choose_examples(runs, mean_over_classes(scores.assign(group=scores["case"])))
    assert chosen is not None
    figure = examples.draw_examples(chosen)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
