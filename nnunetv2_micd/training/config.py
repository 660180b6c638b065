"""The numbers that all methods have; each method adds its own in a subclass, and a variant replaces some."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SemiSupervisedConfig:
    """What all methods have in common.

    Attributes:
        ema_decay: a of eq. 1, the largest decay of the teachers.
        ramp_peak: largest weight b of the unsupervised losses (eq. 7), reached at the end of the ramp; at 0 no
            unlabeled image is read and no unsupervised loss computed. DHC has 0.1; in trainings of 200 steps 0.1, 1 and
            3 did not differ beyond the noise (``docs/results``), so 1, the supervised losses' own, is a convention.
        ramp_length: the share of the training over which b grows to its peak; at 0 it has it from the first step on.
        unlabeled_ratio: unlabeled patches in a step for each labeled one, at least one patch.
        consistency_every: the unsupervised losses are computed, and what they keep is updated, in every so many-th step
            only; their weight stays what it is.
        channels_last: whether the networks of a training on a CPU have another memory format, with which small networks
            are faster, and those of nnU-Net's default plans slower (``docs/performance.md``). Rounding differs.
    """

    ema_decay: float = 0.99
    ramp_peak: float = 1.0
    ramp_length: float = 1.0
    unlabeled_ratio: float = 1.0
    consistency_every: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, it has to be at least 0 and below 1.")
        if self.ramp_peak < 0:
            raise ValueError(f"ramp_peak is {self.ramp_peak}, it has to be 0 or more.")
        if not 0 <= self.ramp_length <= 1:
            raise ValueError(f"ramp_length is {self.ramp_length}, it has to be between 0 and 1.")
        if self.unlabeled_ratio <= 0:
            raise ValueError(f"unlabeled_ratio is {self.unlabeled_ratio}, it has to be above 0.")
        if self.consistency_every < 1 or self.consistency_every != int(self.consistency_every):
            raise ValueError(f"consistency_every is {self.consistency_every}, it has to be a whole number from 1 on.")
