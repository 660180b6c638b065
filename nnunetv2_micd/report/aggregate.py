"""Means of scores over cases, classes and seeds, and the costs of training and prediction."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from nnunetv2_micd.report.runs import FinishedRun
from nnunetv2_micd.report.scores import METRICS

MEAN = "mean of classes"
"""Name of the mean over the classes in the column ``class``."""

EMPTY = ("missed", "false alarm", "absent")
"""Outcomes of a case in which a mask is empty."""

IN_TRUTH = ("scored", "missed")
"""Outcomes of a case that has the class."""


def mean_over_classes(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over the scored classes for each run and case, NaN if no class is scored."""
    keys = ["budget", "trainer", "seed", "group", "case"]
    return scores.groupby(keys, sort=False)[list(METRICS)].mean().reset_index()


def mean_over_cases(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over the cases for each run and class, and as class :data:`MEAN` the mean of these means.

    So a rare class weighs as much as any other, as in nnU-Net's foreground mean. A class that is in the truth of no
    case has no part in it, unless there is no other: one false alarm would weigh as much as all cases of a class.
    """
    run, metrics = ["budget", "num_labeled", "trainer", "seed"], list(METRICS)
    classes = scores.groupby([*run, "class"], sort=False)[metrics].mean().reset_index()
    in_truth = set(scores.loc[scores["outcome"].isin(IN_TRUTH), "class"]) or set(scores["class"])
    overall = classes[classes["class"].isin(in_truth)].groupby(run, sort=False)[metrics].mean().reset_index()
    return pd.concat([classes, overall.assign(**{"class": MEAN})], ignore_index=True)


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over the seeds for each budget, trainer and class.

    Args:
        scores: Scores of all cases of all runs, see `run_scores.load_scores`, with ``trainer``, ``budget``,
            ``num_labeled`` and ``seed``.

    Returns:
        The columns ``dice_mean``, ``dice_sd`` and so on, the numbers of seeds and masks, and the counts of empty masks.
    """
    keys = ["budget", "trainer", "class"]
    by_seed = mean_over_cases(scores).groupby(keys, sort=False)
    table = by_seed[list(METRICS)].agg(["mean", "std"])
    table.columns = [f"{metric}_{'sd' if function == 'std' else function}" for metric, function in table.columns]
    table.insert(0, "num_labeled", by_seed["num_labeled"].mean().round().astype(int))  # of groups, it varies
    table.insert(1, "seeds", by_seed["seed"].nunique())
    outcomes = pd.concat([scores, scores.assign(**{"class": MEAN})])
    for outcome in EMPTY:
        is_outcome = outcomes["outcome"] == outcome
        table[outcome.replace(" ", "_")] = is_outcome.groupby([outcomes[key] for key in keys]).sum()
    table["masks"] = outcomes.groupby(keys).size()
    # Grouping has put the means after all classes. Readers expect them beside the classes of their trainer.
    runs = scores[["budget", "trainer"]].drop_duplicates()
    classes = [*scores["class"].unique(), MEAN]
    order = [(*run, name) for run in runs.itertuples(index=False, name=None) for name in classes]
    return table.loc[order].reset_index()


def collect_costs(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """Return what training and prediction took for each budget and trainer: mean times, largest memory."""
    table = pd.DataFrame([_costs_of(run) for run in runs])
    peaks = ["peak_memory_bytes", "peak_gpu_bytes"]
    table[peaks] = table[peaks].astype(float)  # None, such as without a GPU, becomes NaN
    groups = table.groupby(["budget", "trainer"], sort=False)
    result = groups[["num_labeled", "num_unlabeled"]].mean().round().astype(int)
    result["devices"] = groups["device"].agg(lambda devices: " ".join(sorted(set(devices))))
    result["training_seconds_mean"] = groups["training_seconds"].mean()
    result["training_seconds_sd"] = groups["training_seconds"].std()
    result["prediction_seconds_mean"] = groups["prediction_seconds"].mean()
    result["peak_memory_bytes_max"] = groups["peak_memory_bytes"].max()
    result["peak_gpu_bytes_max"] = groups["peak_gpu_bytes"].max()
    return result.reset_index()


def _costs_of(run: FinishedRun) -> dict[str, Any]:
    measured = ("device", "training_seconds", "prediction_seconds", "peak_memory_bytes", "peak_gpu_bytes")
    return {
        "budget": run.settings.budget,
        "trainer": run.trainer,
        "num_labeled": len(run.settings.labeled),
        "num_unlabeled": run.settings.num_unlabeled,
        **{name: getattr(run.result, name) for name in measured},
    }
