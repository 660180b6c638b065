"""The table and the picture of a profile."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_micd.profiling.measure import Cost
from nnunetv2_micd.profiling.steps import PARTS, StepProfile
from nnunetv2_micd.training.registry import STOCK
from nnunetv2_micd.training.workers import workers_for_unlabeled
from nnunetv2_micd.utils.figures import default_style
from nnunetv2_micd.utils.markdown import markdown_table

SMALLEST_COMPARED = 2**26
"""Bytes of main memory that nnU-Net's steps have to add to be compared with: less is mostly chance."""


def waiting_seconds(profile: StepProfile, workers: int) -> float:
    """Return how long a step waits for its batches if worker processes make them all the time.

    Labeled and unlabeled images share the workers about as in a training, which estimates their times. Without workers
    the step makes its batches itself.

    Args:
        profile: Times of a step and of its batches.
        workers: Number of worker processes.
    """
    labeled, unlabeled = profile.data
    for_unlabeled = workers_for_unlabeled(workers, labeled, unlabeled) if unlabeled else 0
    if workers == 0 or (unlabeled and not for_unlabeled):
        return labeled + unlabeled
    slowest = max(labeled / (workers - for_unlabeled), unlabeled / for_unlabeled if for_unlabeled else 0)
    return max(0.0, slowest - profile.step)


def make_table(costs: Sequence[Cost], workers: int | None = None) -> list[list[str]]:
    """Return a header and a row for each trainer.

    Args:
        costs: Costs of the trainers, of nnU-Net's own first, see :func:`measure.profile`.
        workers: Number of processes that load images; by default as many as nnU-Net starts.
    """
    workers = get_allowed_n_proc_DA() if workers is None else workers
    on_gpu = costs[0].memory.allocated is not None
    header = [
        "trainer",
        "step ms",
        "step / nnU-Net",
        "floor ms",
        "step / floor",
        "labeled data ms",
        "unlabeled data ms",
        f"wait ms ({workers} workers)",
        *(f"{part} ms" for part in PARTS),
        *(["GPU memory GiB", "reserved GiB"] if on_gpu else ["memory GiB"]),
        "memory / nnU-Net",
    ]
    return [header, *(_make_row(cost, costs[0], workers, on_gpu) for cost in costs)]


def _make_row(cost: Cost, stock: Cost, workers: int, on_gpu: bool) -> list[str]:
    profile, memory = cost.profile, cost.memory
    size, stock_size = (peak.allocated if on_gpu else peak.resident for peak in (memory, stock.memory))
    return [
        profile.trainer,
        _ms(profile.step),
        f"{profile.step / stock.profile.step:.2f}",
        _ms(profile.floor),
        f"{profile.step / profile.floor:.2f}",
        *map(_ms, profile.data),
        _ms(waiting_seconds(profile, workers)),
        *(_ms(profile.parts[part]) for part in PARTS),
        *(f"{(bytes_ or 0) / 2**30:.2f}" for bytes_ in ([size, memory.reserved] if on_gpu else [size])),
        f"{size / stock_size:.2f}" if size and stock_size and (on_gpu or stock_size >= SMALLEST_COMPARED) else "-",
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows of :func:`make_table` as a table in Markdown, with a column for each trainer."""
    header, *lines = zip(*rows, strict=True)
    return markdown_table(header, lines)


def write_profile(costs: Sequence[Cost], folder: str | os.PathLike[str]) -> Path:
    """Write ``profile.csv`` and ``profile.png`` into a folder; return the path of the picture."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with (target / "profile.csv").open("w", newline="") as file:
        csv.writer(file).writerows(make_table(costs))
    draw_profile([cost.profile for cost in costs], target / "profile.png")
    return target / "profile.png"


def draw_profile(profiles: Sequence[StepProfile], path: Path) -> None:
    """Draw the parts of each trainer's step as a bar, and its floor as a line across it."""
    with default_style():
        figure = Figure(figsize=(9, 1.2 + 0.45 * len(profiles)), layout="constrained")
        axes = figure.subplots()
        places = range(len(profiles))
        ends = [0.0] * len(profiles)
        for number, part in enumerate(PARTS):
            lengths = [1000 * profile.parts[part] for profile in profiles]
            axes.barh(places, lengths, left=ends, height=0.6, color=f"C{number}", label=part)
            ends = [end + length for end, length in zip(ends, lengths, strict=True)]
        floors = [1000 * profile.floor for profile in profiles]
        axes.scatter(floors, places, marker="|", s=300, color="black", zorder=3, label="floor: the passes alone")
        axes.set_yticks(places, [profile.trainer.removeprefix(STOCK) or "nnU-Net" for profile in profiles])
        axes.invert_yaxis()
        axes.set_xlabel("ms per step (median)")
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        figure.savefig(path, dpi=120)
