import itertools
import math

import pytest

from nnunetv2_micd.training.schedules import gaussian_ramp_up


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1 * math.exp(-5)), (50, 0.1 * math.exp(-1.25)), (100, 0.1), (1000, 0.1)],
)
def test_known_values(step: int, expected: float) -> None:
    assert gaussian_ramp_up(step, 100, 0.1) == pytest.approx(expected)


def test_rises_throughout_and_a_zero_peak_stays_zero() -> None:
    values = [gaussian_ramp_up(step, 20, 1.0) for step in range(21)]
    assert all(earlier < later for earlier, later in itertools.pairwise(values))
    assert gaussian_ramp_up(7, 20, 0.0) == 0


def test_ramp_without_steps_is_at_its_peak() -> None:
    assert gaussian_ramp_up(0, 0, 1.5) == 1.5
