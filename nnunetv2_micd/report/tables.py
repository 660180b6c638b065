"""The tables of the report: means over cases, classes and seeds, paired comparisons and costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from nnunetv2_micd.report.case_scores import METRICS
from nnunetv2_micd.report.runs import BASELINE, Run
from nnunetv2_micd.report.statistics import compare_paired, correct_holm

MEAN = "mean of classes"
"""What the mean over the classes is called in the column of classes."""

TITLES = {"dice": "Dice %", "nsd": "NSD %", "hd95": "HD95 mm", "asd": "ASD mm"}
PERCENT = ("dice", "nsd")
EMPTY = ("missed", "false alarm", "absent")


@dataclass(frozen=True)
class Table:
    """A table as the report shows it."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """Return the table in Markdown, with its title above."""
        cells = [self.header, ["---"] * len(self.header), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join([f"### {self.title}", "", *lines])


def mean_over_classes(scores: pd.DataFrame) -> pd.DataFrame:
    """Return for each run and case the mean of the classes that are scored there, NaN where none is."""
    return scores.groupby(["budget", "trainer", "seed", "case"], sort=False)[list(METRICS)].mean().reset_index()


def mean_over_cases(scores: pd.DataFrame) -> pd.DataFrame:
    """Return for each run and class the mean over its cases and, as class :data:`MEAN`, the mean of these."""
    run, metrics = ["budget", "num_labeled", "trainer", "seed"], list(METRICS)
    classes = scores.groupby([*run, "class"], sort=False)[metrics].mean().reset_index()
    overall = classes.groupby(run, sort=False)[metrics].mean().reset_index()
    return pd.concat([classes, overall.assign(**{"class": MEAN})], ignore_index=True)


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Return for each budget, trainer and class mean and standard deviation over the seeds, and the empty masks."""
    keys = ["budget", "trainer", "class"]
    by_seed = mean_over_cases(scores).groupby(keys, sort=False)
    table = by_seed[list(METRICS)].agg(["mean", "std"])
    table.columns = [f"{metric}_{'sd' if what == 'std' else what}" for metric, what in table.columns]
    table.insert(0, "num_labeled", by_seed["num_labeled"].first())
    table.insert(1, "seeds", by_seed["seed"].nunique())
    outcomes = pd.concat([scores, scores.assign(**{"class": MEAN})])
    for outcome in EMPTY:
        table[outcome.replace(" ", "_")] = (
            (outcomes["outcome"] == outcome).groupby([outcomes[key] for key in keys]).sum()
        )
    table["masks"] = outcomes.groupby(keys).size()
    runs = scores[["budget", "trainer"]].drop_duplicates()
    names = [*scores["class"].unique(), MEAN]
    order = [(*run, name) for run in runs.itertuples(index=False, name=None) for name in names]
    return table.loc[order].reset_index()


def compare_all(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the paired comparison of each method with nnU-Net's own trainer on the same budget.

    Both are averaged over the seeds that both have. Holm's correction is over the comparisons of one metric.
    """
    cases = mean_over_classes(scores)
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        for (budget, trainer), method in cases.groupby(["budget", "trainer"], sort=False):
            stock = cases[(cases["budget"] == budget) & (cases["trainer"] == BASELINE)]
            seeds = set(method["seed"]) & set(stock["seed"])
            if trainer == BASELINE or not seeds:
                continue
            ours, theirs = (each[each["seed"].isin(seeds)].groupby("case")[metric].mean() for each in (method, stock))
            result = compare_paired((ours - theirs).dropna().to_numpy())
            rows.append({"metric": metric, "budget": budget, "trainer": trainer, "seeds": len(seeds), **asdict(result)})
    columns = ["metric", "budget", "trainer", "seeds", "cases", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = table.groupby("metric")["p"].transform(lambda values: correct_holm(values.to_numpy()))
    return table


def collect_costs(runs: Sequence[Run]) -> pd.DataFrame:
    """Return for each budget and trainer what training and prediction took, on average over the seeds."""
    columns = ["training_seconds", "prediction_seconds", "peak_memory_bytes", "peak_gpu_bytes"]
    names = ["budget", "trainer", "num_labeled", "num_unlabeled", "device", *columns]
    table = pd.DataFrame([{name: getattr(run, name) for name in names} for run in runs])
    table["peak_gpu_bytes"] = table["peak_gpu_bytes"].astype(float)
    groups = table.groupby(["budget", "trainer"], sort=False)
    result = groups[["num_labeled", "num_unlabeled"]].first()
    result["devices"] = groups["device"].agg(lambda found: " ".join(sorted(set(found))))
    result["training_seconds_mean"] = groups["training_seconds"].mean()
    result["training_seconds_sd"] = groups["training_seconds"].std()
    result["prediction_seconds_mean"] = groups["prediction_seconds"].mean()
    result["peak_memory_bytes_max"] = groups["peak_memory_bytes"].max()
    result["peak_gpu_bytes_max"] = groups["peak_gpu_bytes"].max()
    return result.reset_index()


def format_tables(frames: dict[str, pd.DataFrame], names: dict[tuple[str, str], str]) -> list[Table]:
    """Return the tables of the report for reading.

    Args:
        frames: ``summary``, ``comparisons``, ``equal_time`` and ``costs``.
        names: of each budget and trainer.
    """
    summary = frames["summary"]
    tests = ["difference (95 % interval)", "p", "p (Holm)"]
    first = ["labeled", "method", "seeds", *TITLES.values(), "missed", "false alarms", "absent", "of"]
    overall = summary[summary["class"] == MEAN]
    classes = summary[summary["class"] != MEAN]
    return [
        Table("Mean over the classes", first, [_summary_row(row, names) for row in overall.to_dict("records")]),
        Table(
            "Against nnU-Net on the same labels",
            ["metric", "method", "labeled", "cases", *tests],
            [_comparison_row(row, names) for row in frames["comparisons"].to_dict("records")],
        ),
        Table(
            "Against nnU-Net trained at least as long",
            [*("labeled", "method", "training", "nnU-Net's", "Dice %", "nnU-Net's"), *tests],
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


def _summary_row(row: dict[Any, Any], names: dict[tuple[str, str], str], third: str | None = None) -> list[str]:
    scores = [_mean_sd(row[f"{m}_mean"], row[f"{m}_sd"], 100 if m in PERCENT else 1) for m in METRICS]
    counts = [str(row[outcome.replace(" ", "_")]) for outcome in EMPTY]
    name = names[row["budget"], row["trainer"]]
    return [row["budget"], name, third or str(row["seeds"]), *scores, *counts, str(row["masks"])]


def _mean_sd(mean: float, sd: float, factor: float) -> str:
    if pd.isna(mean):
        return "-"
    digits = 1 if factor == 100 else 2
    return f"{mean * factor:.{digits}f}" + ("" if pd.isna(sd) else f" ± {sd * factor:.{digits}f}")


def _comparison_row(row: dict[Any, Any], names: dict[tuple[str, str], str]) -> list[str]:
    name = names[row["budget"], row["trainer"]]
    return [TITLES[row["metric"]], name, row["budget"], str(row["cases"]), *_difference(row, row["metric"] in PERCENT)]


def _difference(row: dict[Any, Any], is_percent: bool) -> list[str]:
    factor, digits = (100, 1) if is_percent else (1, 2)
    difference, low, high = (f"{row[name] * factor:+.{digits}f}" for name in ("difference", "low", "high"))
    values = [f"{difference} ({low} to {high})", *(f"{row[name]:.2g}" for name in ("p", "p_holm"))]
    return [value.replace("+nan", "-").replace("nan", "-") for value in values]


def _equal_time_row(row: dict[Any, Any], names: dict[tuple[str, str], str]) -> list[str]:
    lengths = row["baseline"].removeprefix(BASELINE).removeprefix(", ")
    rival = _duration(row["baseline_seconds"]) + (f" ({lengths})" if lengths else "")
    return [
        row["budget"],
        names[row["budget"], row["trainer"]],
        _duration(row["training_seconds"]),
        rival,
        *(f"{100 * row[name]:.1f}" for name in ("dice", "baseline_dice")),
        *_difference(row, is_percent=True),
    ]


def _cost_row(row: dict[Any, Any], names: dict[tuple[str, str], str]) -> list[str]:
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
