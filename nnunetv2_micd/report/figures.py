"""The figures of the report."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from nnunetv2_micd.benchmark.records import ALL_LABELS
from nnunetv2_micd.report.examples import choose_examples, draw_examples
from nnunetv2_micd.report.runs import BASELINE, Run, display_name, is_baseline
from nnunetv2_micd.report.tables import MEAN, mean_over_cases, mean_over_classes

COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f3fbf", "#999900", "#b22222")
"""The first six are Okabe and Ito's, which color-blind readers can tell apart."""
MARKERS = "osD^vPX*<>"
RESOLUTION = 150


@dataclass(frozen=True)
class Picture:
    """A figure on disk and what there is to say about it."""

    title: str
    caption: str
    file: Path
    width: float
    """In inches: with it, the letters of all figures are of one size."""


def draw_all(runs: Sequence[Run], scores: pd.DataFrame, costs: pd.DataFrame, folder: Path) -> list[Picture]:
    """Draw every figure for which there is something to draw.

    Args:
        runs: in the order of the legends.
        scores: of all cases of all runs, and of longer ones of the baseline.
        costs: of the same, see ``report_tables.collect_costs``.
        folder: for the PNGs; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainers = list(dict.fromkeys(run.trainer for run in runs))
    times = draw_times(mean_over_cases(scores), costs, trainers)
    scores = scores[scores["trainer"].isin(trainers)]
    examples = choose_examples(runs, mean_over_classes(scores))
    figures = [
        (
            "Dice over the number of labels",
            "dice_over_labels.png",
            "Points are means over the seeds with their standard deviation, small dots the seeds. The dashed line is "
            f"{display_name(BASELINE)} trained on all labels, where there is such a run.",
            draw_budgets(mean_over_cases(scores), trainers),
        ),
        (
            "Dice over training time",
            "dice_over_time.png",
            "Points are means over the seeds with their standard deviation. The line is nnU-Net, trained for so many "
            "times as many steps; a method above it is worth its time.",
            times,
        ),
        (
            "Case by case against nnU-Net",
            "cases.png",
            "A point is a test case, its Dice the mean over classes and seeds. Above the line the method is better "
            "than nnU-Net with the same labels.",
            draw_cases(mean_over_classes(scores), trainers),
        ),
        (
            "Training",
            "training.png",
            "Online Dice on patches of the validation cases after each epoch, on average over the seeds (thin: the "
            "seeds). It is an estimate that nnU-Net makes while training, not the score in the tables.",
            draw_training({run.folder: (run, read_curve(run)) for run in runs}.values(), trainers),
        ),
        ("Examples", "examples.png", examples.caption if examples else "", draw_examples(examples)),
    ]
    pictures = []
    for title, name, caption, figure in figures:
        (folder / name).unlink(missing_ok=True)  # that of an earlier report
        if figure is not None:
            figure.savefig(folder / name, dpi=RESOLUTION)
            pictures.append(Picture(title, caption, folder / name, figure.get_figwidth()))
    return pictures


def _style(trainers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return color and marker of each trainer, the same in all figures."""
    others = [trainer for trainer in trainers if trainer != BASELINE]
    styles = {}
    for number, name in enumerate(others):
        round_, place = divmod(number, len(COLORS))  # the same colors again, with other markers
        styles[name] = {"color": COLORS[place], "marker": MARKERS[(place + round_) % len(MARKERS)]}
    return {BASELINE: {"color": "0.25", "marker": "o"}, **styles}


def _budgets(table: pd.DataFrame) -> list[str]:
    return [budget for budget in table["budget"].unique() if budget != ALL_LABELS]


def _label(budget: str) -> str:
    if budget.endswith("%"):
        return f"{budget} of the cases labeled"
    if budget.startswith("f"):
        return f"labels of fold {budget[1:]}"
    return "all labels" if budget == ALL_LABELS else "1 labeled case" if budget == "1" else f"{budget} labeled cases"


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    with matplotlib.style.context("default"):  # nnU-Net's own plot leaves huge fonts behind
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    for each in axes.flat:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_budgets(by_seed: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the mean Dice of each trainer over the budgets, or nothing where all runs have all labels."""
    table = by_seed[by_seed["class"] == MEAN]
    budgets, styles = _budgets(table), _style(trainers)
    if not budgets:
        return None
    figure, axes = _grid(1, 1, 7.5, 4.5)
    panel = axes[0, 0]
    for number, trainer in enumerate(trainers):
        # side by side, so that the intervals of one budget do not cover each other
        shift = 0.4 * ((number + 0.5) / len(trainers) - 0.5)
        found = table[(table["trainer"] == trainer) & table["budget"].isin(budgets)]
        if found.empty:
            continue
        places = found["budget"].map(budgets.index) + shift
        groups = (100 * found["dice"]).groupby(places)
        color = styles[trainer]["color"]
        panel.plot(places, 100 * found["dice"], ".", color=color, alpha=0.45, markersize=5)
        panel.errorbar(
            groups.mean().index,
            groups.mean(),
            groups.std().fillna(0),
            capsize=3,
            label=display_name(trainer),
            **styles[trainer],
        )
    ceiling = table[(table["budget"] == ALL_LABELS) & (table["trainer"] == BASELINE)]["dice"]
    if not ceiling.empty:
        panel.axhline(100 * ceiling.mean(), linestyle="--", color="0.25", label="nnU-Net, all labels")
    counts = table.groupby("budget", sort=False)["num_labeled"].first()
    panel.set_xticks(range(len(budgets)), [b if b == str(counts[b]) else f"{b}\n({counts[b]})" for b in budgets])
    panel.set_xlim(-0.5, len(budgets) - 0.5)
    panel.set_xlabel("labeled cases")
    panel.set_ylabel("Dice %, mean of the classes")
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def draw_times(by_seed: pd.DataFrame, costs: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the mean Dice over the training time, a panel for each budget with longer trainings of the baseline."""
    table = by_seed[by_seed["class"] == MEAN].groupby(["budget", "trainer"], sort=False)["dice"].agg(["mean", "std"])
    table = 100 * table.fillna({"std": 0}).join(costs.set_index(["budget", "trainer"])["training_seconds_mean"] / 6000)
    longer = table[[is_baseline(trainer) and trainer != BASELINE for _, trainer in table.index]]
    budgets = list(longer.index.unique("budget"))
    if not budgets:
        return None
    styles, handles = _style(trainers), {}
    figure, axes = _grid(1, len(budgets), 4.6, 3.8)
    for panel, budget in zip(axes.flat, budgets, strict=True):
        of_budget = table.loc[budget].sort_values("training_seconds_mean")
        for trainer in trainers:
            names = [name for name in of_budget.index if name == trainer or (trainer == BASELINE and is_baseline(name))]
            mean, std, minutes = (of_budget.loc[names, column] for column in of_budget)
            line = panel.errorbar(minutes, mean, std, capsize=3, **styles[trainer])
            handles[display_name(trainer)] = line
        panel.set_title(_label(str(budget)), fontsize=10)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("training time in minutes")
        panel.set_ylabel("Dice %, mean of the classes")
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False)
    return figure


def draw_cases(by_case: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the Dice of each case against that of the baseline, a panel for each budget and method."""
    means = by_case.groupby(["budget", "trainer", "case"])["dice"].mean() * 100
    pairs = {}
    for budget, trainer in itertools.product(by_case["budget"].unique(), trainers):
        if trainer != BASELINE and {(budget, trainer), (budget, BASELINE)} <= set(means.index.droplevel("case")):
            pairs[budget, trainer] = pd.DataFrame(
                {"stock": means[budget, BASELINE], "method": means[budget, trainer]}
            ).dropna()
    pairs = {key: table for key, table in pairs.items() if len(table)}
    if not pairs:
        return None
    styles = _style(trainers)
    columns = min(4, len(pairs))
    figure, axes = _grid(math.ceil(len(pairs) / columns), columns, 2.7, 3.0)
    for panel in axes.flat[len(pairs) :]:
        panel.set_visible(False)
    for number, (panel, ((budget, trainer), table)) in enumerate(zip(axes.flat, pairs.items(), strict=False)):
        values = pd.concat([each for (other, _), each in pairs.items() if other == budget]).to_numpy()
        low, high = values.min(), values.max()
        limits = (low - 0.06 * (high - low) - 0.1, high + 0.06 * (high - low) + 0.1)
        difference = table["method"] - table["stock"]
        panel.plot(limits, limits, color="0.6", linewidth=1)
        panel.scatter(table["stock"], table["method"], s=16, alpha=0.7, color=styles[trainer]["color"], linewidths=0)
        counts = f"{(difference > 0).sum()} better, {(difference < 0).sum()} worse"
        panel.set_title(f"{display_name(trainer)}, {_label(budget)}\n{counts}", fontsize=9)
        panel.set(xlim=limits, ylim=limits, aspect="equal")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.set_xlabel("Dice % of nnU-Net", fontsize=9)
        if number % columns == 0:
            panel.set_ylabel("Dice % of the method", fontsize=9)
    return figure


def draw_training(curves: Iterable[tuple[Run, pd.Series | None]], trainers: Sequence[str]) -> Figure | None:
    """Draw the online Dice over the epochs, a panel for each budget, or nothing where no run has a record of it."""
    known = [(run, curve) for run, curve in curves if curve is not None]
    budgets = list(dict.fromkeys(run.budget for run, _ in known))
    if not budgets:
        return None
    styles = _style(trainers)
    columns = min(3, len(budgets))
    figure, axes = _grid(math.ceil(len(budgets) / columns), columns, 4.2, 3.4)
    for panel in axes.flat[len(budgets) :]:
        panel.set_visible(False)
    handles: dict[str, Any] = {}
    for panel, budget in zip(axes.flat, budgets, strict=False):
        for trainer in trainers:
            group = [curve for run, curve in known if (run.budget, run.trainer) == (budget, trainer)]
            color = styles[trainer]["color"]
            for curve in group if len(group) > 1 else []:
                panel.plot(curve.index, 100 * curve, color=color, alpha=0.3, linewidth=0.7)
            if group:
                mean = pd.concat(group, axis=1).mean(axis=1)
                handles[display_name(trainer)] = panel.plot(mean.index, 100 * mean, color=color, linewidth=1.8)[0]
        panel.set_title(_label(budget), fontsize=10)
        panel.set_xlabel("epoch")
        panel.set_ylabel("online Dice %")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    limits = [panel.get_ylim() for panel in axes.flat[: len(budgets)]]
    for panel in axes.flat:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False)
    return figure


def read_curve(run: Run) -> pd.Series | None:
    """Return the online Dice over the epochs, or None where nothing on disk tells.

    It comes from the file that this package's trainers write, or else from nnU-Net's checkpoint.
    """
    try:
        table = pd.read_csv(run.folder / "semi_supervised.csv").set_index("epoch")
        return table["mean_fg_dice"]
    except (OSError, ValueError, KeyError):
        pass
    try:
        # nnU-Net's own way to load its checkpoint; mapped, so that the weights are not read
        checkpoint = torch.load(run.folder / run.checkpoint, map_location="cpu", weights_only=False, mmap=True)
        values: Mapping[str, list[float]] = checkpoint["logging"]
        return pd.Series(values["mean_fg_dice"], dtype=float)
    except (OSError, RuntimeError, KeyError, TypeError, EOFError):
        return None
