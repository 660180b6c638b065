"""Paired comparisons of two methods on the same cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BOOTSTRAP_SAMPLES = 10_000
BOOTSTRAP_SEED = 0
"""Fixed, so that the same scores always give the same interval."""


@dataclass(frozen=True)
class PairedResult:
    """What :func:`compare_paired` finds; NaN where there are too few cases.

    Attributes:
        cases: how many there were.
        difference: mean over the cases of method minus baseline.
        low: lower end of the 95 % bootstrap interval of the difference.
        high: its upper end.
        p: of the two-sided Wilcoxon signed-rank test.
    """

    cases: int
    difference: float
    low: float
    high: float
    p: float


def compare_paired(differences: Sequence[float] | np.ndarray) -> PairedResult:
    """Test whether the differences, one per case, are centered at zero.

    The interval is the percentile bootstrap's: the cases are drawn anew, each with its difference.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return PairedResult(len(values), float(values.mean()) if len(values) else np.nan, np.nan, np.nan, np.nan)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    draws = generator.integers(len(values), size=(BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    # without any difference there are no ranks, and nothing speaks against equality
    p = stats.wilcoxon(values).pvalue if values.any() else 1.0
    return PairedResult(len(values), float(values.mean()), float(low), float(high), float(p))


def correct_holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the p-values corrected for their number after Holm (1979); NaNs are no comparisons and stay."""
    values = np.array(p_values, dtype=float)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaNs come last
    corrected = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1))
    values[order] = np.minimum(1, corrected)
    return values
