"""Ranges of the numbers in configs, in their annotations, and the check of them."""

from dataclasses import dataclass, is_dataclass
from inspect import get_annotations
from math import inf
from numbers import Integral, Real
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

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number = float(value)
        above = number > self.low if self.exclude in ("low", "both") else number >= self.low
        below = number < self.high if self.exclude in ("high", "both") else number <= self.high
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
"""The weight of a loss. At 0 it does not count; whether it is computed all the same depends on the method."""

Range = tuple[float, float]
"""Two numbers, the smaller one first."""


def check_fields(config: Any) -> None:
    """Check the fields of a dataclass against their annotations: ``Between`` of a number or pair, bool, ``Literal``.

    Those of all its classes hold: a subclass that gives a field another default need not repeat its range.

    Raises:
        ValueError: the first field with a value that is not allowed.
    """
    classes = [cls for cls in reversed(type(config).__mro__) if is_dataclass(cls)]
    for name, hint in (item for cls in classes for item in get_annotations(cls, eval_str=True).items()):
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, get_args(hint)))}.")
        if hint is bool and not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, but must be True or False.")
        if get_origin(hint) is not Annotated:
            continue
        kind, allowed = get_args(hint)
        if get_origin(kind) is tuple:
            is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(each in allowed for each in value)
            if not (is_pair and value[0] <= value[1]):
                raise ValueError(f"{name} is {value!r}, but must be two numbers, the smaller one first, {allowed}.")
        elif value not in allowed or (kind is int and not isinstance(value, Integral)):
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            is_what = "a whole number, " if kind is int else "" if is_number else "a number, "
            raise ValueError(f"{name} is {value!r}, but must be {is_what}{allowed}.")
