import csv
from pathlib import Path

import seaborn
import torch

from nnunetv2_micd.training.figures import plot_history, save_patches, write_csv
from nnunetv2_micd.training.monitor import Monitor

ROWS = [{"epoch": 0, "supervised": 1.0, "b": 0.1}, {"epoch": 1, "supervised": 0.5, "b": 0.2, "mcpc": 0.3}]


def test_csv_has_a_line_per_epoch_and_a_column_per_figure(tmp_path: Path) -> None:
    write_csv(ROWS, str(tmp_path / "log.csv"))
    with open(tmp_path / "log.csv") as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {"epoch": "0", "supervised": "1.0", "b": "0.1", "mcpc": ""}
    assert lines[1]["mcpc"] == "0.3"
    assert list(tmp_path.iterdir()) == [tmp_path / "log.csv"]


def test_plot_is_not_spoilt_by_the_fonts_of_nnunets_plot(tmp_path: Path) -> None:
    plot_history(ROWS, str(tmp_path / "clean.png"))
    seaborn.set(font_scale=2.5)
    plot_history(ROWS, str(tmp_path / "after.png"))
    assert (tmp_path / "clean.png").read_bytes() == (tmp_path / "after.png").read_bytes()


def test_plot_and_patches_are_drawn(tmp_path: Path) -> None:
    plot_history(ROWS, str(tmp_path / "log.png"))
    for shape in ((2, 12, 10), (2, 6, 12, 10)):
        panels = {"image": torch.randn(shape), "label": torch.ones(shape, dtype=torch.int64)}
        panels["differ"] = panels["image"] > 0
        save_patches(panels, str(tmp_path / "folder" / f"{len(shape)}.png"), "title", ["case"], {1: "liver"})
    assert all(path.stat().st_size > 1000 for path in tmp_path.rglob("*.png"))
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_summary_of_a_training() -> None:
    monitor = Monitor(log=print)
    assert monitor.summary(0) == "Trained 0 epochs in 0 minutes."
    monitor.history = [{"epoch": epoch, "mean_fg_dice": 0.5} for epoch in range(10)]
    start = "Trained 10 epochs in 2 minutes; online Dice of the network that predicts: 0.500 at the end"
    assert monitor.summary(120) == f"{start}."
    for row in monitor.history[5:]:
        row |= {"mean_fg_dice": 0.75, "agreement": 0.9}
    assert monitor.summary(120) == (
        f"{start.replace('0.500', '0.750')}, 0.500 before it learned from unlabeled images (epoch 4); agreement on "
        "unlabeled voxels: 0.90."
    )
