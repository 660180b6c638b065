"""The comparison at equal time: each method against the baseline trained at least as long as the method took."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from nnunetv2_micd.report.runs import is_baseline
from nnunetv2_micd.report.statistics import compare_paired, correct_holm
from nnunetv2_micd.report.tables import MEAN, mean_over_cases, mean_over_classes

TOLERANCE = 0.95
"""A baseline counts as trained as long as a method from this share of the method's time on: times are noisy."""

COLUMNS = ["budget", "trainer", "training_seconds", "baseline", "baseline_seconds", "dice", "baseline_dice", "seeds"]
TEST_COLUMNS = ["cases", "difference", "low", "high", "p"]


def compare_at_equal_time(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return for each budget and method the paired comparison of its Dice with that of a baseline of its time.

    That baseline is the shortest which took at least the time of the method, see `TOLERANCE`, or the longest where none
    did. Times are means over all seeds of each, scores over the seeds that both have. Holm's correction is over all
    rows. Without runs of a longer baseline, or without a common seed, there is no row.

    Args:
        scores: of all runs, with those of the longer baselines.
        costs: of the same, see ``report_tables.collect_costs``.
    """
    cases = mean_over_classes(scores)
    overall = mean_over_cases(scores)
    of_run = overall[overall["class"] == MEAN].set_index(["budget", "trainer", "seed"])["dice"].sort_index()
    seconds = costs.set_index(["budget", "trainer"])["training_seconds_mean"]
    rows: list[dict[str, Any]] = []
    for (budget, trainer), method in cases.groupby(["budget", "trainer"], sort=False):
        times = seconds[budget]
        rivals = times[[is_baseline(name) for name in times.index]].sort_values()
        if is_baseline(trainer) or len(rivals) < 2:
            continue
        long_enough = rivals[rivals >= TOLERANCE * times[trainer]]
        name = long_enough.index[0] if len(long_enough) else rivals.index[-1]
        rival = cases[(cases["budget"] == budget) & (cases["trainer"] == name)]
        seeds = set(method["seed"]) & set(rival["seed"])
        if not seeds:
            continue
        ours, theirs = (each[each["seed"].isin(seeds)].groupby("case")["dice"].mean() for each in (method, rival))
        row = {"budget": budget, "trainer": trainer, "training_seconds": times[trainer], "baseline": name}
        dice, baseline_dice = (of_run.loc[budget, each].loc[sorted(seeds)].mean() for each in (trainer, name))
        row |= {"baseline_seconds": times[name], "dice": dice, "baseline_dice": baseline_dice}
        rows.append(row | {"seeds": len(seeds)} | asdict(compare_paired((ours - theirs).dropna().to_numpy())))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *TEST_COLUMNS])
    return table.assign(p_holm=correct_holm(table["p"].to_numpy()))
