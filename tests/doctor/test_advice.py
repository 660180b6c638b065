"""The advice of the doctor says what the tables in docs/results say."""

import csv
import re
from math import isnan
from pathlib import Path

import pytest

from nnunetv2_micd.doctor import advice
from nnunetv2_micd.doctor.advice import MEASUREMENTS, Measurement, advise
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported

EITHER = ("nnU-Net itself", "with about as many labels nothing was measured")
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def read(measurement: Measurement, table: str) -> tuple[float, float, float]:
    """Return difference and interval of a table, in points."""
    with (RESULTS / measurement.table / table).open() as file:
        [row] = [
            row
            for row in csv.DictReader(file)
            if (row["metric"], row["budget"], row["trainer"].removesuffix(" (control)"))
            == ("dice", measurement.budget, f"nnUNetTrainer{measurement.trainer}")
        ]
    return tuple(round(100 * float(row[name]), 1) for name in ("difference", "low", "high"))


@pytest.mark.parametrize(
    "measurement",
    [one for one in MEASUREMENTS if not isnan(one.over_nnunet[1])],
    ids=lambda one: f"{one.table}-{one.budget}",
)
def test_measurements_are_those_of_the_tables(measurement: Measurement) -> None:
    assert measurement.over_nnunet == read(measurement, "comparisons.csv")
    if measurement.over_control is not None:
        assert measurement.over_control == read(measurement, "against_control.csv")
    assert f"nnUNetTrainer{measurement.trainer}" in exported.__all__
    with (RESULTS / measurement.table / "comparisons.csv").open() as file:
        seeds = {
            row["seeds"]
            for row in csv.DictReader(file)
            if row["trainer"].removesuffix(" (control)") == f"nnUNetTrainer{measurement.trainer}"
            and row["budget"] == measurement.budget
        }
    assert seeds == {str(measurement.trainings)}
    with (RESULTS / measurement.table / "summary.csv").open() as file:
        numbers = {row["num_labeled"] for row in csv.DictReader(file) if row["budget"] == measurement.budget}
    # Of groups, such as examinations, the budget counts the groups.
    assert {str(measurement.labeled)} & {*numbers, measurement.budget}


def test_measurement_without_interval_is_that_of_its_page() -> None:
    [measurement] = [one for one in MEASUREMENTS if isnan(one.over_nnunet[1])]
    page = (RESULTS / measurement.table / "README.md").read_text(encoding="utf-8")
    _, nnunet, _ = re.split(r"\| hippocampus, .*\| nnU-Net \| ([\d.]+) ", page)
    ours, _ = re.findall(rf"\| \| `{measurement.trainer}` \| ([\d.]+) ", page)  # of the hippocampus, of hearts
    assert f"{float(ours) - float(nnunet):+.1f}" == f"{measurement.over_nnunet[0]:+.1f}"
    line = f"800 steps, 3 trainings: {measurement.over_nnunet[0]:+.1f} [docs/results/chosen_labels]"
    assert line in advise(10, 150).remedy
    assert not measurement.has_gained


def test_no_long_training_of_self_training_is_left_out() -> None:
    """Not of its control either, in whose tables they would be easy to overlook."""
    for table in RESULTS.rglob("comparisons.csv"):
        with table.open() as file:
            rows = {(row["budget"], row["trainer"]) for row in csv.DictReader(file) if "SelfTraining" in row["trainer"]}
        folder = table.parent.relative_to(RESULTS).as_posix()
        if any(one.table == folder and one.steps == 3200 for one in MEASUREMENTS):
            known = {(one.budget, f"nnUNetTrainer{one.trainer}") for one in MEASUREMENTS if one.table == folder}
            assert {(budget, trainer.removesuffix(" (control)")) for budget, trainer in rows} == known


def test_the_nearest_long_trainings_must_all_have_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    gained = Measurement("liver", 2, 50, "A", (3.0, 2.0, 4.0), (1.0, -0.5, 1.5), "few", "2", 3200)
    lost = Measurement("lung", 2, 50, "A", (-3.0, -4.0, -2.0), (1.0, 0.5, 1.5), "some", "2", 3200)
    control = Measurement("liver", 2, 0, "A_LabeledOnly", (2.0, 1.0, 3.0), None, "few", "2", 3200)
    monkeypatch.setattr(advice, "MEASUREMENTS", (gained, lost))
    assert advise(2, 10).text.endswith("nnU-Net itself")
    monkeypatch.setattr(advice, "MEASUREMENTS", (gained, control))
    assert advise(2, 10).text.endswith("-tr nnUNetTrainerA, or its control nnUNetTrainerA_LabeledOnly")
    assert advise(2, 0).text.endswith("-tr nnUNetTrainerA_LabeledOnly")


def test_nearest_number_of_labels_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Measurement("liver", 2, 50, "A", (3.0, 2.0, 4.0), (1.0, 0.5, 1.5), "few", "2", 3200)
    some = Measurement("lung", 3, 50, "C", (0.1, -1.0, 2.0), None, "some", "3", 3200)
    many = Measurement("heart", 20, 50, "B", (1.0, 0.5, 2.0), None, "many", "20", 3200)
    monkeypatch.setattr(advice, "MEASUREMENTS", (many, some, few))
    assert advise(1, 10).text == "with 1 labeled and 10 unlabeled images: -tr nnUNetTrainerA"
    assert advise(3, 10).text.endswith("-tr nnUNetTrainerA")  # C, which is nearer, has not gained
    assert advise(6, 10).text == "with 6 labeled and 10 unlabeled images: nnU-Net itself"
    assert advise(15, 10).text.endswith("nnUNetTrainerB")
    assert advise(20, 10).text.endswith("nnUNetTrainerB")
    assert advise(21, 10).text.endswith("nnU-Net itself")  # more than in any long training that gained
    assert "B, 20 hearts" in advise(40, 10).remedy
    assert "nothing was measured" in advise(41, 10).text
    assert "nothing was measured" in advise(5, 0).text
    mixed = Measurement("liver", 4, 0, "M", (3.0, 2.0, 4.0), None, "few", "4", 3200)
    monkeypatch.setattr(advice, "MEASUREMENTS", (many, some, few, mixed))
    assert advise(5, 0).text == "with 5 labeled and no unlabeled images: -tr nnUNetTrainerM"
    assert advise(5, 9).text == "with 5 labeled and 9 unlabeled images: -tr nnUNetTrainerM"  # none of the others gained
    monkeypatch.setattr(advice, "MEASUREMENTS", (many, some, few))
    _, _, livers, lungs, *_ = advise(2, 10).remedy.splitlines()
    gains = "+3.0 (2.0 to 4.0) | +1.0 (0.5 to 1.5)"
    assert livers == f"A, 2 livers, 50 unlabeled, 3200 steps, 3 trainings: {gains} [docs/results/few]"
    assert lungs == "C, 3 lungs, 50 unlabeled, 3200 steps, 3 trainings: +0.1 (-1.0 to 2.0) [docs/results/some]"


def test_only_the_nearest_number_of_labels_of_the_same_images_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [
        Measurement("liver", number, 50, "A", (3.0, 2.0, 4.0), None, "few", str(number), 3200) for number in (2, 3, 4)
    ]
    monkeypatch.setattr(
        advice, "MEASUREMENTS", (*several, Measurement("lung", 6, 9, "A", (0, -1, 1), None, "x", "6", 3200))
    )
    _, _, livers, lungs, *_ = advise(3, 10).remedy.splitlines()
    assert livers.startswith("A, 3 livers")
    assert lungs.startswith("A, 6 lungs")


def test_trainers_for_certain_images_are_shown_and_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    any_images = Measurement("liver", 2, 50, "A", (3.0, 2.0, 4.0), None, "few", "2", 3200)
    certain = Measurement("head", 2, 50, "E", (9.0, 8.0, 10.0), None, "heads", "2", 3200, only_for="one object in 2D")
    monkeypatch.setattr(advice, "MEASUREMENTS", (any_images, certain))
    advised = advise(2, 10)
    assert advised.text.endswith("-tr nnUNetTrainerA")
    assert "E (one object in 2D only), 2 heads, 50 unlabeled, 3200 steps, 3 trainings: +9.0" in advised.remedy
    monkeypatch.setattr(advice, "MEASUREMENTS", (certain,))
    assert advise(2, 10).text.endswith("nnU-Net itself")


def test_short_trainings_are_shown_and_recommend_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Measurement("liver", 2, 50, "A", (3.0, 2.0, 4.0), None, "few", "2", 300)
    monkeypatch.setattr(advice, "MEASUREMENTS", (short,))
    assert advise(2, 10).text.endswith("nnU-Net itself")
    assert "50 unlabeled, 300 steps, 3 trainings: +3.0" in advise(2, 10).remedy
    assert advise(2, 10).remedy


@pytest.mark.parametrize("labeled", range(1, 100))
def test_advice_is_that_of_the_first_table_of_the_page(labeled: int) -> None:
    page = (RESULTS.parent / "how_to" / "choose_a_trainer.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) to (\d+) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    advised, advised_without = [EITHER], [EITHER]
    for first, last, some, none in rows:
        if int(first) <= labeled <= int(last):
            advised, advised_without = [read_advice(some, labeled)], [read_advice(none, labeled)]
    assert advise(labeled, 100).text.endswith(*advised)
    assert advise(labeled, 0).text.endswith(*advised_without)


def read_advice(cell: str, labeled: int) -> str | tuple[str, str]:
    """Return the advice in a cell of the page's table; what follows "from 4 on" is for 4 labels and more."""
    named = []
    for part in cell.split(";"):
        start = re.search(r"from (\d+) on", part)
        if start is None or labeled >= int(start[1]):
            named += re.findall(r"`(nnUNetTrainer\w+)`", part)
    return f"-tr {', or its control '.join(named)}" if named else EITHER


def test_other_short_trainings_of_the_same_images_are_shown_beside_long_ones() -> None:
    lines = [line for line in advise(1, 159).remedy.splitlines() if line.startswith("SelfTraining, 1 hippocampus")]
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["+4.2", "+1.9", "-5.2"]


@pytest.mark.parametrize("labeled", range(1, 100))
def test_nobody_is_sent_to_a_trainer_that_gained_in_short_trainings_only(labeled: int) -> None:
    assert "MICD" not in advise(labeled, 100).text
