"""Comparisons on scores that are made by hand: who is chosen, who is tested against whom, on which seeds."""

import numpy as np
import pandas as pd
import pytest

from nnunetv2_micd.report.comparisons import compare_all, compare_best, compare_with_control, find_best
from nnunetv2_micd.report.runs import is_control, is_method
from nnunetv2_micd.report.statistics import compare_paired, correct_holm
from nnunetv2_micd.training.registry import STOCK

CASES = 12


def make_scores(means: dict[tuple[str, int], float], budget: str = "2") -> pd.DataFrame:
    """Return scores of twelve cases for each trainer and seed, around these means."""
    rows = []
    for (trainer, seed), mean in means.items():
        noise = 0.01 * np.sin(np.arange(CASES) * (2 + len(trainer)))
        for case, dice in enumerate(mean + noise - noise.mean()):
            keys = {"trainer": trainer, "budget": budget, "num_labeled": 2, "seed": seed, "case": f"c{case}"}
            rows.append(keys | {"class": "a", "dice": dice, "nsd": dice, "hd95": 1 - dice, "asd": 1 - dice})
    table = pd.DataFrame(rows).assign(outcome="scored")
    return table.assign(group=table["case"])


def test_the_best_is_chosen_on_common_seeds() -> None:
    scores = make_scores({("A", 0): 0.7, ("A", 1): 0.5, ("B", 0): 0.65, ("C (control)", 0): 0.9, (STOCK, 0): 0.95})
    assert find_best(scores, is_method) == {"2": "A"}
    assert find_best(scores, is_control) == {"2": "C (control)"}
    assert find_best(scores[scores["trainer"] == STOCK], is_method) == {}
    # one good seed of X does not make it the best, nor the other seeds of the others worthless
    partial = make_scores({("A", 0): 0.5, ("A", 1): 0.8, ("B", 0): 0.55, ("B", 1): 0.7, ("X", 0): 0.9})
    assert find_best(partial, is_method) == {"2": "A"}
    disjoint = make_scores({("A", 0): 0.6, ("B", 1): 0.7})
    assert find_best(disjoint, is_method) == {"2": "B"}


def test_the_mean_of_both_networks_of_a_control_is_for_methods_that_predict_so() -> None:
    both = ", mean of both networks"
    means = {"C (control)": 0.6, f"C{both} (control)": 0.8, "A": 0.7, f"A{both}": 0.9, STOCK: 0.5}
    table = compare_with_control(make_scores({(name, 0): mean for name, mean in means.items()}))
    opponents = table[table["metric"] == "dice"].set_index("trainer")["control"]
    assert opponents.to_dict() == {"A": "C (control)", f"A{both}": f"C{both} (control)"}


def test_methods_are_tested_against_the_best_control_of_their_budget() -> None:
    few = make_scores(
        {(STOCK, 0): 0.5, ("X (control)", 0): 0.6, ("Y (control)", 0): 0.55, ("A", 0): 0.7, ("B", 0): 0.6}
    )
    many = make_scores({(STOCK, 0): 0.8, ("Y (control)", 0): 0.81, ("A", 0): 0.9}, budget="5")
    more = make_scores({(STOCK, 0): 0.8, ("A", 0): 0.9}, budget="9")
    table = compare_with_control(pd.concat([few, many, more]))
    assert list(table["metric"].unique()) == ["dice", "nsd", "hd95", "asd"]
    dice = table[table["metric"] == "dice"].set_index(["budget", "trainer"])
    assert dice["control"].to_dict() == {
        ("2", "A"): "X (control)",
        ("2", "B"): "X (control)",
        ("5", "A"): "Y (control)",
    }
    assert dice["difference"].tolist() == pytest.approx([0.1, 0.0, 0.09])
    np.testing.assert_allclose(dice["p_holm"], correct_holm(dice["p"]))
    assert compare_with_control(more).empty


def test_what_each_seed_has_by_itself() -> None:
    """Two seeds of three are common; the mean of a seed is over classes, then cases, then groups."""
    means = {(STOCK, 0): 0.5, (STOCK, 1): 0.6, (STOCK, 2): 0.9, ("A", 0): 0.8, ("A", 1): 0.65}
    row = compare_all(make_scores(means)).set_index("metric").loc["dice"]
    assert row[["seeds", "seed_low", "seed_high", "difference"]].tolist() == pytest.approx([2, 0.05, 0.3, 0.175])


def test_the_best_method_is_tested_against_each_other_method_and_control() -> None:
    means = {(STOCK, 0): 0.5, ("X (control)", 0): 0.6, ("A", 0): 0.7, ("B", 0): 0.6, ("B", 1): 0.8, ("C", 1): 0.9}
    scores = make_scores(means)
    table = compare_best(scores, {"2": "A"}).set_index("trainer")
    assert list(table.index) == ["X (control)", "B"]  # C has no seed of A
    assert table.loc["B", ["best", "seeds", "n"]].tolist() == ["A", 1, CASES]
    dice = scores[scores["seed"] == 0].set_index("trainer")["dice"]
    expected = compare_paired(dice["A"].to_numpy() - dice["B"].to_numpy())
    assert table.loc["B", ["difference", "low", "high", "p"]].tolist() == pytest.approx(
        [expected.difference, expected.low, expected.high, expected.p]
    )
    np.testing.assert_allclose(table["p_holm"], correct_holm(table["p"]))
    assert compare_best(scores, {}).empty
