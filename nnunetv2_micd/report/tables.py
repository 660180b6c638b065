"""The tables of the report, formatted for reading."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nnunetv2_micd.report.aggregate import EMPTY, MEAN
from nnunetv2_micd.report.scores import METRICS
from nnunetv2_micd.utils.markdown import markdown_table

PERCENT = ("dice", "nsd")
"""Metrics from 0 to 1 that are shown as percentages."""

Names = Mapping[tuple[str, str], str]
"""Name of a method in the tables, by budget and trainer."""

Titles = Mapping[str, str]
"""Name of a metric in the tables."""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        title: The title.
        header: Names of the columns.
        rows: The cells.
    """

    title: str
    header: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """Return the table in Markdown, with its title above."""
        return f"### {self.title}\n\n{markdown_table(self.header, self.rows)}"


def format_tables(frames: dict[str, pd.DataFrame], names: Names, unit: str) -> list[Table]:
    """Return the tables of the report in their order.

    Args:
        frames: The tables that `writer.write_report` writes as CSV, with unrounded numbers.
        names: Name of a method by budget and trainer.
        unit: Unit of distances.
    """
    titles = {"dice": "Dice %", "nsd": "NSD %", "hd95": f"HD95 {unit}", "asd": f"ASD {unit}"}
    summary = frames["summary"]
    tests = ["difference (95 % interval)", "seeds", "of each seed", "p", "p (Holm)"]
    first = ["labeled", "method", "seeds", *titles.values(), "missed", "false alarms", "absent", "of"]
    overall = summary[summary["class"] == MEAN]
    classes = summary[summary["class"] != MEAN]
    return [
        Table("Mean over the classes", first, [_summary_row(row, names) for row in overall.to_dict("records")]),
        Table(
            "Against nnU-Net on the same labels",
            ["metric", "method", "labeled", "n", *tests],
            [_comparison_row(row, names, titles) for row in frames["comparisons"].to_dict("records")],
        ),
        Table(
            "Against the best control",
            ["metric", "method", "labeled", "control", "n", *tests],
            [_control_row(row, names, titles) for row in frames["against_control"].to_dict("records")],
        ),
        Table(
            "The best method against the others",
            ["labeled", "best method", "other", "n", *tests],
            [_best_row(row, names) for row in frames["best_against_others"].to_dict("records")],
        ),
        Table(
            "Against longer trainings of nnU-Net and the best control",
            [*("labeled", "method", "training", "other", "its training", "Dice %", "its Dice %"), *tests],
            [_equal_time_row(row, names) for row in frames["equal_time"].to_dict("records")],
        ),
        Table(
            "What it costs",
            ["labeled", "method", "labeled cases", "unlabeled", "training", "prediction", "memory", "GPU memory", "on"],
            [_cost_row(row, names) for row in frames["costs"].to_dict("records")],
        ),
        Table(
            "Each class",
            [*first[:2], "class", *first[3:]],
            [_summary_row(row, names, row["class"]) for row in classes.to_dict("records")],
        ),
    ]


def _summary_row(row: dict[Any, Any], names: Names, third: str | None = None) -> list[str]:
    scores = [
        _mean_sd(row[f"{metric}_mean"], row[f"{metric}_sd"], 100 if metric in PERCENT else 1) for metric in METRICS
    ]
    counts = [str(row[outcome.replace(" ", "_")]) for outcome in EMPTY]
    name = names[row["budget"], row["trainer"]]
    return [row["budget"], name, third or str(row["seeds"]), *scores, *counts, str(row["masks"])]


def _mean_sd(mean: float, sd: float, factor: float) -> str:
    if pd.isna(mean):
        return "-"
    digits = 1 if factor == 100 else 2
    return f"{mean * factor:.{digits}f}" + ("" if pd.isna(sd) else f" ± {sd * factor:.{digits}f}")


def _comparison_row(row: dict[Any, Any], names: Names, titles: Titles) -> list[str]:
    name = names[row["budget"], row["trainer"]]
    return [titles[row["metric"]], name, row["budget"], str(row["n"]), *_difference(row, row["metric"] in PERCENT)]


def _control_row(row: dict[Any, Any], names: Names, titles: Titles) -> list[str]:
    metric, method, budget, *test = _comparison_row(row, names, titles)
    return [metric, method, budget, names[row["budget"], row["control"]], *test]


def _best_row(row: dict[Any, Any], names: Names) -> list[str]:
    best, other = (names[row["budget"], row[name]] for name in ("best", "trainer"))
    return [row["budget"], best, other, str(row["n"]), *_difference(row, is_percent=True)]


def _difference(row: dict[Any, Any], is_percent: bool) -> list[str]:
    factor, digits = (100, 1) if is_percent else (1, 2)
    names = ("difference", "low", "high", "seed_low", "seed_high")
    difference, low, high, least, most = (f"{row[name] * factor:+.{digits}f}" for name in names)
    by_seed = [str(row["seeds"]), f"{least} to {most}" if row["seeds"] > 1 else "-"]
    values = [f"{difference} ({low} to {high})", *by_seed, *(f"{row[name]:.2g}" for name in ("p", "p_holm"))]
    return [value.replace("+nan", "-").replace("nan", "-") for value in values]


def _equal_time_row(row: dict[Any, Any], names: Names) -> list[str]:
    return [
        row["budget"],
        names[row["budget"], row["trainer"]],
        _duration(row["training_seconds"]),
        names[row["budget"], row["opponent"]],
        _duration(row["opponent_seconds"]),
        *(f"{100 * row[name]:.1f}" for name in ("dice", "opponent_dice")),
        *_difference(row, is_percent=True),
    ]


def _cost_row(row: dict[Any, Any], names: Names) -> list[str]:
    memory = [
        "-" if pd.isna(row[name]) else f"{row[name] / 2**30:.2f} GiB"
        for name in ("peak_memory_bytes_max", "peak_gpu_bytes_max")
    ]
    return [
        row["budget"],
        names[row["budget"], row["trainer"]],
        str(row["num_labeled"]),
        str(row["num_unlabeled"]),
        _duration(row["training_seconds_mean"], row["training_seconds_sd"]),
        _duration(row["prediction_seconds_mean"]),
        *memory,
        row["devices"],
    ]


def _duration(seconds: float, sd: float = float("nan")) -> str:
    unit, length = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    spread = "" if pd.isna(sd) else f" ± {sd / length:.1f}"
    return f"{seconds / length:.1f}{spread} {unit}"
