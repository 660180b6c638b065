"""The numbers that all methods have; each method adds its own in a subclass, and a variant replaces some."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SemiSupervisedConfig:
    """What all methods have in common.

    Attributes:
        ema_decay: a of eq. 1, the largest decay of the teachers.
        ramp_peak: largest weight b of the unsupervised losses (eq. 7), reached at the end of the ramp; at 0 no
            unlabeled image is read and no unsupervised loss computed. DHC has 0.1; in trainings of 200 steps 0.1, 1 and
            3 did not differ beyond the noise (README), so 1, the supervised losses' own weight, is a convention.
        ramp_length: the share of the training over which b grows to its peak; at 0 it has it from the first step on.
    """

    ema_decay: float = 0.99
    ramp_peak: float = 1.0
    ramp_length: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, it has to be at least 0 and below 1.")
        if self.ramp_peak < 0:
            raise ValueError(f"ramp_peak is {self.ramp_peak}, it has to be 0 or more.")
        if not 0 <= self.ramp_length <= 1:
            raise ValueError(f"ramp_length is {self.ramp_length}, it has to be between 0 and 1.")
