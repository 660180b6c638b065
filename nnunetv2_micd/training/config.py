"""Numbers that all methods have; each method adds its own in a subclass, and a variant replaces some of them."""

from dataclasses import dataclass
from typing import Annotated

from nnunetv2_micd.utils.ranges import Between, Share, Weight, check_fields


@dataclass(frozen=True)
class SemiSupervisedConfig:
    """Numbers that all methods have in common.

    Attributes:
        ema_decay: Largest decay of the teachers, ``a`` of eq. 1.
        ramp_peak: Largest weight b of the unsupervised losses (eq. 7), reached at the end of the ramp. At 0 no
            unlabeled image is read and no unsupervised loss computed. DHC has 0.1; in trainings of 200 steps 0.1, 1 and
            3 did not differ beyond the noise (``docs/results``), so 1, the weight of the supervised losses, is a
            convention.
        ramp_length: Share of the training over which b grows to its peak; 0 means full weight from the first step on.
        unlabeled_ratio: Unlabeled patches in a step for each labeled one; a step has at least one.
        consistency_every: Interval, in steps, at which the unsupervised losses are computed and their state is updated.
            Their weight stays the same.
        channels_last: Whether the networks of a training on a CPU use the channels-last memory format. Small networks
            are faster in it, nnU-Net's default ones slower (``docs/performance.md``). Rounding differs.

    Raises:
        ValueError: a value is outside its range.

    Examples:
        >>> from dataclasses import replace
        >>> replace(SemiSupervisedConfig(), ramp_peak=-1)
        Traceback (most recent call last):
        ValueError: ramp_peak is -1, but must be 0 or more.
    """

    ema_decay: Annotated[float, Between(0, 1, exclude="high")] = 0.99
    ramp_peak: Weight = 1.0
    ramp_length: Share = 1.0
    unlabeled_ratio: Annotated[float, Between(0, exclude="low")] = 1.0
    consistency_every: Annotated[int, Between(1)] = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
