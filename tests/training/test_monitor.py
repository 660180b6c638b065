import csv
from pathlib import Path

import pytest
import seaborn
import torch
from helpers import FIGURES

from nnunetv2_micd.training import figures
from nnunetv2_micd.training.figures import image_panel, plot_history, save_patches, write_csv
from nnunetv2_micd.training.monitor import Monitor
from nnunetv2_micd.training.reference import find_reference
from nnunetv2_micd.training.terms import LOSSES, SHARES, WEIGHTS, describe

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


def test_epochs_are_whole_numbers() -> None:
    for rows in (ROWS, ROWS[:1]):
        axes = figures._draw_history(rows, ()).axes[-1]
        axes.figure.canvas.draw()
        assert all(float(place).is_integer() for place in axes.get_xticks())


def test_plot_and_patches_are_drawn(tmp_path: Path) -> None:
    plot_history(ROWS, str(tmp_path / "log.png"))
    for shape in ((2, 12, 10), (2, 6, 12, 10)):
        panels = {"image": torch.randn(shape), "label": torch.ones(shape, dtype=torch.int64)}
        panels["differ"] = panels["image"] > 0
        save_patches(panels, str(tmp_path / "folder" / f"{len(shape)}.png"), "title", ["case"], {1: "liver"})
    assert all(path.stat().st_size > 1000 for path in tmp_path.rglob("*.png"))
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_plot_explains_its_terms_and_shows_nnunet_for_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    original = figures._draw_history
    monkeypatch.setattr(figures, "_draw_history", lambda *rows: drawn.append(original(*rows)) or drawn[-1])
    rows = [{"epoch": epoch, "mean_fg_dice": 0.5, "mcpc": 0.3, "b": 1.0, "agreement": 0.9} for epoch in range(3)]
    plot_history(rows, str(tmp_path / "log.png"), reference=[0.4, 0.6, 0.7])
    dice, shares, losses, weights = drawn[0].axes
    assert [line.get_ydata()[-1] for line in dice.get_lines()] == [0.5, 0.7]
    labels = [axes.get_legend_handles_labels()[1] for axes in (dice, shares, losses, weights)]
    assert labels[0][1] == "nnU-Net on the same labels"
    assert labels[1:] == [[describe("agreement")], [describe("mcpc")], [describe("b")]]
    assert all(tick == round(tick) for tick in weights.get_xticks())


def test_every_figure_of_a_method_has_words() -> None:
    known = {*WEIGHTS, *LOSSES, *SHARES}
    assert {name for names in FIGURES.values() for name in names} <= known


def test_nnunets_curve_is_that_of_a_training_of_the_same_length(tmp_path: Path) -> None:
    for trainer, dice in (("nnUNetTrainer", [0.1, 0.2]), ("nnUNetTrainer_small", [0.3, 0.4, 0.5])):
        folder = tmp_path / f"{trainer}__nnUNetPlans__2d" / "fold_0"
        folder.mkdir(parents=True)
        checkpoint = {"network_weights": {"w": torch.zeros(1)}, "trainer_name": trainer, "init_args": {}}
        torch.save({**checkpoint, "logging": {"mean_fg_dice": dice}}, folder / "checkpoint_final.pth")
    small = tmp_path / "nnUNetTrainerMICD_small__nnUNetPlans__2d" / "fold_0"
    assert find_reference(small, 3) == [0.3, 0.4, 0.5]
    assert find_reference(small, 2) == [0.1, 0.2]
    assert find_reference(small, 4) == find_reference(small.with_name("fold_1"), 3) == []


def test_photographs_are_drawn_in_their_colors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(2, 3, 12, 10)
    images[:, 2] = 5.0  # blue
    assert torch.equal(image_panel(images, has_colors=False), images[:, 0])
    panel = image_panel(images, has_colors=True)
    assert panel[0, 0, 0].tolist() == [0, 0, 255]
    drawn = []
    original = figures._draw_patches
    monkeypatch.setattr(figures, "_draw_patches", lambda *panels: drawn.append(original(*panels)) or drawn[-1])
    panels = {"image": panel, "label": torch.ones(2, 12, 10, dtype=torch.int64)}
    save_patches(panels, str(tmp_path / "patches.png"), names={1: "cell", 255: "no label"})
    assert drawn[0].axes[0].images[0].get_array().shape == (12, 10, 3)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cell"]


def test_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    panels = {"cost_$5_$6": torch.randn(1, 12, 10), "x$^$y": torch.ones(1, 12, 10, dtype=torch.int64)}
    save_patches(panels, str(tmp_path / "patches.png"), "a_$5_$6", ["cost_$5_$6"], {1: "x$^$y"})
    assert list(tmp_path.iterdir()) == [tmp_path / "patches.png"]


def test_a_picture_that_cannot_be_drawn_does_not_end_a_training(tmp_path: Path) -> None:
    lines: list[str] = []

    def fail() -> dict[str, torch.Tensor]:
        raise ValueError("no\nsuch font")

    monitor = Monitor(lines.append)
    monitor.history = [dict(ROWS[0])]
    assert monitor.write(str(tmp_path), fail) is None
    [line] = lines
    assert line == "The figures of epoch 0 could not be written, the training goes on (ValueError: no such font)"
    assert {path.name for path in tmp_path.iterdir()} == {"semi_supervised.csv", "semi_supervised.png"}


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
