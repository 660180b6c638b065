"""Paired comparisons of two methods on the same cases, or groups of cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

BOOTSTRAP_SAMPLES = 10_000
BOOTSTRAP_SEED = 0
"""Fixed, so that the same scores always give the same interval."""

LEVEL = 0.05
"""A difference may be significant if its p with Holm's correction is below."""

COVERAGE = 0.95
"""Share of the intervals that hold the true difference."""


@dataclass(frozen=True)
class PairedResult:
    """Outcome of :func:`compare_paired`; values are NaN if there are too few differences.

    Attributes:
        n: Number of differences.
        difference: Mean of method minus baseline.
        low: Lower end of the 95 % bootstrap interval of the difference, see :func:`interval_quantiles`.
        high: Upper end of this interval.
        pseudomedian: Median of the means of all pairs of differences (Hodges and Lehmann), which the test is about.
        p: p-value of the two-sided Wilcoxon signed-rank test.
    """

    n: int
    difference: float
    low: float
    high: float
    pseudomedian: float
    p: float


def compare_paired(differences: Sequence[float] | np.ndarray) -> PairedResult:
    """Test if the differences, one for each independent case or group of cases, are centered at zero.

    The interval is the expanded percentile bootstrap interval of their mean, which draws differences with replacement.

    Args:
        differences: Score of the method minus score of the baseline for each case or group.

    Examples:
        >>> result = compare_paired([0.1, 0.2, 0.3])
        >>> round(result.difference, 3), result.p
        (0.2, 0.25)
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        mean = float(values.mean()) if len(values) else np.nan
        return PairedResult(len(values), mean, np.nan, np.nan, mean, np.nan)
    bootstrap = stats.bootstrap(
        (values,), np.mean, n_resamples=BOOTSTRAP_SAMPLES, method="percentile", rng=BOOTSTRAP_SEED
    )
    low, high = np.quantile(bootstrap.bootstrap_distribution, interval_quantiles(len(values)))
    # Wilcoxon's test needs ranks, and there are none if all differences are zero. Then nothing speaks for a difference.
    p = stats.wilcoxon(values).pvalue if values.any() else 1.0
    first, second = np.triu_indices(len(values))
    pseudomedian = np.median(values[first] + values[second]) / 2
    return PairedResult(len(values), float(values.mean()), float(low), float(high), float(pseudomedian), float(p))


def interval_quantiles(n: int) -> tuple[float, float]:
    """Return the quantiles of the bootstrap distribution at which the interval of a mean of n values ends.

    With few values a percentile interval is too narrow: it has the normal distribution's width and the deviation with
    divisor n. So its quantiles are moved outward until it is as wide as Student's (Hesterberg, The American
    Statistician 69, 2015, "expanded percentile"). With two or three values that is the whole range.

    Args:
        n: Number of values, at least two.

    Examples:
        >>> [f"{interval_quantiles(n)[0]:.4f}" for n in (5, 20, 200)]
        ['0.0010', '0.0159', '0.0241']
    """
    half = stats.t.ppf((1 + COVERAGE) / 2, n - 1) * np.sqrt(n / (n - 1))
    return float(stats.norm.cdf(-half)), float(stats.norm.cdf(half))


def is_significant(test: Mapping[Any, Any]) -> bool:
    """Return whether a difference is significant after Holm's correction, in the direction of its mean.

    The test is about the ranks of the differences. A few large ones may turn their mean to the other side.

    Args:
        test: The fields of a `PairedResult` and ``p_holm``.
    """
    return bool(test["p_holm"] < LEVEL and test["difference"] * test["pseudomedian"] > 0)


def correct_holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the p-values corrected for their number after Holm (1979).

    NaNs stay NaN and do not count as comparisons.

    Examples:
        >>> correct_holm([0.01, 0.04]).tolist()
        [0.02, 0.04]
    """
    values = np.array(p_values, dtype=float)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaNs come last
    corrected = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1))
    values[order] = np.minimum(1, corrected)
    return values
