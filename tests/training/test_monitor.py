import csv
from pathlib import Path

import seaborn
import torch

from nnunetv2_micd.training.figures import plot_history, save_patches, write_csv

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
        save_patches(panels, str(tmp_path / "folder" / f"{len(shape)}.png"))
    assert all(path.stat().st_size > 1000 for path in tmp_path.rglob("*.png"))
    assert len(list(tmp_path.rglob("*.png"))) == 3
