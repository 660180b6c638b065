"""Paired comparisons of methods: with the baseline, at equal training time, with the best control, with the others."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_micd.report.aggregate import MEAN, mean_over_cases
from nnunetv2_micd.report.runs import is_control, is_mean_of_both, is_method, is_tuned, name_of_usual
from nnunetv2_micd.report.scores import METRICS, PERFECT
from nnunetv2_micd.report.statistics import compare_paired, correct_holm
from nnunetv2_micd.training.registry import STOCK

EQUAL_TIME = 0.95
"""A training counts as equally long if it took at least this fraction of the method's time, because times are noisy."""

TIME_COLUMNS = ["budget", "trainer", "training_seconds", "opponent", "opponent_seconds", "dice", "opponent_dice"]
TEST_COLUMNS = ["seed_low", "seed_high", "n", "difference", "low", "high", "pseudomedian", "p"]


def compare_all(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare each method and control with the baseline on the same budget, for each metric.

    Both are averaged over the seeds that both have. Holm's correction is over the comparisons of one metric.

    Args:
        scores: Scores of all cases of all runs.

    Returns:
        A row for each metric, budget and method, with the fields of `statistics.PairedResult` and ``p_holm``; and the
        number of common ``seeds``, and the lowest and highest difference that one of them has by itself,
        ``seed_low`` and ``seed_high``.
    """
    opponents = {(budget, trainer): STOCK for budget, trainer in _list_tested(scores) if trainer != STOCK}
    return _compare_each(scores, opponents).drop(columns="opponent")


def compare_with_control(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare each method with the best control on the same budget, as `compare_all` does with the baseline.

    A control that predicts with the mean of both networks is an opponent of methods that do so too.

    Args:
        scores: Scores of all cases of all runs.

    Returns:
        Rows as those of `compare_all`, with the ``control``. Budgets without a control have no rows.
    """
    return _compare_each(scores, _best_controls(scores)).rename(columns={"opponent": "control"})


def _best_controls(scores: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the best control for each budget and method."""
    of_one = find_best(scores, lambda trainer: is_control(trainer) and not is_mean_of_both(trainer))
    of_any = find_best(scores, is_control)
    return {
        (budget, trainer): controls[budget]
        for budget, trainer in _list_tested(scores)
        if is_method(trainer) and budget in (controls := of_any if is_mean_of_both(trainer) else of_one)
    }


def find_best(scores: pd.DataFrame, is_candidate: Callable[[str], bool]) -> dict[str, str]:
    """Return the trainer with the highest mean Dice for each budget.

    Candidates with fewer seeds than others are not chosen: few seeds would decide about all. The mean is over the seeds
    that the rest have in common, or over those that each has if there is none.

    Args:
        scores: Scores of all cases of all runs.
        is_candidate: Whether a trainer may be chosen, such as `runs.is_candidate`.

    Returns:
        Trainers by budget; a budget without a candidate is missing.
    """
    overall = mean_over_cases(scores)
    candidates = overall[(overall["class"] == MEAN) & overall["trainer"].map(is_candidate).astype(bool)]
    best = {}
    for budget, runs in candidates.dropna(subset="dice").groupby("budget", sort=False):
        dice = runs.pivot(index="seed", columns="trainer", values="dice")
        seeds = dice.notna().sum()
        dice = dice.loc[:, seeds == seeds.max()]
        common = dice.dropna()
        best[str(budget)] = str((dice if common.empty else common).mean().idxmax())
    return best


def compare_best(scores: pd.DataFrame, best: Mapping[str, str]) -> pd.DataFrame:
    """Compare the Dice of the best method of each budget with each other method and control, tuned ones left out.

    Both are averaged over the seeds that both have. Holm's correction is over all rows.

    Args:
        scores: Scores of all cases of all runs.
        best: The best method by budget, see `find_best`.

    Returns:
        A row for each budget and other trainer, with the fields of `statistics.PairedResult` for ``best`` minus
        ``trainer``, and ``p_holm``.
    """
    rows = [
        {"budget": budget, "best": best[budget], "trainer": trainer} | result
        for budget, trainer in _list_tested(scores)
        if budget in best and trainer not in (STOCK, best[budget])
        if (result := _test(scores, "dice", budget, best[budget], trainer))
    ]
    table = pd.DataFrame(rows, columns=["budget", "best", "trainer", "seeds", *TEST_COLUMNS])
    return table.assign(p_holm=correct_holm(table["p"].to_numpy()))


def _list_tested(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Return each budget and trainer once, in the order of the scores; not tuned ones, which used further labels."""
    pairs = scores[["budget", "trainer"]].drop_duplicates().itertuples(index=False, name=None)
    return [(budget, trainer) for budget, trainer in pairs if not is_tuned(trainer)]


def _compare_each(scores: pd.DataFrame, opponents: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Compare trainers with their opponents on the same budget, for each metric, with Holm's correction for each."""
    rows = [
        {"metric": metric, "budget": budget, "trainer": trainer, "opponent": opponent} | result
        for metric in METRICS
        for (budget, trainer), opponent in opponents.items()
        if (result := _test(scores, metric, budget, trainer, opponent))
    ]
    table = pd.DataFrame(rows, columns=["metric", "budget", "trainer", "opponent", "seeds", *TEST_COLUMNS])
    table["p_holm"] = table.groupby("metric")["p"].transform(lambda values: correct_holm(values.to_numpy()))
    return table


def _test(scores: pd.DataFrame, metric: str, budget: str, trainer: str, opponent: str) -> dict[str, Any]:
    """Return the comparison over the common seeds and what each gives, or nothing if there is no common seed."""
    seeds = _common_seeds(scores, budget, trainer, opponent)
    if not seeds:
        return {}
    pairs = pair_scores(scores, metric, budget, trainer, opponent)
    differences = pairs["method"] - pairs["other"]
    each = np.array([_mean_by_group(of_seed).mean() for _, of_seed in differences.groupby("seed")])
    low, high = (each.min(), each.max()) if each.size else (np.nan, np.nan)
    result = compare_paired(_mean_by_group(differences).to_numpy())
    return {"seeds": len(seeds), "seed_low": low, "seed_high": high, **asdict(result)}


def _common_seeds(scores: pd.DataFrame, budget: str, trainer: str, opponent: str) -> set[int]:
    in_budget = scores[scores["budget"] == budget]
    first, second = (set(in_budget.loc[in_budget["trainer"] == name, "seed"]) for name in (trainer, opponent))
    return first & second


def compare_at_equal_time(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Compare the Dice of each method with the baseline and the best control, trained about as long as the method.

    Of the trainings of an opponent, the shortest is taken that is at least as long as the method's, see `EQUAL_TIME`,
    or the longest if all are shorter. Times are means over all seeds, scores are means over the seeds that both have.
    Holm's correction is over all rows. Without longer runs of the opponent, or a common seed, there is no row.

    Args:
        scores: Scores of all cases of all runs, with those of the longer baselines and controls.
        costs: Costs of the same runs, see `aggregate.collect_costs`.

    Returns:
        A row for each budget, method and opponent, with the fields of `statistics.PairedResult` and ``p_holm``.
        Controls are compared with the baseline as well.
    """
    seconds = costs.set_index(["budget", "trainer"])["training_seconds_mean"]
    overall = mean_over_cases(scores)
    run_dice = overall[overall["class"] == MEAN].set_index(["budget", "trainer", "seed"])["dice"].sort_index()
    of_usual_length = scores[scores["trainer"].map(name_of_usual) == scores["trainer"]]
    controls = _best_controls(of_usual_length)
    rows: list[dict[str, Any]] = []
    for budget, trainer in _list_tested(of_usual_length):
        opponents = [] if trainer == STOCK else [STOCK, *filter(None, [controls.get((budget, trainer))])]
        for opponent in opponents:
            training = _choose_training(seconds[budget], opponent, seconds[budget][trainer])
            result = _test(scores, "dice", budget, trainer, training) if training else {}
            if not result:
                continue
            common = run_dice[budget][[trainer, training]].unstack("trainer").dropna()
            row = {
                "budget": budget,
                "trainer": trainer,
                "training_seconds": seconds[budget][trainer],
                "opponent": training,
                "opponent_seconds": seconds[budget][training],
                "dice": common[trainer].mean(),
                "opponent_dice": common[training].mean(),
            }
            rows.append(row | result)
    table = pd.DataFrame(rows, columns=[*TIME_COLUMNS, "seeds", *TEST_COLUMNS])
    return table.assign(p_holm=correct_holm(table["p"].to_numpy()))


def _choose_training(seconds: pd.Series, opponent: str, method_seconds: float) -> str | None:
    """Return the training of an opponent to compare a method with, or None if the opponent has only one length."""
    trainings = seconds[[name_of_usual(name) == opponent for name in seconds.index]].sort_values()
    if len(trainings) < 2:
        return None
    long_enough = trainings[trainings >= EQUAL_TIME * method_seconds]
    return str(long_enough.index[0] if len(long_enough) else trainings.index[-1])


def pair_scores(scores: pd.DataFrame, metric: str, budget: str, trainer: str, opponent: str) -> pd.DataFrame:
    """Return the scores of two trainers side by side, for the seeds that both have.

    A class that is absent for both, in neither truth nor prediction, is left out of a case. Where it is absent for one
    of them only, the other has invented it, and an empty mask was right.

    Args:
        scores: Scores of all cases of all runs.
        metric: Name of the metric, such as ``dice``.
        budget: The budget.
        trainer: The first trainer.
        opponent: The second trainer.

    Returns:
        The columns ``method`` and ``other``, with ``group``, ``case``, ``seed`` and ``class`` as index.
    """
    seeds = _common_seeds(scores, budget, trainer, opponent)
    paired = scores[(scores["budget"] == budget) & scores["seed"].isin(seeds)]
    keys = ["group", "case", "seed", "class"]
    tables = (paired[paired["trainer"] == name].set_index(keys)[metric] for name in (trainer, opponent))
    return pd.concat(tables, axis=1, keys=("method", "other")).dropna(how="all").fillna(PERFECT[metric])


def _mean_by_group(values: pd.Series) -> pd.Series:
    """Return the mean over the classes, then the seeds, then the cases of each group.

    Cases of a group, such as those of a patient, are not independent, so each group has one value.
    """
    keys = ["group", "case", "seed"]
    for level in (keys, keys[:2], keys[:1]):
        values = values.groupby(level).mean()
    return values
