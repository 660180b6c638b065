"""Numbers that all methods have; each method adds its own in a subclass, and a variant replaces some of them."""

from dataclasses import dataclass, is_dataclass
from inspect import get_annotations
from math import inf
from typing import Annotated, Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Between:
    """Range of a number in a config, checked when the config is made.

    Args:
        low: Smallest value.
        high: Largest value.
        exclude: Bounds that are not allowed themselves: ``"low"``, ``"high"`` or both.

    Examples:
        >>> str(Between(0, 1)), str(Between(0, exclude="low"))
        ('between 0 and 1', 'above 0')
    """

    low: float
    high: float = inf
    exclude: Literal["", "low", "high", "both"] = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.exclude in ("low", "both") else value >= self.low
        below = value < self.high if self.exclude in ("high", "both") else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.exclude in ("low", "both") else f"at least {self.low:g}"
        if self.high == inf:
            return low if self.exclude else f"{self.low:g} or more"
        if not self.exclude:
            return f"between {self.low:g} and {self.high:g}"
        return f"{low} and {'below' if self.exclude in ('high', 'both') else 'at most'} {self.high:g}"


Share = Annotated[float, Between(0, 1)]
"""A share or probability."""

Weight = Annotated[float, Between(0)]
"""The weight of a loss; at 0 a loss is not computed."""


def check_fields(config: Any) -> None:
    """Check the fields of a config against their annotations: ``Between``, whole numbers and ``Literal``.

    Those of all its classes hold: a subclass that gives a field another default need not repeat its range.

    Raises:
        ValueError: the first field with a value that is not allowed.
    """
    classes = [cls for cls in reversed(type(config).__mro__) if is_dataclass(cls)]
    for name, hint in (item for cls in classes for item in get_annotations(cls, eval_str=True).items()):
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, get_args(hint)))}.")
        if get_origin(hint) is not Annotated:
            continue
        kind, allowed = get_args(hint)
        if value not in allowed or (kind is int and value != int(value)):
            raise ValueError(f"{name} is {value}, but must be {'a whole number, ' * (kind is int)}{allowed}.")


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
