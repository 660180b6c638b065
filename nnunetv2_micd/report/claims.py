"""What the numbers of a report allow to say, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nnunetv2_micd.report.aggregate import MEAN
from nnunetv2_micd.report.comparisons import EQUAL_TIME
from nnunetv2_micd.report.runs import (
    CONTROL,
    MEAN_OF_BOTH,
    describe_budget,
    display_name,
    is_baseline,
    is_candidate,
    is_control,
    name_of_usual,
)
from nnunetv2_micd.report.statistics import LEVEL, is_significant
from nnunetv2_micd.training.registry import STOCK
from nnunetv2_micd.utils.wording import counted

MORE_TIME = 1.1
"""Multiple of the method's time from which a training of the baseline is no longer of equal time."""

ENOUGH_SEEDS = 3
"""Each seed has other labeled cases. With fewer, a method may only suit those that were drawn. Intervals and p do not
know that: they are about other test cases, given these trainings."""

Row = Mapping[Any, Any]


def list_claims(frames: Mapping[str, pd.DataFrame], best: Mapping[str, str]) -> list[str]:
    """Return what can be claimed about the best method of each budget, and what cannot.

    Args:
        frames: The tables that `writer.write_report` writes as CSV: ``summary``, ``comparisons``, ``costs``,
            ``equal_time``, ``against_control`` and ``best_against_others``.
        best: The best method by budget, see `comparisons.find_best`.

    Returns:
        A paragraph for each budget.
    """
    claims = []
    for budget, trainer in best.items():
        labeled = int(_rows(frames["summary"], budget=budget, trainer=trainer)[0]["num_labeled"])
        sentences = " ".join(_claims_about(frames, budget, trainer))
        claims.append(f"{describe_budget(budget, labeled).capitalize()}: {sentences}")
    return claims


def _claims_about(frames: Mapping[str, pd.DataFrame], budget: str, trainer: str) -> list[str]:
    tests = _rows(frames["comparisons"], metric="dice", budget=budget, trainer=trainer)
    return [
        *_against_baseline(frames, budget, trainer),
        *_costs_and_equal_time(frames, budget, trainer),
        *([_against_control(frames, budget, trainer)] if any(map(_is_better, tests)) else []),
        *_against_others(frames, budget, trainer),
        *_about_other_labels(tests, budget),
    ]


def _against_baseline(frames: Mapping[str, pd.DataFrame], budget: str, trainer: str) -> list[str]:
    summary = _rows(frames["summary"], budget=budget, trainer=trainer, **{"class": MEAN})
    highest = f"{display_name(trainer)} has the highest Dice of the methods: {100 * summary[0]['dice_mean']:.1f} %."
    tests = _rows(frames["comparisons"], metric="dice", budget=budget)
    test = next((row for row in tests if row["trainer"] == trainer), None)
    if test is None:
        return [highest, "There is no run of nnU-Net with the same labels to compare it with."]
    better = [row["trainer"] for row in tests if is_candidate(row["trainer"]) and _is_better(row)]
    sentences = [highest, f"It is {_judge(test)} nnU-Net with the same labels: {_describe(test)}."]
    number = int((frames["comparisons"]["metric"] == "dice").sum())
    if number * 2.0 ** (1 - test["n"]) >= LEVEL:  # the smallest p of Wilcoxon's test, corrected
        sentences.append(f"With n = {test['n']} and {counted(number, 'comparison')} no difference can be significant.")
    if not better:
        return ["No method is significantly better than nnU-Net with the same labels.", *sentences]
    return sentences if trainer in better else [*sentences, f"Significantly better than nnU-Net: {_enumerate(better)}."]


def _costs_and_equal_time(frames: Mapping[str, pd.DataFrame], budget: str, trainer: str) -> list[str]:
    method, baseline = (_rows(frames["costs"], budget=budget, trainer=name) for name in (trainer, STOCK))
    if not baseline:
        return []
    training = method[0]["training_seconds_mean"] / baseline[0]["training_seconds_mean"]
    addition = ", and it predicts with two networks" if MEAN_OF_BOTH in trainer else ""
    costs = f"Its training takes {training:.1f} times as long as nnU-Net's{addition}."
    tests = _rows(frames["equal_time"], budget=budget, trainer=trainer)
    at_equal_time = [_at_equal_time(test) for test in tests]
    if EQUAL_TIME * training > 1 and not any(is_baseline(test["opponent"]) for test in tests):
        return [
            costs,
            "Nothing is known at equal time: nnU-Net was not trained longer with these labels and a common seed.",
            *at_equal_time,
        ]
    return [costs, *at_equal_time]


def _at_equal_time(test: Row) -> str:
    share = test["opponent_seconds"] / test["training_seconds"]
    name = display_name(name_of_usual(test["opponent"]))
    opponent = f"the control {name.removesuffix(CONTROL)}" if name.endswith(CONTROL) else name
    start = "At equal time"
    if share < EQUAL_TIME:
        start = f"Against the longest training of {opponent}, {share:.0%} of its time,"
    elif share > MORE_TIME:
        start = f"Against {opponent} trained {share:.1f} times as long as it,"
    return f"{start} it is {_judge(test)} {opponent}: {_describe(test)}."


def _against_control(frames: Mapping[str, pd.DataFrame], budget: str, trainer: str) -> str:
    tests = _rows(frames["against_control"], metric="dice", budget=budget, trainer=trainer)
    if not tests:
        has_control = any(is_control(row["trainer"]) for row in _rows(frames["summary"], budget=budget))
        missing = "No control has a seed in common with it" if has_control else "No control was run with these labels"
        return f"{missing}, so it is not known whether the unlabeled images are the cause."
    test = tests[0]
    control = display_name(test["control"]).removesuffix(CONTROL)
    result = f"It is {_judge(test)} the best control, {control}: {_describe(test)}"
    return result + ("." if _is_better(test) else ", so it is not shown that the unlabeled images are the cause.")


def _against_others(frames: Mapping[str, pd.DataFrame], budget: str, trainer: str) -> list[str]:
    rows = [row for row in _rows(frames["best_against_others"], budget=budget) if is_candidate(row["trainer"])]
    others = {row["trainer"] for row in _rows(frames["summary"], budget=budget) if is_candidate(row["trainer"])}
    missing = sorted(others - {row["trainer"] for row in rows} - {trainer})
    worse = [row["trainer"] for row in rows if _is_better(row)]
    ties = [row["trainer"] for row in rows if not _is_better(row)]
    sentences = []
    if worse:
        all_others = " are all other methods" if len(worse) > 1 and not (ties or missing) else ""
        sentences.append(f"Significantly worse than it{all_others}: {_enumerate(worse)}.")
    if ties:
        sentences.append(f"It is not significantly better than {_enumerate(ties)}, so it cannot be called the best.")
    if missing:
        sentences.append(f"It could not be compared with {_enumerate(missing)}: they have no seed in common.")
    return sentences


def _about_other_labels(tests: Sequence[Row], budget: str) -> list[str]:
    few = bool(tests) and tests[0]["seeds"] < ENOUGH_SEEDS
    seeds = counted(tests[0]["seeds"], "seed") if tests else ""
    if budget.startswith("f"):
        unknown = f", nor, with {seeds}, about other trainings with them" if few else ""
        return [f"The labeled cases are those of one fold: nothing is known about others{unknown}."]
    return [f"With {seeds}, nothing is known about other labeled cases."] if few else []


def _rows(frame: pd.DataFrame, **values: str) -> list[Row]:
    """Return the rows with these values in their columns."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return list(frame.to_dict("records"))


def _is_better(test: Row) -> bool:
    return bool(test["difference"] > 0 and is_significant(test))


def _judge(test: Row) -> str:
    if _is_better(test):
        return "significantly better than"
    if is_significant(test):
        return "significantly worse than"
    if test["p_holm"] < LEVEL:
        return f"{'better' if test['difference'] > 0 else 'worse'} on average, but not in most of the cases, than"
    return "not significantly different from"


def _describe(test: Row) -> str:
    difference, low, high = (f"{100 * test[name]:+.1f}" for name in ("difference", "low", "high"))
    if pd.isna(test["difference"]):
        return "no case is scored for both"
    if pd.isna(test["p_holm"]):
        return f"{difference} points, too few cases for a test"
    p = test["p_holm"]
    digits = 2 if (p < LEVEL) == (float(f"{p:.2g}") < LEVEL) else 3  # not rounded to the other side
    least, most = (f"{100 * test[name]:+.1f}" for name in ("seed_low", "seed_high"))
    by_seed = f"{least} to {most} with each of {test['seeds']} seeds" if test["seeds"] > 1 else "1 seed"
    return f"{difference} points (95 % interval {low} to {high}, p = {p:.{digits}g} with Holm's correction; {by_seed})"


def _enumerate(trainers: Sequence[str]) -> str:
    names = [display_name(trainer) for trainer in trainers]
    if any("," in name for name in names):
        return "; ".join(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
