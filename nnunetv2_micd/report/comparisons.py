"""Paired comparisons of each method with the baseline: on the same labels, and at equal training time."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from nnunetv2_micd.report.aggregate import MEAN, mean_over_cases, mean_over_classes
from nnunetv2_micd.report.runs import is_baseline
from nnunetv2_micd.report.scores import METRICS
from nnunetv2_micd.report.statistics import PairedResult, compare_paired, correct_holm
from nnunetv2_micd.training.registry import STOCK

EQUAL_TIME = 0.95
"""A baseline counts as equally long if it took at least this fraction of the method's time, because times are noisy."""

TIME_COLUMNS = ["budget", "trainer", "training_seconds", "baseline", "baseline_seconds", "dice", "baseline_dice"]
TEST_COLUMNS = ["cases", "difference", "low", "high", "p"]


def compare_all(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare each method with the baseline on the same budget, for each metric.

    Both are averaged over the seeds that both have. Holm's correction is over the comparisons of one metric.

    Args:
        scores: Scores of all cases of all runs.

    Returns:
        A row for each metric, budget and method, with the fields of `statistics.PairedResult` and ``p_holm``.
    """
    cases = mean_over_classes(scores)
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        for (budget, trainer), method in cases.groupby(["budget", "trainer"], sort=False):
            baseline = cases[(cases["budget"] == budget) & (cases["trainer"] == STOCK)]
            seeds = set(method["seed"]) & set(baseline["seed"])
            if trainer == STOCK or not seeds:
                continue
            result = _compare(method, baseline, metric, seeds)
            rows.append({"metric": metric, "budget": budget, "trainer": trainer, "seeds": len(seeds), **asdict(result)})
    table = pd.DataFrame(rows, columns=["metric", "budget", "trainer", "seeds", *TEST_COLUMNS])
    table["p_holm"] = table.groupby("metric")["p"].transform(lambda values: correct_holm(values.to_numpy()))
    return table


def compare_at_equal_time(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Compare the Dice of each method with a baseline that was trained about as long as the method.

    Of the trainings of the baseline, the shortest is taken that is at least as long as the method's, see `EQUAL_TIME`,
    or the longest if all are shorter. Times are means over all seeds, scores are means over the seeds that both have.
    Holm's correction is over all rows. Without longer runs of the baseline, or a common seed, there is no row.

    Args:
        scores: Scores of all cases of all runs, with those of the longer baselines.
        costs: Costs of the same runs, see `aggregate.collect_costs`.

    Returns:
        A row for each budget and method, with the fields of `statistics.PairedResult` and ``p_holm``.
    """
    cases, seconds = mean_over_classes(scores), costs.set_index(["budget", "trainer"])["training_seconds_mean"]
    overall = mean_over_cases(scores)
    run_dice = overall[overall["class"] == MEAN].set_index(["budget", "trainer", "seed"])["dice"].sort_index()
    rows: list[dict[str, Any]] = []
    for (budget, trainer), method in cases.groupby(["budget", "trainer"], sort=False):
        rival = None if is_baseline(trainer) else _choose_rival(seconds[budget], trainer)
        if rival is None:
            continue
        baseline = cases[(cases["budget"] == budget) & (cases["trainer"] == rival)]
        seeds = set(method["seed"]) & set(baseline["seed"])
        if not seeds:
            continue
        dice, baseline_dice = (run_dice.loc[budget, name].loc[sorted(seeds)].mean() for name in (trainer, rival))
        row = {
            "budget": budget,
            "trainer": trainer,
            "training_seconds": seconds[budget][trainer],
            "baseline": rival,
            "baseline_seconds": seconds[budget][rival],
            "dice": dice,
            "baseline_dice": baseline_dice,
            "seeds": len(seeds),
        }
        rows.append(row | asdict(_compare(method, baseline, "dice", seeds)))
    table = pd.DataFrame(rows, columns=[*TIME_COLUMNS, "seeds", *TEST_COLUMNS])
    return table.assign(p_holm=correct_holm(table["p"].to_numpy()))


def _choose_rival(seconds: pd.Series, trainer: str) -> str | None:
    """Return the training of the baseline to compare a method with, or None if the baseline has only one length."""
    rivals = seconds[[is_baseline(name) for name in seconds.index]].sort_values()
    if len(rivals) < 2:
        return None
    long_enough = rivals[rivals >= EQUAL_TIME * seconds[trainer]]
    return str(long_enough.index[0] if len(long_enough) else rivals.index[-1])


def _compare(method: pd.DataFrame, baseline: pd.DataFrame, metric: str, seeds: set[int]) -> PairedResult:
    """Compare two trainers case by case; a case that is not scored for one of them is left out."""
    method_means, baseline_means = (
        table[table["seed"].isin(seeds)].groupby("case")[metric].mean() for table in (method, baseline)
    )
    return compare_paired((method_means - baseline_means).dropna().to_numpy())
