"""What ``nnUNetv2_micd profile`` tells: a table and a picture of what the steps of trainers cost."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_micd.benchmark.records import STOCK
from nnunetv2_micd.profiling.measure import Cost
from nnunetv2_micd.profiling.steps import PARTS, StepProfile


def waiting_seconds(profile: StepProfile, workers: int) -> float:
    """Return how long a step waits for its batches where so many worker processes make them all the time.

    Labeled and unlabeled images share the workers as in training; without workers the step makes its batches itself.
    """
    labeled, unlabeled = profile.data
    for_unlabeled = workers // 2 if unlabeled else 0
    if workers == 0 or (unlabeled and not for_unlabeled):
        return labeled + unlabeled
    slowest = max(labeled / (workers - for_unlabeled), unlabeled / for_unlabeled if for_unlabeled else 0)
    return max(0.0, slowest - profile.step)


def make_table(costs: Sequence[Cost], workers: int | None = None) -> list[list[str]]:
    """Return a header and a row for each trainer, the first of which is nnU-Net's own.

    Args:
        costs: see :func:`profile`.
        workers: that load images, by default as many as nnU-Net would start.
    """
    workers = get_allowed_n_proc_DA() if workers is None else workers
    on_gpu = costs[0].memory.allocated is not None
    memory = ["GPU memory GiB", "reserved GiB"] if on_gpu else ["memory GiB"]
    units = [
        "step ms",
        "step / nnU-Net",
        "floor ms",
        "step / floor",
        "labeled data ms",
        "unlabeled data ms",
        f"wait ms ({workers} workers)",
    ]
    rows = [["trainer", *units, *(f"{part} ms" for part in PARTS), *memory, "memory / nnU-Net"]]
    for cost in costs:
        each, first = cost.profile, costs[0]
        size, reference = (one.allocated if on_gpu else one.resident for one in (cost.memory, first.memory))
        sizes = [cost.memory.allocated, cost.memory.reserved] if on_gpu else [cost.memory.resident]
        rows.append(
            [
                each.trainer,
                _ms(each.step),
                f"{each.step / first.profile.step:.2f}",
                _ms(each.floor),
                f"{each.step / each.floor:.2f}",
                *map(_ms, each.data),
                _ms(waiting_seconds(each, workers)),
                *(_ms(each.parts[part]) for part in PARTS),
                *(f"{(value or 0) / 2**30:.2f}" for value in sizes),
                f"{size / reference:.2f}" if size and reference else "-",
            ]
        )
    return rows


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown, a column for each trainer."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, row)) for row in rows]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in columns
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


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
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(profiles)), layout="constrained")
    axes = figure.subplots()
    places = range(len(profiles))
    begins = [0.0] * len(profiles)
    for number, part in enumerate(PARTS):
        lengths = [1000 * each.parts[part] for each in profiles]
        axes.barh(places, lengths, left=begins, height=0.6, color=f"C{number}", label=part)
        begins = [begin + length for begin, length in zip(begins, lengths, strict=True)]
    floors = [1000 * each.floor for each in profiles]
    axes.scatter(floors, places, marker="|", s=300, color="black", zorder=3, label="floor: the passes alone")
    axes.set_yticks(places, [each.trainer.removeprefix(STOCK) or "nnU-Net" for each in profiles])
    axes.invert_yaxis()
    axes.set_xlabel("ms per step (median)")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)
