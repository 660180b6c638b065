"""Divides the time of a computation into named parts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Divides time into parts. The time of an inner part does not count for the outer one.

    On CUDA it measures the time of the GPU, between events in its queue, so nothing waits for the GPU before the end.

    Args:
        device: Device of the computation.

    Examples:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> with watch.part("step"), watch.part("loss"):
        ...     pass
        >>> sorted(watch.take())
        ['loss', 'step']
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[tuple[str | None, Any]] = []
        self._active: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a block for a part."""
        self._active.append(name)
        self._mark()
        try:
            yield
        finally:
            self._active.pop()
            self._mark()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a function whose time counts for a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def _mark(self) -> None:
        if self._device.type == "cuda":
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            if self._device.type == "mps":
                torch.mps.synchronize()
            now = time.perf_counter()
        self._marks.append((self._active[-1] if self._active else None, now))

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds: dict[str, float] = {}
        for (name, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                duration = begin.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - begin
                seconds[name] = seconds.get(name, 0) + duration
        self._marks.clear()
        return seconds
