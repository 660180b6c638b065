"""The last lines of the quickstart say what came out, whatever it is."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def summary(*dice: float) -> dict[str, Any]:
    mean = sum(dice) / len(dice)
    cases = [
        {"prediction_file": f"predictions/case_{number}.nii.gz", "metrics": {"1": {"Dice": value}}}
        for number, value in enumerate(dice)
    ]
    return {"mean": {"1": {"Dice": mean}}, "foreground_mean": {"Dice": mean}, "metric_per_case": cases}


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.8, 0.7), "MICD gained 5.0 points of Dice over nnU-Net; it is better on 1 of 2"),
        ((0.6, 0.6), "MICD lost 10.0"),
    ],
)
def test_verdict_is_computed(
    ours: tuple[float, float], verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    quickstart = module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    summaries = {"nnU-Net": summary(0.7, 0.7), "MICD": summary(*ours)}
    quickstart.report(summaries, {"0": "background", "1": "anterior"}, {"nnU-Net": 0.5, "MICD": 2.5})
    printed = capsys.readouterr().out
    assert verdict in printed
    assert "mean                    70.0" in printed
