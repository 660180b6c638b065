"""The claims about tables that are made by hand."""

from dataclasses import asdict
from typing import Any

import pandas as pd
import pytest

from nnunetv2_micd.report.aggregate import MEAN
from nnunetv2_micd.report.claims import list_claims
from nnunetv2_micd.report.runs import name_of_longer
from nnunetv2_micd.report.statistics import compare_paired, is_significant
from nnunetv2_micd.training.registry import STOCK

MICD, CPS, UAMT = (f"{STOCK}{name}" for name in ("MICD", "CPS", "UAMT"))
BOTH = f"{MICD}, mean of both networks"
CONTROL = f"{STOCK}EMA (control)"
BETTER, UNCLEAR, WORSE = (0.031, 0.001), (0.004, 0.2), (-0.02, 0.01)
"""Differences and their p-values."""

Tests = dict[str, tuple[float, float]]


def make_test(difference: float, p: float) -> dict[str, Any]:
    interval = {"low": difference - 0.01, "high": difference + 0.01}
    seeds = {"seeds": 3, "seed_low": difference - 0.02, "seed_high": difference + 0.02}
    return {"difference": difference, **interval, **seeds, "pseudomedian": difference, "p_holm": p}


def claim(
    baseline: Tests,
    best: str = MICD,
    control: tuple[float, float] | None = None,
    equal_time: Tests | None = None,
    others: Tests | None = None,
    seeds: int = 3,
    budget: str = "6",
    seconds: tuple[float, float] = (320.0, 300.0),
    cases: int = 40,
    labeled: int = 6,
) -> str:
    """Return the claim about tests against nnU-Net, the control, others trained for the seconds, and other methods."""
    run = {"budget": budget, "trainer": best}
    frames = {
        "summary": [run | {"class": MEAN, "dice_mean": 0.7834, "seeds": seeds, "num_labeled": labeled}],
        "comparisons": [
            {"metric": "dice", "budget": budget, "trainer": name} | make_test(*test) | {"n": cases, "seeds": seeds}
            for name, test in baseline.items()
        ],
        "costs": [
            {"budget": budget, "trainer": STOCK, "training_seconds_mean": 100.0, "prediction_seconds_mean": 5.0},
            run | {"training_seconds_mean": seconds[1], "prediction_seconds_mean": 10.0},
        ],
        "equal_time": [
            run
            | {"training_seconds": seconds[1], "opponent": name_of_longer(opponent, 30), "opponent_seconds": seconds[0]}
            | make_test(*test)
            for opponent, test in (equal_time or {}).items()
        ],
        "against_control": [run | {"metric": "dice", "control": CONTROL} | make_test(*control)] if control else [],
        "best_against_others": [
            {"budget": budget, "best": best, "trainer": name} | make_test(*test)
            for name, test in ({CONTROL: UNCLEAR} | (others or {})).items()
        ],
    }
    empty = pd.DataFrame(columns=["metric", "budget", "trainer"])
    (text,) = list_claims(
        {name: pd.DataFrame(rows) if rows else empty for name, rows in frames.items()}, {budget: best}
    )
    return text


def test_a_method_that_wins_everywhere() -> None:
    text = claim({MICD: BETTER}, control=BETTER, equal_time={STOCK: BETTER}, others={CPS: BETTER, UAMT: BETTER})
    p = "p = 0.001 with Holm's correction; +1.1 to +5.1 with each of 3 seeds"
    test = f"+3.1 points (95 % interval +2.1 to +4.1, {p})"
    assert text == (
        "6 labeled cases: MICD has the highest Dice of the methods: 78.3 %. "
        f"It is significantly better than nnU-Net with the same labels: {test}. "
        "Its training takes 3.0 times as long as nnU-Net's. "
        f"At equal time it is significantly better than nnU-Net: {test}. "
        f"It is significantly better than the best control, EMA: {test}. "
        "Significantly worse than it are all other methods: CPS and UAMT."
    )


def test_no_method_is_better_than_nnunet() -> None:
    text = claim({MICD: UNCLEAR, CPS: WORSE, CONTROL: BETTER})
    assert "No method is significantly better than nnU-Net with the same labels. MICD has the highest Dice" in text
    assert "It is not significantly different from nnU-Net with the same labels: +0.4 points" in text


def test_another_method_may_be_better_than_nnunet() -> None:
    text = claim({MICD: UNCLEAR, CPS: BETTER, UAMT: BETTER})
    assert "Significantly better than nnU-Net: CPS and UAMT." in text
    assert "No method" not in text


def test_methods_that_cannot_be_told_apart() -> None:
    text = claim({BOTH: BETTER}, BOTH, others={MICD: UNCLEAR, UAMT: WORSE, CPS: BETTER})
    assert text.endswith(
        "Significantly worse than it: CPS. It is not significantly better than MICD and UAMT, so it cannot be called "
        "the best."
    )
    assert "3.0 times as long as nnU-Net's, and it predicts with two networks." in text


def test_without_a_control_the_cause_is_not_known() -> None:
    assert "not known whether the unlabeled images are the cause" in claim({MICD: BETTER})


@pytest.mark.parametrize(
    ("result", "judgment"), [(UNCLEAR, "not significantly different from"), (WORSE, "significantly worse than")]
)
def test_a_control_as_good(result: tuple[float, float], judgment: str) -> None:
    text = claim({MICD: BETTER}, control=result)
    assert f"It is {judgment} the best control, EMA: " in text
    assert "so it is not shown that the unlabeled images are the cause." in text


def test_equal_time() -> None:
    assert "Nothing is known at equal time" in claim({MICD: BETTER})
    assert "equal time" not in claim({MICD: BETTER}, seconds=(0, 104))
    text = claim({MICD: BETTER}, equal_time={STOCK: WORSE}, seconds=(450, 300))
    assert "Against nnU-Net trained 1.5 times as long as it, it is significantly worse than nnU-Net: -2.0" in text
    text = claim({MICD: BETTER}, equal_time={STOCK: WORSE}, seconds=(150, 300))
    assert (
        "Against the longest training of nnU-Net, 50% of its time, it is significantly worse than nnU-Net: -2.0" in text
    )
    text = claim({MICD: BETTER}, equal_time={STOCK: BETTER, CONTROL: WORSE})
    assert "At equal time it is significantly better than nnU-Net: " in text
    assert "At equal time it is significantly worse than the control EMA: " in text
    text = claim({MICD: BETTER}, equal_time={CONTROL: BETTER})
    assert "nnU-Net was not trained longer with these labels and a common seed. At equal time it is" in text


def test_groups_are_not_called_cases() -> None:
    assert claim({MICD: BETTER}, labeled=12).startswith("6 labeled groups, 12 cases: MICD has")


def test_few_seeds() -> None:
    assert claim({MICD: BETTER}, seeds=2).endswith("With 2 seeds, nothing is known about other labeled cases.")
    assert claim({MICD: BETTER}, seeds=1).endswith("With 1 seed, nothing is known about other labeled cases.")
    text = claim({MICD: BETTER}, budget="f0")
    assert text.startswith("Labels of fold 0: ")
    assert text.endswith("The labeled cases are those of one fold: nothing is known about others.")
    text = claim({MICD: BETTER}, budget="f0", seeds=1)
    assert "p = 0.001 with Holm's correction; 1 seed)" in text
    assert text.endswith("nothing is known about others, nor, with 1 seed, about other trainings with them.")


def test_without_nnunet_there_is_no_comparison() -> None:
    assert "78.3 %. There is no run of nnU-Net with the same labels to compare it with." in claim({})


def test_few_cases() -> None:
    assert "same labels: +3.1 points, too few cases for a test." in claim({MICD: (0.031, float("nan"))}, cases=1)
    sentence = "With n = 6 and 2 comparisons no difference can be significant."
    assert sentence in claim({MICD: UNCLEAR, CPS: UNCLEAR}, cases=6)
    assert sentence not in claim({MICD: UNCLEAR}, cases=6)


def test_without_methods_there_is_nothing_to_claim() -> None:
    assert list_claims({}, {}) == []


def test_without_a_gain_there_is_no_cause() -> None:
    assert "cause" not in claim({MICD: UNCLEAR}, control=UNCLEAR)


def test_methods_without_a_common_seed_are_named() -> None:
    frames = {
        "summary": pd.DataFrame(
            [
                {"budget": "6", "trainer": name, "class": MEAN, "dice_mean": 0.7, "num_labeled": 6}
                for name in (MICD, CPS, CONTROL)
            ]
        ),
        **{
            name: pd.DataFrame(columns=["metric", "budget", "trainer"])
            for name in ("comparisons", "costs", "equal_time", "against_control", "best_against_others")
        },
    }
    (text,) = list_claims(frames, {"6": MICD})
    assert text.endswith("It could not be compared with CPS: they have no seed in common.")
    frames["comparisons"] = pd.DataFrame(
        [{"metric": "dice", "budget": "6", "trainer": MICD} | make_test(*BETTER) | {"n": 40}]
    )
    (text,) = list_claims(frames, {"6": MICD})
    assert "No control has a seed in common with it, so it is not known whether" in text


def test_a_mean_that_a_few_cases_make_is_not_significant() -> None:
    """30 cases that are slightly worse and 5 that are much better: the ranks and the mean disagree."""
    result = asdict(compare_paired([-0.005] * 30 + [0.3] * 5))
    assert result["difference"] > 0.03
    assert result["pseudomedian"] < 0
    assert result["p"] < 0.05
    assert not is_significant(result | {"p_holm": result["p"]})
    assert is_significant(asdict(compare_paired([0.005] * 30 + [0.3] * 5)) | {"p_holm": 0.01})
