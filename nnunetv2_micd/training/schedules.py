"""Ramp-up of the weight of the unsupervised losses."""

import math


def gaussian_ramp_up(step: int, total_steps: int, peak: float) -> float:
    """Gaussian ramp-up ``b(t) = peak * exp(-5 (1 - t / T)^2)``, MICD (https://arxiv.org/abs/2503.14013), equation 7.

    From Laine & Aila, "Temporal ensembling", ICLR 2017, https://arxiv.org/abs/1610.02242; DHC stretches it over the
    whole training. It starts at ``peak * exp(-5)``, 0.7 % of the peak, and stays at the peak after ``total_steps``.

    Args:
        step: Training step t, from 0.
        total_steps: Length T of the ramp in steps; without any, the value is the peak.
        peak: Value from step T on.

    Returns:
        Weight b(t).

    Examples:
        >>> gaussian_ramp_up(100, 100, peak=0.1)
        0.1
    """
    missing = 0 if step >= total_steps else 1 - step / total_steps
    return peak * math.exp(-5 * missing**2)
