"""The plots of the report: Dice over labels, over time, case by case and against nnU-Net, and the trainings."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from nnunetv2_micd.benchmark.records import ALL_LABELS
from nnunetv2_micd.report.aggregate import MEAN
from nnunetv2_micd.report.comparisons import pair_scores
from nnunetv2_micd.report.looks import BASELINE_COLOR, choose_colors, choose_look, choose_markers, wrap_name
from nnunetv2_micd.report.runs import (
    FinishedRun,
    describe_budget,
    name_of_usual,
)
from nnunetv2_micd.report.statistics import is_significant
from nnunetv2_micd.training.registry import STOCK

GROUP_WIDTH = 0.6
"""Width of the group of points of a budget, when neighboring budgets are 1 apart."""
LEGEND_WIDTH = 2.8
ROW_HEIGHT = 0.32
"""Height of the row of a method whose name is on an axis. Both are in inches."""


def draw_budgets(by_seed: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the mean Dice of each trainer over the budgets, or if there is one budget, side by side.

    Args:
        by_seed: Scores of each run, see `aggregate.mean_over_cases`.
        trainers: Trainers in the order of the legend.

    Returns:
        The figure, or None if all runs have all labels.
    """
    table = by_seed[by_seed["class"] == MEAN].assign(percent=lambda scores: 100 * scores["dice"])
    budgets = table[(table["budget"] != ALL_LABELS) & table["trainer"].isin(trainers)]
    if budgets.empty:
        return None
    ceiling = table[(table["budget"] == ALL_LABELS) & (table["trainer"] == STOCK)]["percent"].mean()
    draw = _draw_one_budget if budgets["budget"].nunique() == 1 else _draw_several_budgets
    return draw(budgets, trainers, ceiling)


def _draw_several_budgets(runs: pd.DataFrame, trainers: Sequence[str], ceiling: float) -> Figure:
    counts = runs.groupby("budget", sort=False)["num_labeled"].first()
    places = {budget: place for place, budget in enumerate(counts.index)}
    size = max(4.5, 2.8 * len(counts)) + LEGEND_WIDTH, max(4.5, 0.4 * len(trainers))
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.subplots()
    for number, trainer in enumerate(trainers):
        # Side by side, so that the intervals of one budget do not cover each other.
        shift = GROUP_WIDTH * ((number + 0.5) / len(trainers) - 0.5)
        seeds = runs[runs["trainer"] == trainer]
        places_of_seeds = seeds["budget"].map(places) + shift
        points = seeds.groupby(places_of_seeds)["percent"].agg(["mean", "std"]).fillna({"std": 0})
        look = choose_look(trainer, trainers)
        panel.errorbar(points.index, points["mean"], points["std"], label=wrap_name(trainer), **look)
        panel.scatter(places_of_seeds, seeds["percent"], color=look["color"], alpha=0.45, s=8)
    if not np.isnan(ceiling):
        panel.axhline(ceiling, linestyle="--", color=BASELINE_COLOR, label="nnU-Net, all labels")
    panel.set_xticks(
        range(len(counts)), [name if name == str(count) else f"{name}\n({count})" for name, count in counts.items()]
    )
    panel.set(xlim=(-0.5, len(counts) - 0.5), xlabel="labeled cases", ylabel="Dice %, mean of the classes")
    figure.legend(loc="outside right center")
    return figure


def _draw_one_budget(runs: pd.DataFrame, trainers: Sequence[str], ceiling: float) -> Figure:
    points = runs.groupby("trainer")["percent"].agg(["mean", "std"]).fillna({"std": 0}).sort_values("mean")
    figure = Figure(figsize=(8, 1 + ROW_HEIGHT * len(points)), layout="constrained")
    panel = figure.subplots()
    for place, (trainer, (mean, sd)) in enumerate(points.iterrows()):
        seeds = runs.loc[runs["trainer"] == trainer, "percent"]
        look = choose_look(trainer, trainers)
        panel.errorbar(mean, place, xerr=sd, **look)
        panel.scatter(seeds, [place] * len(seeds), color=look["color"], alpha=0.45, s=8)
        if trainer == STOCK:
            panel.axvline(mean, color=BASELINE_COLOR, zorder=0)
    if not np.isnan(ceiling):
        panel.axvline(ceiling, linestyle="--", color=BASELINE_COLOR, label="nnU-Net, all labels")
        figure.legend(loc="outside upper right")
    panel.set_yticks(range(len(points)), map(wrap_name, points.index))
    panel.set(xlabel=f"Dice %, mean of the classes, {describe_budget(runs['budget'].iloc[0])}")
    return figure


def draw_differences(comparisons: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the difference of each method's Dice to the baseline's with its interval, a panel for each budget.

    Args:
        comparisons: Comparisons with the baseline, see `comparisons.compare_all`.
        trainers: Trainers in the order of the legends of other plots.

    Returns:
        The figure, or None if there is nothing to compare.
    """
    table = comparisons[comparisons["metric"] == "dice"].dropna(subset="difference")
    if table.empty:
        return None
    budgets = list(table["budget"].unique())
    columns = min(2, len(budgets))
    rows = math.ceil(len(budgets) / columns)
    height = 1.2 + ROW_HEIGHT * table["budget"].value_counts().max()
    figure = Figure(figsize=(6 * columns, rows * height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for budget, panel in zip(budgets, panels, strict=False):
        tests = table[table["budget"] == budget].sort_values("difference").reset_index(drop=True)
        for place, row in tests.iterrows():
            low, middle, high = (100 * row[name] for name in ("low", "difference", "high"))
            look = choose_look(row["trainer"], trainers)
            filling = {} if is_significant(row) else {"markerfacecolor": "white"}
            panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], **look, **filling)
        panel.axvline(0, color=BASELINE_COLOR, zorder=0)
        panel.set_yticks(range(len(tests)), map(wrap_name, tests["trainer"]))
        panel.tick_params("x", labelbottom=True)
        panel.set_title(describe_budget(budget), fontsize=10)
        panel.set(xlabel="Dice minus nnU-Net's, in points", ylim=(-0.5, len(tests) - 0.5))
    for panel in panels:  # those that are left
        panel.remove()
    style: dict[str, Any] = {"color": "0.4", "marker": "o", "linestyle": ""}
    labels = {"significant": Line2D([], [], **style), "not significant": Line2D([], [], mfc="white", **style)}
    figure.legend(list(labels.values()), list(labels), loc="outside upper right", ncols=2)
    return figure


def draw_times(by_seed: pd.DataFrame, costs: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the mean Dice over the training time, a panel for each budget with longer trainings.

    Args:
        by_seed: Scores of each run and of the longer runs of baseline and controls, see `aggregate.mean_over_cases`.
        costs: Costs of the same runs, see `aggregate.collect_costs`.
        trainers: Trainers in the order of the legend.

    Returns:
        The figure, or None if there are no longer trainings.
    """
    table = by_seed[by_seed["class"] == MEAN].groupby(["budget", "trainer"], sort=False)["dice"].agg(["mean", "std"])
    table = 100 * table.fillna({"std": 0})
    table["minutes"] = costs.set_index(["budget", "trainer"])["training_seconds_mean"] / 60
    is_longer = [name_of_usual(trainer) != trainer for _, trainer in table.index]
    budgets = list(table[is_longer].index.unique("budget"))
    if not budgets:
        return None
    handles = {}
    size = 3.6 * len(budgets) + LEGEND_WIDTH, max(3.8, ROW_HEIGHT * len(trainers))
    figure = Figure(figsize=size, layout="constrained")
    for panel, budget in zip(figure.subplots(1, len(budgets), squeeze=False).flat, budgets, strict=True):
        points = table.loc[budget].sort_values("minutes")
        for trainer in trainers:
            # The line of baseline or control connects all its training lengths; a method has one point.
            line = points[[name_of_usual(name) == trainer for name in points.index]]
            look = choose_look(trainer, trainers)
            handles[wrap_name(trainer)] = panel.errorbar(line["minutes"], line["mean"], line["std"], **look)
        panel.set_title(describe_budget(str(budget)), fontsize=10)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set(xlabel="training time in minutes", ylabel="Dice %, mean of the classes")
    figure.legend(list(handles.values()), list(handles), loc="outside right center")
    return figure


def draw_cases(scores: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the Dice of each case against the baseline's, a panel for each budget and method.

    Args:
        scores: Scores of all cases of all runs.
        trainers: Trainers in the order of the panels.

    Returns:
        The figure, or None if there is nothing to compare.
    """
    tables = []
    for budget in scores["budget"].unique():
        for trainer in trainers:
            pairs = pair_scores(scores, "dice", budget, trainer, STOCK)
            if trainer == STOCK or pairs.empty:
                continue
            by_case = pairs.groupby(["case", "seed"]).mean().groupby("case").mean().mul(100)
            tables.append(by_case.assign(budget=budget, trainer=trainer))
    if not tables:
        return None
    pairs = pd.concat(tables, ignore_index=True)
    pairs["panel"] = list(zip(pairs["budget"], pairs["trainer"], strict=True))
    grid = seaborn.relplot(
        pairs,
        x="other",
        y="method",
        hue="trainer",
        palette=choose_colors(trainers),
        col="panel",
        col_wrap=min(4, len(tables)),
        height=2.9,
        legend=False,
        alpha=0.7,
        s=18,
        linewidth=0,
        facet_kws={"sharex": False, "sharey": False},
    )
    for (budget, trainer), panel in grid.axes_dict.items():
        # All panels of a budget have the same limits, so that they can be compared.
        values = pairs.loc[pairs["budget"] == budget, ["other", "method"]].to_numpy()
        margin = 0.06 * (values.max() - values.min()) + 0.1
        limits = values.min() - margin, values.max() + margin
        in_panel = pairs[pairs["panel"] == (budget, trainer)]
        difference = in_panel["method"] - in_panel["other"]
        better, worse = (difference > 0).sum(), (difference < 0).sum()
        panel.axline((limits[0], limits[0]), slope=1, color="0.6", linewidth=1, zorder=0)
        panel.set(xlim=limits, ylim=limits, aspect="equal")
        title = f"{wrap_name(trainer, 40)}\n{describe_budget(budget)}: {better} better, {worse} worse"
        panel.set_title(title, fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_locator(MaxNLocator(5))
    grid.set_axis_labels("Dice % of nnU-Net", "Dice % of the method")
    grid.tight_layout()
    return grid.figure


def draw_training(curves: Iterable[tuple[FinishedRun, pd.Series | None]], trainers: Sequence[str]) -> Figure | None:
    """Draw the online Dice over the epochs, a panel for each budget.

    Args:
        curves: Runs with their online Dice by epoch, None if it is not known.
        trainers: Trainers in the order of the legend.

    Returns:
        The figure, or None if no curve is known.
    """
    rows = [
        pd.DataFrame({"epoch": curve.index, "percent": 100 * curve.to_numpy()}).assign(
            budget=run.settings.budget, trainer=run.trainer, seed=run.settings.seed
        )
        for run, curve in curves
        if curve is not None
    ]
    if not rows:
        return None
    table = pd.concat(rows, ignore_index=True)
    budgets = table["budget"].unique()
    shown = [trainer for trainer in trainers if trainer in set(table["trainer"])]
    colors, markers = choose_colors(trainers), choose_markers(trainers)
    table["method"] = table["trainer"].map(wrap_name)
    plot: dict[str, Any] = {
        "data": table,
        "x": "epoch",
        "y": "percent",
        "hue": "method",
        "hue_order": [wrap_name(trainer) for trainer in shown],
        "palette": {wrap_name(trainer): colors[trainer] for trainer in shown},
    }
    grid = seaborn.relplot(
        **plot,
        kind="line",
        errorbar=None,
        style="method",
        style_order=plot["hue_order"],
        markers={wrap_name(trainer): markers[trainer] for trainer in shown},
        markevery=max(1, table["epoch"].nunique() // 10),
        dashes=False,
        markeredgewidth=0.5,
        col="budget",
        col_order=budgets,
        col_wrap=min(3, len(budgets)),
        height=max(3.4, ROW_HEIGHT * len(shown)),
        aspect=1.2,
        facet_kws={"sharex": False},
    )
    del plot["data"]  # each panel has its part
    grid.map_dataframe(seaborn.lineplot, **plot, units="seed", estimator=None, alpha=0.2, linewidth=0.5, legend=False)
    for budget, panel in grid.axes_dict.items():
        panel.set_title(describe_budget(budget), fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    grid.set_axis_labels("epoch", "online Dice %")
    grid.legend.set_title(None)
    return grid.figure
