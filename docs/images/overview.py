"""Draws ``overview.png`` of the README from the tables in ``docs/results``: the Dice with few labels."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1]
NAMES = {
    "nnUNetTrainer": ("nnU-Net", "0.65"),
    "nnUNetTrainerSelfTraining_LabeledOnly (control)": ("labeled images mixed (control)", "#9ecae1"),
    "nnUNetTrainerSelfTraining": ("self-training with unlabeled images", "#e6550d"),
}
BUDGETS = {
    "f0": "3 labeled patients,\n67 unlabeled",
    "f1": "7 labeled patients,\n63 unlabeled",
    "10": "10 labeled patients,\n60 unlabeled",
    "20": "20 labeled patients,\n50 unlabeled",
}
TABLES = ("acdc/summary.csv", "acdc/ten_patients/summary.csv", "acdc/twenty_patients/summary.csv")


def main() -> None:
    rows = []
    for table in TABLES:
        with (DOCS / "results" / table).open() as file:
            rows += [row for row in csv.DictReader(file) if row["class"] == "mean of classes"]
    dice = {(row["budget"], row["trainer"]): row for row in rows}
    budgets = [budget for budget in BUDGETS if (budget, "nnUNetTrainerSelfTraining") in dice]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    for offset, (trainer, (name, color)) in enumerate(NAMES.items()):
        for position, budget in enumerate(budgets):
            row = dice[budget, trainer]
            value, spread = 100 * float(row["dice_mean"]), 100 * float(row["dice_sd"] or 0)
            x = position + 0.27 * (offset - 1)
            axes.bar(x, value, 0.25, color=color, label=name if position == 0 else None, yerr=spread or None, capsize=3)
            axes.text(x, value + spread + 1, f"{value:.0f}", ha="center", fontsize=9)
    axes.set(ylim=(0, 100), ylabel="Dice in %", xticks=range(len(budgets)))
    axes.set_xticklabels([BUDGETS[budget] for budget in budgets])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(
        "Hearts (ACDC), 40 test volumes; small networks, 3200 steps; lines: standard deviation of the trainings\n"
        "3 and 7: the published patients, three trainings; 10 and 20: three draws of others",
        fontsize=9,
    )
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
