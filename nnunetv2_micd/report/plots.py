"""The plots of the report: Dice over labels, over time and case by case, and the course of the trainings."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from nnunetv2_micd.benchmark.records import ALL_LABELS
from nnunetv2_micd.report.aggregate import MEAN
from nnunetv2_micd.report.runs import FinishedRun, display_name, is_baseline
from nnunetv2_micd.training.registry import STOCK

COLORS = (
    *("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f3fbf"),
    *("#999900", "#b22222", "#f032e6", "#000075", "#7ccd00", "#00c5c5", "#ff8fa3", "#5f7a8a"),
)
"""The first six are Okabe and Ito's, which color-blind readers can distinguish."""
BASELINE_COLOR = "#404040"
MARKERS = "osD^vPX*<>"
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
"""Settings of Matplotlib for all plots."""

GROUP_WIDTH = 0.4
"""Width of the group of points of a budget, when neighboring budgets are 1 apart."""


def choose_colors(trainers: Sequence[str]) -> dict[str, Any]:
    """Return a color for each trainer, no two alike, the same in all plots."""
    methods = [trainer for trainer in trainers if trainer != STOCK]
    colors = COLORS if len(methods) <= len(COLORS) else seaborn.color_palette("husl", len(methods))
    return {STOCK: BASELINE_COLOR, **dict(zip(methods, colors, strict=False))}


def choose_markers(trainers: Sequence[str]) -> dict[str, str]:
    """Return a marker for each trainer, the same in all plots; after ten trainers they repeat."""
    return {trainer: MARKERS[number % len(MARKERS)] for number, trainer in enumerate(trainers)}


def draw_budgets(by_seed: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the mean Dice of each trainer over the budgets.

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
    counts = budgets.groupby("budget", sort=False)["num_labeled"].first()
    places = {budget: place for place, budget in enumerate(counts.index)}
    # Side by side, so that the intervals of one budget do not cover each other.
    shifts = {trainer: GROUP_WIDTH * ((number + 0.5) / len(trainers) - 0.5) for number, trainer in enumerate(trainers)}
    budgets = budgets.assign(place=budgets["budget"].map(places) + budgets["trainer"].map(shifts))
    plot = _by_method(budgets, trainers) | {"x": "place", "y": "percent"}
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    panel = figure.subplots()
    markers = dict(zip(plot["hue_order"], choose_markers(trainers).values(), strict=True))
    bars: dict[str, Any] = {"errorbar": "sd", "err_style": "bars", "err_kws": {"capsize": 3}}
    seaborn.lineplot(
        **plot, ax=panel, style="method", markers=markers, dashes=False, markersize=7, markeredgewidth=0, **bars
    )
    seaborn.scatterplot(**plot, ax=panel, alpha=0.45, s=12, legend=False)
    ceiling = table[(table["budget"] == ALL_LABELS) & (table["trainer"] == STOCK)]["percent"]
    if not ceiling.empty:
        panel.axhline(ceiling.mean(), linestyle="--", color=BASELINE_COLOR, label="nnU-Net, all labels")
    panel.set_xticks(
        range(len(counts)), [name if name == str(count) else f"{name}\n({count})" for name, count in counts.items()]
    )
    panel.set(xlim=(-0.5, len(counts) - 0.5), xlabel="labeled cases", ylabel="Dice %, mean of the classes")
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _by_method(table: pd.DataFrame, trainers: Sequence[str]) -> dict[str, Any]:
    """Return arguments for seaborn that give each method its name in the legend and its color."""
    colors = {display_name(trainer): color for trainer, color in choose_colors(trainers).items() if trainer in trainers}
    names = [display_name(trainer) for trainer in trainers]
    table = table.assign(method=table["trainer"].map(display_name))
    return {"data": table, "hue": "method", "hue_order": names, "palette": colors}


def draw_times(by_seed: pd.DataFrame, costs: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the mean Dice over the training time, a panel for each budget with longer trainings of the baseline.

    Args:
        by_seed: Scores of each run and of the longer runs of the baseline, see `aggregate.mean_over_cases`.
        costs: Costs of the same runs, see `aggregate.collect_costs`.
        trainers: Trainers in the order of the legend.

    Returns:
        The figure, or None if there are no longer trainings.
    """
    table = by_seed[by_seed["class"] == MEAN].groupby(["budget", "trainer"], sort=False)["dice"].agg(["mean", "std"])
    table = 100 * table.fillna({"std": 0})
    table["minutes"] = costs.set_index(["budget", "trainer"])["training_seconds_mean"] / 60
    is_longer = [is_baseline(trainer) and trainer != STOCK for _, trainer in table.index]
    budgets = list(table[is_longer].index.unique("budget"))
    if not budgets:
        return None
    colors, markers, handles = choose_colors(trainers), choose_markers(trainers), {}
    figure = Figure(figsize=(4.6 * len(budgets), 3.8), layout="constrained")
    for panel, budget in zip(figure.subplots(1, len(budgets), squeeze=False).flat, budgets, strict=True):
        points = table.loc[budget].sort_values("minutes")
        for trainer in trainers:
            # The line of the baseline connects all its training lengths; a method has one point.
            is_on_line = [name == trainer or (trainer == STOCK and is_baseline(name)) for name in points.index]
            line = points[is_on_line]
            style: dict[str, Any] = {"color": colors[trainer], "marker": markers[trainer], "capsize": 3}
            handles[display_name(trainer)] = panel.errorbar(line["minutes"], line["mean"], line["std"], **style)
        panel.set_title(_budget_title(str(budget)), fontsize=10)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set(xlabel="training time in minutes", ylabel="Dice %, mean of the classes")
    figure.legend(list(handles.values()), list(handles), loc="outside right upper")
    return figure


def draw_cases(by_case: pd.DataFrame, trainers: Sequence[str]) -> Figure | None:
    """Draw the Dice of each case against the baseline's, a panel for each budget and method.

    Args:
        by_case: Scores of each run and case, see `aggregate.mean_over_classes`.
        trainers: Trainers in the order of the panels.

    Returns:
        The figure, or None if there is nothing to compare.
    """
    means = by_case.groupby(["budget", "trainer", "case"], sort=False)["dice"].mean().mul(100).reset_index()
    baseline = means[means["trainer"] == STOCK].drop(columns="trainer")
    pairs = means.merge(baseline, on=["budget", "case"], suffixes=("_of_method", "_of_baseline"))
    pairs = pairs[pairs["trainer"] != STOCK].dropna()
    if pairs.empty:
        return None
    order = [
        (budget, trainer)
        for budget in by_case["budget"].unique()
        for trainer in trainers
        if ((pairs["budget"] == budget) & (pairs["trainer"] == trainer)).any()
    ]
    pairs["panel"] = list(zip(pairs["budget"], pairs["trainer"], strict=True))
    grid = seaborn.relplot(
        pairs,
        x="dice_of_baseline",
        y="dice_of_method",
        hue="trainer",
        palette=choose_colors(trainers),
        col="panel",
        col_order=order,
        col_wrap=min(4, len(order)),
        height=2.9,
        legend=False,
        alpha=0.7,
        s=18,
        linewidth=0,
        facet_kws={"sharex": False, "sharey": False},
    )
    for (budget, trainer), panel in grid.axes_dict.items():
        # All panels of a budget have the same limits, so that they can be compared.
        values = pairs.loc[pairs["budget"] == budget, ["dice_of_baseline", "dice_of_method"]].to_numpy()
        margin = 0.06 * (values.max() - values.min()) + 0.1
        limits = values.min() - margin, values.max() + margin
        in_panel = pairs[pairs["panel"] == (budget, trainer)]
        difference = in_panel["dice_of_method"] - in_panel["dice_of_baseline"]
        better, worse = (difference > 0).sum(), (difference < 0).sum()
        panel.axline((limits[0], limits[0]), slope=1, color="0.6", linewidth=1, zorder=0)
        panel.set(xlim=limits, ylim=limits, aspect="equal")
        panel.set_title(f"{display_name(trainer)}, {_budget_title(budget)}\n{better} better, {worse} worse", fontsize=9)
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
    plot = _by_method(table, [trainer for trainer in trainers if trainer in set(table["trainer"])])
    plot |= {"x": "epoch", "y": "percent"}
    grid = seaborn.relplot(
        **plot,
        kind="line",
        errorbar=None,
        marker="o" if table["epoch"].nunique() < 20 else None,  # a training of one epoch has no line
        markeredgewidth=0,
        col="budget",
        col_order=budgets,
        col_wrap=min(3, len(budgets)),
        height=3.4,
        aspect=1.2,
        facet_kws={"sharex": False},
    )
    del plot["data"]  # each panel has its part
    grid.map_dataframe(seaborn.lineplot, **plot, units="seed", estimator=None, alpha=0.3, linewidth=0.7, legend=False)
    for budget, panel in grid.axes_dict.items():
        panel.set_title(_budget_title(budget), fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid.set_axis_labels("epoch", "online Dice %")
    grid.legend.set_title(None)
    return grid.figure


def _budget_title(budget: str) -> str:
    if budget.endswith("%"):
        return f"{budget} of the cases labeled"
    if budget.startswith("f"):
        return f"labels of fold {budget[1:]}"
    return "all labels" if budget == ALL_LABELS else "1 labeled case" if budget == "1" else f"{budget} labeled cases"
