"""The figures of each epoch as a table and as a plot."""

import csv
import os
from collections.abc import Mapping, Sequence

import matplotlib.style
from matplotlib.figure import Figure

Row = Mapping[str, float]

SHARES = ("agreement", "confident", "certain", "a_is_better")  # of voxels or steps, as methods name them


def write_csv(rows: Sequence[Row], path: str) -> None:
    """Write one line per epoch, with a column for each figure that any epoch has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path + ".tmp", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(path + ".tmp", path)


def plot(rows: Sequence[Row], path: str) -> None:
    """Draw the losses, the weight and share of the unsupervised ones, and what the branches say, over the epochs."""
    with matplotlib.style.context("default"):  # nnU-Net's own plot leaves huge fonts behind
        _draw(rows).savefig(path, dpi=100)


def _draw(rows: Sequence[Row]) -> Figure:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "epoch"))
    shares = [name for name in names if name in SHARES or name.startswith(("foreground", "mean_fg"))]
    weights = [name for name in names if name in ("b", "unsupervised_share")]
    losses = [name for name in names if name not in (*shares, *weights, "skipped_steps")]
    figure = Figure(figsize=(10, 12), layout="constrained")
    panels = {"loss": losses, "weight b(t) and share of the loss": weights, "share of voxels, Dice": shares}
    for axes, (title, group) in zip(figure.subplots(3, 1, sharex=True), panels.items(), strict=True):
        for name in group:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=name)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if group:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("epoch")
    return figure
