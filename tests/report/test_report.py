"""The report on a results tree that is written here: tiny predictions whose scores are known or computed again."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import seaborn
import SimpleITK as sitk
import tifffile
import torch
from helpers import write_image
from matplotlib import pyplot
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from scipy import ndimage, stats

from nnunetv2_micd.benchmark import records
from nnunetv2_micd.benchmark.records import read_record
from nnunetv2_micd.cli.main import main
from nnunetv2_micd.report import figures, run_scores, write_report
from nnunetv2_micd.report.aggregate import MEAN, mean_over_cases, mean_over_classes, summarize
from nnunetv2_micd.report.collect import collect_runs
from nnunetv2_micd.report.comparisons import compare_all
from nnunetv2_micd.report.examples import choose_examples, draw_examples, read_case
from nnunetv2_micd.report.figures import read_curve
from nnunetv2_micd.report.looks import choose_colors, choose_markers
from nnunetv2_micd.report.plots import (
    draw_budgets,
    draw_cases,
    draw_differences,
    draw_training,
)
from nnunetv2_micd.report.run_scores import load_scores
from nnunetv2_micd.report.runs import FinishedRun, find_classes
from nnunetv2_micd.report.statistics import compare_paired, correct_holm
from nnunetv2_micd.report.texts import find_caveats
from nnunetv2_micd.utils.figures import LABEL_COLORS

NAME = "Dataset902_Report"
METHODS = ("nnUNetTrainer", "nnUNetTrainerMeanTeacher", "nnUNetTrainerMICD")
BUDGETS = {"2": ("a", "b"), "10%": ("a", "b", "c", "d")}
SEEDS = (0, 1)
SHAPE = (6, 20, 18)
SPACING = (0.8, 0.7, 3.0)  # x, y, z
LABELS = {"background": 0, "outer": 1, "inner": 2}


def make_case(seed: int, noise: float = 0.0, noise_seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return two labels, one around the other; noise moves their surfaces."""
    generator = np.random.default_rng(seed)
    places = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1)) - generator.uniform(0.42, 0.58, (3, 1, 1, 1))
    field = ndimage.gaussian_filter(np.random.default_rng([seed, noise_seed]).normal(size=shape), (0.7, 2, 2))
    distance = np.linalg.norm(places, axis=0) + noise * field / field.std()
    return ((distance < 0.34).astype(np.uint8) + (distance < 0.2)).astype(np.uint8)


class Tree:
    """A results folder with finished runs, in which a test spoils what it is about."""

    figures_left: list[int]

    def __init__(self, root: Path, num_cases: int = 4, shape: tuple[int, ...] = SHAPE, seeds: tuple[int, ...] = SEEDS):
        self.root, self.shape = root, shape
        self.cases = [f"case_{number}" for number in range(num_cases)]
        self.truth = root / "labels"
        for folder in ("raw", "preprocessed", "results"):
            (root / folder).mkdir(parents=True)
        for number, case in enumerate(self.cases):
            labels = make_case(number, shape=shape)
            image = 50.0 * labels + np.random.default_rng(number).normal(0, 20, shape)
            write_image(self.truth / f"{case}.nii.gz", labels, SPACING)
            write_image(root / "images" / f"{case}_0000.nii.gz", image.astype(np.float32), SPACING)
        fold = 5
        for budget, labeled in BUDGETS.items():
            for seed in seeds:
                for trainer in METHODS:
                    self.add_run(trainer, budget, seed, labeled, fold)
                fold += 1
        self.add_run("nnUNetTrainer", "all", 0, tuple("abcdefgh"), fold)

    def folder(self, trainer: str, fold: int, configuration: str = "3d_fullres") -> Path:
        return self.root / "results" / NAME / f"{trainer}__nnUNetPlans__{configuration}" / f"fold_{fold}"

    def add_run(
        self,
        trainer: str,
        budget: str,
        seed: int,
        labeled: tuple[str, ...],
        fold: int,
        configuration: str = "3d_fullres",
    ) -> Path:
        folder = self.folder(trainer, fold, configuration)
        folder.mkdir(parents=True)
        plans = {"plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager"}
        (folder.parent / "plans.json").write_text(json.dumps(plans))
        description = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
        (folder.parent / "dataset.json").write_text(json.dumps(description))
        noise = 0.09 / len(labeled) * (1.3 - 0.3 * METHODS.index(trainer))
        for number, case in enumerate(self.cases):
            prediction = make_case(number, noise, 1 + 10 * seed + METHODS.index(trainer), self.shape)
            write_image(folder / "predictions" / f"{case}.nii.gz", prediction, SPACING)
        if trainer == "nnUNetTrainer":
            rising = [0.8 - 0.7 * 0.8**epoch for epoch in range(10)]
            content = {"network_weights": {"w": torch.ones(1)}, "trainer_name": trainer, "init_args": {}}
            torch.save({**content, "logging": {"mean_fg_dice": rising}}, folder / "checkpoint_final.pth")
        else:
            lines = [f"{epoch},{0.85 - 0.7 * 0.75**epoch - 0.02 * seed}" for epoch in range(10)]
            (folder / "semi_supervised.csv").write_text("\n".join(["epoch,mean_fg_dice", *lines]))
        record = {
            "status": "done",
            "error": None,
            "dataset": NAME,
            "configuration": configuration,
            "plans": "nnUNetPlans",
            "trainer": trainer,
            "class": trainer,
            "fold": fold,
            "budget": budget,
            "num_labeled": len(labeled),
            "num_unlabeled": 0 if trainer == "nnUNetTrainer" else 8 - len(labeled),
            "labeled": list(labeled),
            "seed": seed,
            "epochs": 10,
            "iterations": 25,
            "test_images": str(self.root / "images"),
            "test_labels": str(self.truth),
            "predictions": "predictions",
            "truth": str(self.truth),
            "checkpoint": "checkpoint_final.pth",
            "training_seconds": 100.0 * (1 + METHODS.index(trainer)) + seed,
            "prediction_seconds": 4.0,
            "peak_memory_bytes": 2**31,
            "peak_gpu_bytes": None if trainer == "nnUNetTrainer" else 2**30,
            "device": "cpu",
            "machine": "a machine",
            "versions": {"nnunetv2": "2.8.1", "torch": "2.9"},
            "plans_hash": "0123456789abcdef",
            "transductive": False,
        }
        (folder / "benchmark.json").write_text(json.dumps(record))
        return folder

    def change(self, folder: Path, **fields: Any) -> None:
        record = json.loads((folder / "benchmark.json").read_text())
        (folder / "benchmark.json").write_text(json.dumps(record | fields))

    def report(self, **options: Any) -> tuple[Path, list[str]]:
        return write_report(902, self.root / "report", **options)


def set_environment(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(root / folder))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A tree with its report; tests read it only."""
    tree = Tree(tmp_path_factory.mktemp("reported"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_environment(monkeypatch, tree.root)
        before = pyplot.get_fignums()  # those of nnU-Net's plots in other tests
        assert tree.report()[1] == []
    tree.figures_left = sorted({*pyplot.get_fignums()}.difference(before))
    return tree


@pytest.fixture
def tree(reported: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A copy that the test may change; figures are not drawn, as they take seconds."""
    copy = object.__new__(Tree)
    copy.__dict__ = {**reported.__dict__, "root": tmp_path / "tree", "truth": tmp_path / "tree" / "labels"}
    shutil.copytree(reported.root, copy.root, ignore=shutil.ignore_patterns("report"))
    for file in copy.root.glob("results/*/*/*/benchmark.json"):
        copy.change(file.parent, truth=str(copy.truth), test_labels=str(copy.truth))
    set_environment(monkeypatch, copy.root)
    monkeypatch.setattr("nnunetv2_micd.report.writer.draw_all", lambda *_: [])
    return copy


def read_array(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def write_table(tree: Tree, **options: Any) -> pd.DataFrame:
    tree.report(**options)
    return pd.read_csv(tree.root / "report" / "summary.csv").set_index(["budget", "trainer", "class"])


def test_the_table_holds_means_and_deviations_over_the_seeds(reported: Tree) -> None:
    table = pd.read_csv(reported.root / "report" / "summary.csv").set_index(["budget", "trainer", "class"])
    means: dict[str, list[float]] = {"outer": [], "inner": []}
    for fold in (5, 6):
        for name, label in (("outer", 1), ("inner", 2)):
            dice = []
            for case in reported.cases:
                truth = read_array(reported.truth / f"{case}.nii.gz") == label
                folder = reported.folder("nnUNetTrainerMICD", fold)
                prediction = read_array(folder / "predictions" / f"{case}.nii.gz") == label
                dice.append(2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()))
            means[name].append(float(np.mean(dice)))
    for name, values in {**means, MEAN: [np.mean(pair) for pair in zip(*means.values(), strict=True)]}.items():
        row = table.loc[("2", "nnUNetTrainerMICD", name)]
        assert row["dice_mean"] == pytest.approx(np.mean(values))
        assert row["dice_sd"] == pytest.approx(np.std(values, ddof=1))
        assert (row["seeds"], row["num_labeled"]) == (2, 2)
    assert np.isnan(table.loc[("all", "nnUNetTrainer", MEAN), "dice_sd"])
    assert list(dict.fromkeys(table.index.get_level_values("budget"))) == ["2", "10%", "all"]


def test_distances_use_the_spacing_of_the_images(reported: Tree) -> None:
    cases = pd.read_csv(reported.root / "report" / "cases.csv")
    row = cases.iloc[0]
    assert (row["trainer"], row["budget"], row["case"], row["class"]) == ("nnUNetTrainer", "2", "case_0", "outer")
    surfaces = []
    for folder in (reported.truth, reported.folder("nnUNetTrainer", 5) / "predictions"):
        mask = np.pad(read_array(folder / "case_0.nii.gz") == 1, 1)
        surfaces.append(mask & ~ndimage.binary_erosion(mask))
    distances = [
        ndimage.distance_transform_edt(~other, sampling=SPACING[::-1])[one]
        for one, other in (surfaces, reversed(surfaces))
    ]
    assert row["asd"] == pytest.approx(np.concatenate(distances).mean(), rel=1e-5)
    assert row["hd95"] == pytest.approx(max(np.quantile(direction, 0.95) for direction in distances), rel=1e-5)


def test_the_spacing_of_tiffs_lies_beside_the_predictions(tree: Tree) -> None:
    """nnU-Net copies the labels without it."""
    folder = tree.folder("nnUNetTrainerMICD", 5)
    expected = load_scores(load_run(folder), 1.0)
    for labels in (tree.truth, folder / "predictions"):
        for case in tree.cases:
            tifffile.imwrite(labels / f"{case}.tif", read_array(labels / f"{case}.nii.gz"), photometric="minisblack")
    for case in tree.cases:
        (folder / "predictions" / f"{case}.json").write_text(json.dumps({"spacing": SPACING[::-1]}))
    for name, change in (("plans", {"image_reader_writer": "Tiff3DIO"}), ("dataset", {"file_ending": ".tif"})):
        file = folder.parent / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (folder / "scores.csv").unlink()
    pd.testing.assert_frame_equal(load_scores(load_run(folder), 1.0), expected)


def test_results_that_cannot_be_written_to_are_reported(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree.folder("nnUNetTrainerMICD", 5)
    expected = load_scores(load_run(folder), 1.0)
    (folder / "scores.csv").unlink()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(run_scores, "atomic", refuse)
    pd.testing.assert_frame_equal(load_scores(load_run(folder), 1.0), expected)
    assert not (folder / "scores.csv").exists()


def test_figures_of_an_earlier_report_are_removed(tree: Tree) -> None:
    figures = tree.root / "report" / "figures"
    figures.mkdir(parents=True)
    for name in ("differences.png", "mine.png"):
        (figures / name).touch()
    tree.report()  # draws none
    assert [file.name for file in figures.iterdir()] == ["mine.png"]


def test_methods_are_tested_against_nnunet_on_the_same_cases(reported: Tree) -> None:
    cases = pd.read_csv(reported.root / "report" / "cases.csv")
    by_case = cases[cases["budget"] == "2"].groupby(["trainer", "case"])["nsd"].mean()
    difference = (by_case["nnUNetTrainerMICD"] - by_case["nnUNetTrainer"]).to_numpy()
    table = pd.read_csv(reported.root / "report" / "comparisons.csv").set_index(["metric", "budget", "trainer"])
    row = table.loc[("nsd", "2", "nnUNetTrainerMICD")]
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["n"] == len(reported.cases)
    assert len(table) == 4 * 2 * 2  # metrics, budgets, methods; not with all labels
    assert (table["p_holm"] >= table["p"]).all()
    np.testing.assert_allclose(table.loc["nsd"]["p_holm"], correct_holm(table.loc["nsd"]["p"]))


def test_costs(reported: Tree) -> None:
    table = pd.read_csv(reported.root / "report" / "costs.csv").set_index(["budget", "trainer"])
    row = table.loc[("2", "nnUNetTrainerMICD")]
    assert row["training_seconds_mean"] == pytest.approx(300.5)
    assert row["training_seconds_sd"] == pytest.approx(np.std([300, 301], ddof=1))
    assert (row["peak_memory_bytes_max"], row["peak_gpu_bytes_max"]) == (2**31, 2**30)
    assert np.isnan(table.loc[("2", "nnUNetTrainer"), "peak_gpu_bytes_max"])


def test_memory_of_a_training_that_an_earlier_process_ended(tree: Tree) -> None:
    for seed in SEEDS:
        tree.change(tree.folder("nnUNetTrainerMICD", 5 + seed), peak_memory_bytes=None)
    _, notes = tree.report()
    assert notes == []
    costs = pd.read_csv(tree.root / "report" / "costs.csv").set_index(["budget", "trainer"])
    assert np.isnan(costs.loc[("2", "nnUNetTrainerMICD"), "peak_memory_bytes_max"])
    assert costs.loc[("2", "nnUNetTrainer"), "peak_memory_bytes_max"] == 2**31


def test_the_page_needs_no_other_file(reported: Tree) -> None:
    page = (reported.root / "report" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("src=") == 5
    assert not re.search(r"https?://|<link|<script|url\(", page)
    for text in (
        "claimed",
        "has the highest Dice of the methods",
        "Holm",
        "missed",
        "MeanTeacher",
        "MICD",
        "10%",
        "1 mm",
        "diagonal",
    ):
        assert text in page, text


def test_the_markdown_names_the_figures_that_lie_beside_it(reported: Tree) -> None:
    text = (reported.root / "report" / "report.md").read_text()
    files = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(files) == 5
    assert all((reported.root / "report" / file).read_bytes().startswith(b"\x89PNG") for file in files)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_names_of_strangers_do_nothing(tree: Tree) -> None:
    for prediction in tree.root.rglob("case_0.nii.gz"):
        prediction.rename(prediction.with_name("=1+1.nii.gz"))
    folder = tree.folder("nnUNetTrainerMICD", 5)
    tree.change(folder, machine="a machine\n# A heading <script>alert(1)</script> [link](http://a.b)")
    tree.report()
    text = (tree.root / "report" / "report.md").read_text()
    assert "\n# A heading" not in text
    assert "<script" not in text
    assert "&lt;script" in text
    table = pd.read_csv(tree.root / "report" / "cases.csv")
    assert "'=1+1" in set(table["case"])


@pytest.mark.parametrize("field", ["checkpoint", "predictions", "mean_predictions", "dataset"])
def test_a_record_leads_to_no_other_folder(field: str, tree: Tree) -> None:
    folder = tree.folder("nnUNetTrainerMICD", 5)
    of_what = "dataset" if field == "dataset" else "file in the folder of the run"
    for name in ("../other", "/etc/other", "", ".."):
        tree.change(folder, **{field: name})
        with pytest.raises(ValueError, match=f"{field} is .*, which is no name of a {of_what}"):
            read_record(folder)


def test_labels_of_validation_cases_lie_where_nnunet_has_them_now(tree: Tree) -> None:
    """nnUNet_preprocessed was moved, or the results were copied to another machine."""
    for file in tree.root.glob("results/*/*/*/benchmark.json"):
        tree.change(file.parent, test_images=None, test_labels=None, truth="/old/gt_segmentations")
    with pytest.raises(
        FileNotFoundError, match=r"gt_segmentations has no labels of .*; copy them .* labelsTr of the raw"
    ):
        collect_runs(902)
    shutil.copytree(tree.truth, tree.root / "preprocessed" / NAME / "gt_segmentations")
    runs, _, notes = collect_runs(902)
    assert notes == []
    assert len(runs) == 13


def test_labels_of_test_images_may_be_moved(tree: Tree) -> None:
    folder = tree.folder("nnUNetTrainerMICD", 5)
    tree.change(folder, truth="/old/labels", test_labels="/old/labels")
    _, _, [note] = collect_runs(902)
    words = f'/old/labels has no labels of case_0, .*; put them back there, or let "truth" in {folder}.*json name'
    assert re.search(words, note), note
    tree.change(folder, truth=str(tree.truth))
    assert collect_runs(902)[2] == []


def test_empty_masks_are_counted(tree: Tree) -> None:
    truth, folder = tree.truth / "case_0.nii.gz", tree.folder("nnUNetTrainerMICD", 5) / "predictions"
    write_image(truth, np.where(read_array(truth) == 2, 1, read_array(truth)), SPACING)  # no inner one in the truth
    write_image(folder / "case_0.nii.gz", np.ones(SHAPE, np.uint8), SPACING)  # nor in this prediction
    write_image(folder / "case_1.nii.gz", np.zeros(SHAPE, np.uint8), SPACING)

    table = write_table(tree)

    counts = ["missed", "false_alarm", "absent"]
    assert table.loc[("2", "nnUNetTrainerMICD", "inner"), counts].tolist() == [1, 1, 1]  # seed 1 sees an inner one
    assert table.loc[("2", "nnUNetTrainerMICD", MEAN), counts].tolist() == [2, 1, 1]
    assert table.loc[("2", "nnUNetTrainer", "inner"), counts].tolist() == [0, 2, 0]
    assert table.loc[("2", "nnUNetTrainerMICD", "inner"), "masks"] == 2 * len(tree.cases)
    cases = pd.read_csv(tree.root / "report" / "cases.csv").set_index(["budget", "trainer", "seed", "case", "class"])
    missed = cases.loc[("2", "nnUNetTrainerMICD", 0, "case_1", "inner")]
    diagonal = np.linalg.norm(np.multiply(SHAPE, SPACING[::-1]))
    assert missed[["dice", "nsd", "hd95", "asd"]].tolist() == pytest.approx([0, 0, diagonal, diagonal])
    assert cases.loc[("2", "nnUNetTrainerMICD", 0, "case_0", "inner"), ["dice", "hd95"]].isna().all()


def load_run(folder: Path) -> FinishedRun:
    return next(run for run in collect_runs(902)[0] if run.folder == folder)


def test_scores_are_kept_until_something_changes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree.folder("nnUNetTrainerMICD", 5)
    run, calls = load_run(folder), []
    (folder / "scores.csv").unlink()
    original = run_scores.score_case
    monkeypatch.setattr(run_scores, "score_case", lambda *args: calls.append(args) or original(*args))

    def count(tolerance: float = 1.0) -> int:
        calls.clear()
        tables.append(load_scores(run, tolerance))
        return len(calls)

    tables: list[pd.DataFrame] = []
    every = len(tree.cases)
    assert [count(), count()] == [every, 0]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert [count(2.0), count(2.0), count(1.0)] == [every, 0, every]
    soon = (folder / "scores.csv").stat().st_mtime_ns + 1
    os.utime(folder / "predictions" / "case_2.nii.gz", ns=(soon, soon))
    assert [count(), count()] == [every, 0]
    os.utime(folder / "predictions" / "case_2.nii.gz", ns=(5, 5))  # an old file took its place, with its old time
    assert [count(), count()] == [every, 0]
    (folder / "scores.csv").write_text("case,class\n,,,\n")
    assert [count(), count()] == [every, 0]
    assert not list(folder.glob("scores.csv.*"))


@pytest.mark.slow
def test_several_processes_score_the_same(tree: Tree) -> None:
    table = write_table(tree)
    for file in tree.root.glob("results/*/*/*/scores.csv"):
        file.unlink()
    pd.testing.assert_frame_equal(write_table(tree, num_processes=2), table)
    with pytest.raises(ValueError, match="number of processes must be at least 1, not 0"):
        tree.report(num_processes=0)


def spoil_plans(tree: Tree, folder: Path) -> None:
    tree.change(folder, plans_hash="another")


def spoil_length(tree: Tree, folder: Path) -> None:
    tree.change(folder, epochs=3)


def spoil_iterations(tree: Tree, folder: Path) -> None:
    tree.change(folder, iterations=250)


def spoil_cases(tree: Tree, folder: Path) -> None:
    (folder / "predictions" / "case_1.nii.gz").unlink()
    tree.change(folder, test_labels=None)
    shutil.copytree(tree.truth, tree.root / "preprocessed" / NAME / "gt_segmentations")


def spoil_labeled(tree: Tree, folder: Path) -> None:
    tree.change(folder, labeled=["a", "z"])


def spoil_seed(tree: Tree, folder: Path) -> None:
    tree.change(folder, seed=1)


def spoil_folder(tree: Tree, folder: Path) -> None:
    tree.change(folder, test_images="/elsewhere/images")


def spoil_labels(tree: Tree, folder: Path) -> None:
    others = shutil.copytree(tree.truth, tree.root / "others" / "labels")
    tree.change(folder, test_labels=str(others), truth=str(others))


def spoil_settings(tree: Tree, folder: Path) -> None:
    tree.change(folder, config='{"ramp_peak": 3, "new": 1}')
    tree.change(tree.folder("nnUNetTrainerMICD", 6), config='{"ramp_peak": 1, "gone": 2}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_folder, r"test images of the same names in different folders \(/elsewhere/images and .*/images\)"),
        (spoil_labels, r"test labels of the same names in different folders \(.*/others/labels and .*\)"),
        (spoil_settings, r"different settings \(ramp_peak [13] and [13]\)"),
        (spoil_plans, r"different plans \(.*another.*-p"),
        (spoil_length, r"different lengths of training \(3 epochs of 25 .* and 10 epochs of 25 .*--epochs"),
        (
            spoil_iterations,
            r"different lengths of training \(10 epochs of 250 .* and 10 .*; move the runs with one of them",
        ),
        (spoil_cases, r"different test cases \(case_1\)"),
        (spoil_labeled, "different labeled cases"),
        (spoil_seed, "two runs of nnUNetTrainerMICD, 2 labeled, seed 1"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    tree: Tree, spoil: Callable[[Tree, Path], None], message: str
) -> None:
    spoil(tree, tree.folder("nnUNetTrainerMICD", 5))
    with pytest.raises(ValueError, match=message):
        tree.report()


def test_one_of_two_lengths_can_be_chosen(tree: Tree) -> None:
    spoil_length(tree, tree.folder("nnUNetTrainerMICD", 5))
    assert {run.settings.epochs for run in collect_runs(902, epochs=10)[0]} == {10}
    assert len(collect_runs(902, epochs=3)[0]) == 1


def add_longer(tree: Tree, trainer: str, epochs: int, seconds: float) -> Path:
    source = tree.folder(trainer, 5)
    folder = shutil.copytree(
        source, source.parent.with_name(f"{trainer}_e{epochs}__nnUNetPlans__3d_fullres") / "fold_5"
    )
    for name in ("plans.json", "dataset.json"):
        shutil.copy(source.parent / name, folder.parent)
    tree.change(folder, epochs=epochs, training_seconds=seconds)
    return folder


def test_methods_are_compared_with_a_baseline_of_their_time(tree: Tree) -> None:
    perfect = add_longer(tree, "nnUNetTrainer", 30, 310.0)  # MICD: 300.5 seconds, Mean Teacher 200.5
    for case in tree.cases:
        shutil.copy(tree.truth / f"{case}.nii.gz", perfect / "predictions")
    add_longer(tree, "nnUNetTrainer", 15, 150.0)
    page, _ = tree.report()
    table = pd.read_csv(tree.root / "report" / "equal_time.csv", dtype={"budget": str}).set_index(["budget", "trainer"])
    assert set(table.index) == {("2", "nnUNetTrainerMICD"), ("2", "nnUNetTrainerMeanTeacher")}
    assert set(table["opponent"]) == {"nnUNetTrainer, 30 epochs"}
    row = table.loc[("2", "nnUNetTrainerMICD")]
    assert (row["training_seconds"], row["opponent_seconds"], row["opponent_dice"]) == (300.5, 310, 1)
    assert row["seeds"] == 1
    cases = mean_over_classes(pd.read_csv(tree.root / "report" / "cases.csv"))
    dice = cases[(cases["trainer"] == "nnUNetTrainerMICD") & (cases["budget"] == "2") & (cases["seed"] == 0)]["dice"]
    assert row["difference"] == pytest.approx((dice - 1).mean())
    summary = pd.read_csv(tree.root / "report" / "summary.csv")
    assert set(summary["trainer"]) == set(METHODS)
    assert "Against longer trainings of nnU-Net and the best control" in page.read_text()
    assert [run.settings.epochs for run in collect_runs(902, epochs=10)[1]] == [15, 30]


def test_methods_are_compared_with_a_control_of_their_time(tree: Tree) -> None:
    for seed_folder in (5, 6):
        tree.change(tree.folder("nnUNetTrainerMeanTeacher", seed_folder), num_unlabeled=0)
    longer = add_longer(tree, "nnUNetTrainerMeanTeacher", 30, 310.0)
    for case in tree.cases:
        shutil.copy(tree.truth / f"{case}.nii.gz", longer / "predictions")
    page, _ = tree.report()
    [row] = pd.read_csv(tree.root / "report" / "equal_time.csv").to_dict("records")
    assert row["trainer"] == "nnUNetTrainerMICD"
    assert row["opponent"] == "nnUNetTrainerMeanTeacher, 30 epochs (control)"
    assert (row["opponent_seconds"], row["opponent_dice"], row["difference"] < 0) == (310, 1, True)
    assert "MeanTeacher, 30 epochs (control)" in page.read_text().replace("<wbr>", "")
    against_control = pd.read_csv(tree.root / "report" / "against_control.csv")
    assert set(against_control["control"]) == {"nnUNetTrainerMeanTeacher (control)"}


def test_unlabeled_images_that_came_between_two_runs_are_noted(tree: Tree) -> None:
    runs, _, _ = collect_runs(902)
    assert not any("came or went" in note for note in find_caveats(runs, {}))
    [more] = [run for run in runs if run.folder == tree.folder("nnUNetTrainerMICD", 6)]
    tree.change(more.folder, num_unlabeled=more.settings.num_unlabeled + 40)
    few = len(more.settings.labeled) + more.settings.num_unlabeled
    assert any(f"learned from {few} or {few + 40} images" in note for note in find_caveats(collect_runs(902)[0], {}))


def test_without_a_baseline_of_a_method_s_time_the_longest_is_taken(tree: Tree) -> None:
    add_longer(tree, "nnUNetTrainer", 15, 150.0)
    tree.report()
    table = pd.read_csv(tree.root / "report" / "equal_time.csv")
    assert set(table["opponent_seconds"]) == {150}


def test_a_baseline_of_another_name(tree: Tree) -> None:
    for folder in tree.root.glob("results/*/*/fold_*"):
        record = json.loads((folder / "benchmark.json").read_text())
        tree.change(folder, trainer=record["trainer"] + "_250epochs")
    tree.change(tree.folder("nnUNetTrainer", 5), trainer="nnUNetTrainer")
    runs, _, notes = collect_runs(902, baseline="nnUNetTrainer_250epochs")
    assert {run.trainer for run in runs} == set(METHODS)
    assert "the baseline is nnUNetTrainer_250epochs" in notes[0]


def add_copy(tree: Tree, trained_class: str, fold: int, **fields: Any) -> Path:
    """Add a run that is like the MICD of a fold but for these fields of its record."""
    source = tree.folder("nnUNetTrainerMICD", fold)
    folder = shutil.copytree(source, tree.folder(trained_class, fold))
    for name in ("plans.json", "dataset.json"):
        shutil.copy(source.parent / name, folder.parent)
    tree.change(folder, **fields)
    return folder


def test_runs_that_tune_are_in_no_report(tree: Tree) -> None:
    for folder in (tree.folder("nnUNetTrainerMICD", 5), tree.add_run("nnUNetTrainer", "2", 0, ("a", "b"), 20, "2d")):
        tree.change(folder, is_tuning=True, status="running")
    runs, _, notes = collect_runs(902)
    assert notes == []
    assert len(runs) == 12
    for record in (tree.root / "results" / NAME).glob("*/fold_*/benchmark.json"):
        tree.change(record.parent, is_tuning=True)
    with pytest.raises(FileNotFoundError, match=r"no finished runs of Dataset902_Report in [^(]*; make some"):
        collect_runs(902)


def test_a_report_of_which_no_run_can_be_scored(tree: Tree) -> None:
    for file in tree.truth.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"is left out: Case case_0 of .* cannot be read"):
        tree.report()


def test_patients_are_independent_and_their_cases_are_not(tree: Tree) -> None:
    groups = {"case_0": "patient_a", "case_1": "patient_a", "case_2": "patient_b"}
    (tree.root / "raw" / NAME).mkdir()
    (tree.root / "raw" / NAME / "groups.json").write_text(json.dumps(groups))
    page, notes = tree.report()
    assert [note for note in notes if "no group (case_3)" in note]
    cases = pd.read_csv(tree.root / "report" / "cases.csv")
    assert dict(zip(cases["case"], cases["group"], strict=True)) == groups | {"case_3": "case_3"}
    assert set(pd.read_csv(tree.root / "report" / "comparisons.csv")["n"]) == {3}
    (tree.root / "raw" / NAME / "groups.json").write_text(json.dumps(groups | {"case_3": "patient_b"}))
    page, notes = tree.report()
    assert notes == []
    assert "4 of 2 groups" in page.read_text()


def test_a_tuned_weight_has_rows_beside_the_published_one(tree: Tree) -> None:
    for fold in (5, 6):
        add_copy(tree, "nnUNetTrainerMICD_w3", fold, trainer="nnUNetTrainerMICD", weight="3")
    page, notes = tree.report()
    assert notes == []
    tuned = "nnUNetTrainerMICD, tuned (weight x 3)"
    summary = pd.read_csv(tree.root / "report" / "summary.csv")
    both = summary[(summary["budget"] == "2") & summary["trainer"].str.contains("MICD")]
    assert set(both["trainer"]) == {"nnUNetTrainerMICD", tuned}
    assert both.groupby("class")["dice_mean"].nunique().eq(1).all()
    for name in ("comparisons", "against_control", "equal_time", "best_against_others"):
        table = pd.read_csv(tree.root / "report" / f"{name}.csv")  # it has used more labels, so it is not tested
        assert tuned not in set(table["trainer"])
    assert ">MICD, tuned (weight x 3)</td>" in page.read_text()


def add_mean(tree: Tree, folder: Path, seconds: float | None = 8.5) -> None:
    """Add predictions of the mean of both networks, which are perfect."""
    for case in tree.cases:
        (folder / "mean").mkdir(exist_ok=True)
        shutil.copy(tree.truth / f"{case}.nii.gz", folder / "mean")
    tree.change(folder, mean_predictions="mean", mean_prediction_seconds=seconds)


def test_the_mean_of_both_networks_is_a_row(tree: Tree) -> None:
    folder, name = tree.folder("nnUNetTrainerMICD", 5), "nnUNetTrainerMICD, mean of both networks"
    add_mean(tree, folder)
    before = write_table(tree)
    assert before.loc[("2", name, MEAN), "dice_mean"] == 1 > before.loc[("2", "nnUNetTrainerMICD", MEAN), "dice_mean"]
    assert (folder / "scores_mean.csv").is_file()
    pd.testing.assert_frame_equal(write_table(tree), before)  # from both caches
    costs = pd.read_csv(tree.root / "report" / "costs.csv").set_index(["budget", "trainer"])
    assert costs.loc[("2", name), ["training_seconds_mean", "prediction_seconds_mean"]].tolist() == [300, 8.5]
    assert costs.loc[("2", "nnUNetTrainerMICD"), "prediction_seconds_mean"] == 4
    comparisons = pd.read_csv(tree.root / "report" / "comparisons.csv").set_index(["metric", "trainer"])
    assert comparisons.loc[("dice", name), "seeds"] == 1
    assert "- Runs: 13\n" in (tree.root / "report" / "report.md").read_text()


def test_damaged_predictions_of_both_networks_leave_out_only_their_row(tree: Tree) -> None:
    folder = tree.folder("nnUNetTrainerMICD", 5)
    add_mean(tree, folder)
    (folder / "mean" / "case_0.nii.gz").unlink()
    runs, _, notes = collect_runs(902)
    assert len(runs) == 13
    assert re.search(r"fold_5, mean of both networks is left out: there are no predictions of case_0", notes[0])
    add_mean(tree, folder, seconds=None)
    assert "prediction_seconds is missing" in collect_runs(902)[2][0]


def test_a_control_comes_after_the_baseline_and_is_marked(tree: Tree) -> None:
    for fold in (5, 6):
        add_copy(tree, "nnUNetTrainerZ", fold, trainer="nnUNetTrainerZ", num_unlabeled=0)
    page, _ = tree.report()
    table = pd.read_csv(tree.root / "report" / "summary.csv")
    order = ["nnUNetTrainer", "nnUNetTrainerZ (control)", "nnUNetTrainerMeanTeacher", "nnUNetTrainerMICD"]
    assert list(dict.fromkeys(table.loc[table["budget"] == "2", "trainer"])) == order
    assert ">Z (control)</td>" in page.read_text()
    against = pd.read_csv(tree.root / "report" / "against_control.csv", dtype={"budget": str})
    assert set(zip(against["budget"], against["trainer"], against["control"], strict=True)) == {
        ("2", "nnUNetTrainerMICD", "nnUNetTrainerZ (control)"),
        ("2", "nnUNetTrainerMeanTeacher", "nnUNetTrainerZ (control)"),
    }
    others = pd.read_csv(tree.root / "report" / "best_against_others.csv")
    assert len(others) == 3  # two with two labeled cases, one with four
    for title in ("Against the best control", "The best method against the others"):
        assert f"<h2>{title}</h2>" in page.read_text()


def damage_json(tree: Tree, folder: Path) -> None:
    (folder / "benchmark.json").write_text('{"status": "do')


def damage_list(tree: Tree, folder: Path) -> None:
    (folder / "benchmark.json").write_text("[]")


def damage_field(tree: Tree, folder: Path) -> None:
    tree.change(folder, seed="zero")


def damage_image(tree: Tree, folder: Path) -> None:
    (folder / "predictions" / "case_1.nii.gz").write_bytes(b"no image")


def damage_shape(tree: Tree, folder: Path) -> None:
    write_image(folder / "predictions" / "case_1.nii.gz", np.zeros((3, 4, 5), np.uint8), SPACING)


def damage_prediction(tree: Tree, folder: Path) -> None:
    (folder / "predictions" / "case_1.nii.gz").unlink()


def damage_folder(tree: Tree, folder: Path) -> None:
    shutil.rmtree(folder / "predictions")


def fail(tree: Tree, folder: Path) -> None:
    tree.change(folder, status="failed", error="CUDA out of memory", training_seconds=None)


def interrupt(tree: Tree, folder: Path) -> None:
    tree.change(folder, status="running", training_seconds=None)


def train_again(tree: Tree, folder: Path) -> None:
    times = {"epoch_start_timestamps": [0.0, 60.0], "epoch_end_timestamps": [50.0, 110.5]}
    content = {"network_weights": {"w": torch.ones(1)}, "trainer_name": "T", "init_args": {}, "logging": times}
    torch.save(content, folder / "checkpoint_final.pth")
    tree.change(folder, training_seconds=100.5)
    assert collect_runs(902)[2] == []
    times["epoch_end_timestamps"][1] += 1
    torch.save(content, folder / "checkpoint_final.pth")


def test_a_checkpoint_that_may_not_be_read_is_no_reason_to_leave_out_its_run(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(records, "epoch_times", refuse)
    assert collect_runs(902)[2] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (train_again, "it was trained again after the benchmark; move .*fold_5 elsewhere"),
        (damage_json, "benchmark.json is damaged"),
        (damage_list, "benchmark.json is damaged"),
        (damage_field, r"benchmark.json is damaged \(seed is 'zero'\); delete the folder .*fold_5 to repeat this run"),
        (
            damage_image,
            "case_1 of nnUNetTrainerMICD, 2 labeled, seed 0 cannot be read .*; run it again, or restore its label",
        ),
        (damage_shape, r"case_1 of .*\(3, 4, 5\)"),
        (damage_prediction, "no predictions of case_1"),
        (damage_folder, "predictions"),
        (fail, "it failed: CUDA out of memory"),
        (interrupt, "still running, or interrupted"),
    ],
)
def test_a_run_that_is_of_no_use_is_left_out_and_named(
    tree: Tree, damage: Callable[[Tree, Path], None], message: str
) -> None:
    damage(tree, tree.folder("nnUNetTrainerMICD", 5))

    page, notes = tree.report()

    assert re.search(f"nnUNetTrainerMICD__nnUNetPlans__3d_fullres/fold_5 is left out: .*{message}", notes[0])
    assert notes[1:] == ["MICD has no run with 2 labeled and seed 0; other methods have."]
    assert "fold_5 is left out" in page.read_text()
    table = pd.read_csv(tree.root / "report" / "comparisons.csv").set_index(["budget", "trainer"])
    assert table.loc[("2", "nnUNetTrainerMICD"), "seeds"].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plans.json", "{}"),
        ("plans.json", "[" * 100_000),
        ("dataset.json", "[]"),
        ("dataset.json", '{"file_ending": ".nii.gz", "labels": 5}'),
    ],
)
def test_a_trainer_with_damaged_plans_is_left_out_and_named(name: str, content: str, tree: Tree) -> None:
    (tree.folder("nnUNetTrainerMICD", 5).parent / name).write_text(content)
    _, notes = tree.report()
    for fold, note in zip((5, 6), notes, strict=False):
        reason = r"plans.json or dataset.json in .* is not as nnU-Net writes it \(.*\); restore it"
        assert re.fullmatch(f"nnUNetTrainerMICD__nnUNetPlans__3d_fullres/fold_{fold} is left out: {reason}", note)


def test_without_runs_the_benchmark_is_named(tree: Tree) -> None:
    shutil.rmtree(tree.root / "results" / NAME)
    (tree.root / "preprocessed" / NAME).mkdir()
    with pytest.raises(SystemExit, match=r"error: There are no finished runs.*nnUNetv2_micd benchmark -d 902"):
        main(["report", "-d", "902", "-o", str(tree.root / "report")])


def test_of_several_configurations_one_is_chosen(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.add_run("nnUNetTrainer", "2", 0, ("a", "b"), 5, "2d")
    with pytest.raises(ValueError, match="runs of 2d and 3d_fullres; choose one with -c"):
        tree.report()
    main(["report", "-d", "902", "-o", str(tree.root / "report"), "-c", "2d", "--tolerance", "2"])
    assert "report.html" in capsys.readouterr().out
    with (tree.root / "report" / "cases.csv").open() as file:
        assert {row["tolerance"] for row in csv.DictReader(file)} == {"2.0"}


@pytest.mark.parametrize("tolerance", [0, -1, float("nan")])
def test_a_tolerance_that_is_none_is_refused(tree: Tree, tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        tree.report(tolerance=tolerance)


def test_caveats_are_named(tree: Tree) -> None:
    first, second = (tree.folder("nnUNetTrainerMICD", fold) for fold in (5, 6))
    tree.change(first, transductive=True, machine="another")
    tree.change(second, versions={"nnunetv2": "2.8.1", "torch": "2.8"})
    page, notes = tree.report()
    assert notes == [
        "Transductive: test images were among the unlabeled images of MICD, marked with †.",
        "The runs come from several machines or devices: their times and memory are not comparable.",
        "The runs were made with several versions of torch: 2.8, 2.9.",
    ]
    assert ">MICD †</td>" in page.read_text()
    runs = [run for run in collect_runs(902)[0] if run.trainer != "nnUNetTrainer"]
    assert "nothing to test the methods against" in find_caveats(runs, {})[-1]


def test_times_of_a_busy_machine_are_doubted(tree: Tree) -> None:
    runs = collect_runs(902)[0]
    assert find_caveats(runs, {}) == []
    slow = [replace(runs[0], result=replace(runs[0].result, training_seconds=1000.0)), *runs[1:]]
    (note,) = find_caveats(slow, {})
    assert re.match(r"An epoch of .* took .* to 100 s, as if the machine had done other work", note)


def test_reconstructions_are_named(tree: Tree) -> None:
    runs = collect_runs(902)[0]
    others = [replace(run, settings=replace(run.settings, trainer="nnUNetTrainerTransMedSeg")) for run in runs]
    (note,) = find_caveats([*runs, *others], {})
    assert note.startswith("Reconstructions, because their authors published no code: TransMedSeg. Their figures")


def test_regions_and_the_ignore_label_are_those_of_nnunet(tree: Tree) -> None:
    folder = tree.folder("nnUNetTrainerMICD", 5)
    description = json.loads((folder.parent / "dataset.json").read_text())
    description["labels"] = {"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3}
    description["regions_class_order"] = [1, 2]
    (folder.parent / "dataset.json").write_text(json.dumps(description))
    truth = tree.truth / "case_0.nii.gz"
    labels = read_array(truth)
    labels[:, :, 10:] = 3
    write_image(truth, labels, SPACING)
    prediction = np.where(labels == 3, 2, labels).astype(np.uint8)
    prediction[prediction == 1] = 2
    write_image(folder / "predictions" / "case_0.nii.gz", prediction, SPACING)
    run = load_run(folder)

    table = load_scores(run, 1.0).set_index(["case", "class"])

    assert find_classes(run) == {"whole": (1, 2), "inner": (2,)}
    assert table.loc[("case_0", "whole"), "dice"] == 1
    inner = 2 * (labels == 2).sum() / ((labels == 2).sum() + np.isin(labels, (1, 2)).sum())
    assert table.loc[("case_0", "inner"), "dice"] == pytest.approx(inner)


def test_curves_come_from_the_csv_or_the_checkpoint(tree: Tree) -> None:
    stock, ours = load_run(tree.folder("nnUNetTrainer", 5)), load_run(tree.folder("nnUNetTrainerMICD", 5))
    assert read_curve(stock).tolist() == pytest.approx([0.8 - 0.7 * 0.8**epoch for epoch in range(10)])
    assert read_curve(ours).iloc[-1] == pytest.approx(0.85 - 0.7 * 0.75**9)
    (stock.folder / "checkpoint_final.pth").write_bytes(b"cut off")
    assert read_curve(stock) is None


def make_scores(values: dict[tuple[str, int, str, str], float]) -> pd.DataFrame:
    rows = [
        {"trainer": trainer, "budget": "2", "num_labeled": 2, "seed": seed, "case": case, "class": name}
        | {
            "group": case,
            "dice": dice,
            "nsd": dice,
            "hd95": 1 - dice,
            "asd": 1 - dice,
            "outcome": "scored" if dice >= 0 else "absent",
        }
        for (trainer, seed, case, name), dice in values.items()
    ]
    return pd.DataFrame(rows)


def test_the_mean_over_classes_weighs_a_rare_class_like_any_other() -> None:
    """As nnU-Net's foreground mean does."""
    scores = make_scores(
        {("m", 0, "x", "a"): 0.8, ("m", 0, "x", "b"): np.nan, ("m", 0, "y", "a"): 0.6, ("m", 0, "y", "b"): 0.1}
    )
    table = mean_over_cases(scores).set_index("class")["dice"]
    assert table.to_dict() == pytest.approx({"a": 0.7, "b": 0.1, MEAN: 0.4})
    assert summarize(scores).set_index("class")["absent"].to_dict() == {"a": 0, "b": 1, MEAN: 1}


def test_a_false_alarm_does_not_weigh_as_much_as_a_class() -> None:
    """Class b is in no truth: the method with one false alarm is better, as the tests say, and has the higher mean."""
    scores = make_scores(
        {("ours", 0, case, "a"): 0.8 for case in "wxyz"}
        | {("other", 0, case, "a"): 0.7 for case in "wxyz"}
        | {(name, 0, case, "b"): np.nan for name in ("ours", "other") for case in "wxyz"}
    )
    alarm = (scores["trainer"] == "ours") & (scores["case"] == "w") & (scores["class"] == "b")
    scores.loc[alarm, ["dice", "nsd", "outcome"]] = [0.0, 0.0, "false alarm"]
    means = mean_over_cases(scores).set_index(["trainer", "class"])["dice"]
    assert means["ours", "b"] == 0
    assert (means["ours", MEAN], means["other", MEAN]) == pytest.approx((0.8, 0.7))
    assert summarize(scores).set_index(["trainer", "class"])["false_alarm"]["ours", MEAN] == 1


def test_only_common_seeds_are_paired() -> None:
    stock, ours = "nnUNetTrainer", "nnUNetTrainerMICD"
    scores = make_scores(
        {(stock, 0, case, "a"): 0.5 for case in "wxyz"}
        | {(stock, 1, case, "a"): 0.0 for case in "wxyz"}
        | {(ours, 0, case, "a"): dice for case, dice in zip("wxyz", (0.6, 0.8, 0.6, 1.0), strict=True)}
    )
    row = compare_all(scores).set_index("metric").loc["dice"]
    assert (row["seeds"], row["n"]) == (1, 4)
    assert row["difference"] == pytest.approx(1.0 / 4)


def test_an_invented_class_counts_against_the_method_that_invented_it() -> None:
    """Class b is in no truth. nnU-Net rightly leaves it out, the method finds it in one of three cases."""
    stock, ours = "nnUNetTrainer", "nnUNetTrainerMICD"
    scores = make_scores(
        {(trainer, 0, case, "a"): 0.5 for trainer in (stock, ours) for case in "xyz"}
        | {(stock, 0, case, "b"): np.nan for case in "xyz"}
        | {(ours, 0, case, "b"): dice for case, dice in zip("xyz", (0.0, np.nan, np.nan), strict=True)}
    )
    row = compare_all(scores).set_index("metric").loc["dice"]
    assert row["n"] == 3
    assert row["difference"] == pytest.approx(-0.5 / 3)


def test_cases_of_a_group_count_as_one() -> None:
    """The cases w and x are of one patient, which has one difference: that of its only case that both have."""
    values = {("nnUNetTrainer", case): 0.5 for case in "wxyz"} | {
        ("nnUNetTrainerMICD", case): dice for case, dice in zip("wxyz", (0.6, 0.8, 0.6, 0.4), strict=True)
    }
    scores = make_scores({(trainer, 0, case, "a"): dice for (trainer, case), dice in values.items()})
    row = compare_all(scores.replace({"group": {"x": "w"}})).set_index("metric").loc["dice"]
    assert row["n"] == 3
    expected = compare_paired([0.2, 0.1, -0.1])
    assert row[["difference", "low", "high", "p"]].tolist() == pytest.approx(
        [expected.difference, expected.low, expected.high, expected.p]
    )


def test_paired_comparison_of_known_values() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.5, 1, size=200)
    result = compare_paired(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert (result.low, result.high) == (pytest.approx(expected.low, abs=0.01), pytest.approx(expected.high, abs=0.01))
    assert result.p == pytest.approx(stats.wilcoxon(values).pvalue)
    few = [0.1, 0.2, 0.6]
    assert (compare_paired(few).low, compare_paired(few).high) == (pytest.approx(0.1), pytest.approx(0.6))
    same = compare_paired([0.0, 0.0, 0.0])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert [compare_paired(few).n for few in ([], [0.1])] == [0, 1]
    assert np.isnan([compare_paired([0.1]).low, compare_paired([0.1]).p, compare_paired([]).difference]).all()


def test_holm() -> None:
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm([0.9, 0.8]) == pytest.approx([1, 1])
    np.testing.assert_allclose(correct_holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
    assert len(correct_holm([])) == 0


def test_longer_baselines_alone_are_no_report(tree: Tree) -> None:
    longer = add_longer(tree, "nnUNetTrainer", 30, 310.0)
    for record in (tree.root / "results" / NAME).glob("*/fold_*/benchmark.json"):
        if record.parent != longer:
            damage_image(tree, record.parent)
    with pytest.raises(SystemExit, match=r"error: .* is left out: Case case_1 of .* cannot be read"):
        main(["report", "-d", "902", "-o", str(tree.root / "report")])
    assert not (tree.root / "report").exists()


def test_no_two_methods_look_alike() -> None:
    trainers = ["nnUNetTrainer", *(f"{place} (control)" for place in range(9)), *map(str, range(40))]
    colors, markers = choose_colors(trainers), choose_markers(trainers)
    assert len({(colors[trainer], markers[trainer]) for trainer in trainers}) == len(trainers) == 50
    for one, other in pairwise(trainers):
        assert colors[one] != colors[other]
    for trainer in trainers[:10]:
        red, green, blue = to_rgb(colors[trainer])
        assert red == green == blue, trainer
    assert choose_colors(trainers[:20]) == {trainer: colors[trainer] for trainer in trainers[:20]}


def make_many(budgets: tuple[str, ...]) -> tuple[pd.DataFrame, list[str]]:
    """Return scores of nnU-Net, a control and two methods on these budgets, the second method better in all cases."""
    trainers = [
        "nnUNetTrainer",
        "nnUNetTrainerEMA (control)",
        "nnUNetTrainerA",
        "nnUNetTrainerB, mean of both networks",
    ]
    noise = np.random.default_rng(0).normal(0, 0.01, (len(trainers), 20))
    scores = make_scores(
        {
            (trainer, 0, str(case), "a"): 0.7 + 0.1 * (number == 3) + noise[number, case]
            for number, trainer in enumerate(trainers)
            for case in range(20)
        }
    )
    return pd.concat([scores.assign(budget=budget) for budget in budgets], ignore_index=True), trainers


def test_differences_to_nnunet_are_drawn_with_their_intervals() -> None:
    scores, trainers = make_many(("2", "5", "9"))
    comparisons = compare_all(scores)
    figure = draw_differences(comparisons, trainers)
    assert figure is not None
    assert [panel.get_title() for panel in figure.axes] == [f"{number} labeled" for number in (2, 5, 9)]
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()][-1] == "B, mean of both networks"
    row = comparisons[comparisons["trainer"] == trainers[-1]].iloc[0]
    line, _, (bar,) = panel.containers[-1]
    assert line.get_xdata() == pytest.approx([100 * row["difference"]])
    assert bar.get_segments()[0][:, 0] == pytest.approx([100 * row["low"], 100 * row["high"]])
    fillings = [container[0].get_markerfacecolor() for container in panel.containers]
    assert [filling == "white" for filling in fillings] == [True, True, False]
    assert draw_differences(comparisons.iloc[:0], trainers) is None


def test_with_one_budget_the_methods_are_named_on_the_axis() -> None:
    scores, trainers = make_many(("2",))
    figure = draw_budgets(mean_over_cases(scores), trainers)
    assert figure is not None
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert set(names) == {"nnU-Net", "EMA (control)", "A", "B, mean of both networks"}
    assert names[-1] == "B, mean of both networks"


def test_with_several_budgets_nnunet_is_a_thick_line() -> None:
    scores, trainers = make_many(("2", "5"))
    figure = draw_budgets(mean_over_cases(scores), trainers)
    assert figure is not None
    widths = [container[0].get_linewidth() for container in figure.axes[0].containers]
    assert widths[0] > 2 * max(widths[1:])


def test_the_examples_name_the_classes(reported: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, reported.root)
    runs = collect_runs(902)[0]
    scores = pd.read_csv(reported.root / "report" / "cases.csv")
    examples = choose_examples(runs, mean_over_classes(scores))
    assert examples is not None
    (legend,) = draw_examples(examples).legends
    assert [text.get_text() for text in legend.get_texts()] == ["outer", "inner"]
    colors = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert colors == list(LABEL_COLORS[:2])


def test_examples_show_what_is_wrong_far_from_the_truth(tree: Tree) -> None:
    runs = [run for run in collect_runs(902)[0] if run.settings.fold == 5]
    case = runs[0].cases[0]
    prediction = read_array(runs[-1].prediction_file(case))
    prediction[:, 0, 0] = prediction[:, -1, -1] = 2
    write_image(runs[-1].prediction_file(case), prediction, SPACING)
    image, (truth, *_, last), _ = read_case(runs, case)
    assert last[0, 0] == last[-1, -1] == 2
    assert image.shape == truth.shape == last.shape == prediction.shape[1:]


def test_the_rows_of_examples_are_equally_long(reported: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, reported.root)
    monkeypatch.setattr("nnunetv2_micd.report.examples.MAX_COLUMNS", 4)
    scores = pd.read_csv(reported.root / "report" / "cases.csv")
    examples = choose_examples(collect_runs(902)[0], mean_over_classes(scores))
    assert examples is not None
    assert len(examples.runs) == 3
    figure = draw_examples(examples)
    assert figure.axes[0].get_subplotspec().get_gridspec().ncols == 3  # five panels: 3 and 2, not 4 and 1
    assert sum(bool(panel.get_images()) for panel in figure.axes) == 5 * len(examples.dice)


def test_the_fonts_of_nnunets_plot_reach_no_figure(
    reported: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fonts = []

    class Recorded(Figure):
        def savefig(self, *_: Any, **__: Any) -> None:
            fonts.append((matplotlib.rcParams["legend.fontsize"], matplotlib.rcParams["xtick.labelsize"]))

    for name in ("budgets", "times", "cases", "training"):
        monkeypatch.setattr(figures, f"draw_{name}", lambda *_: None)
    monkeypatch.setattr(figures, "choose_examples", lambda *_: None)
    monkeypatch.setattr(figures, "draw_differences", lambda *_: Recorded())
    set_environment(monkeypatch, reported.root)
    scores, nothing = pd.read_csv(reported.root / "report" / "cases.csv"), pd.DataFrame()
    runs = collect_runs(902)[0]
    figures.draw_all(runs, scores, nothing, nothing, tmp_path)
    with matplotlib.rc_context():
        seaborn.set_theme(font_scale=2.5)  # as nnU-Net's plot of a training does, and leaves it so
        figures.draw_all(runs, scores, nothing, nothing, tmp_path)
    assert fonts[0] == fonts[1]


def test_a_training_of_one_epoch_is_a_point(tree: Tree) -> None:
    run = collect_runs(902)[0][0]
    figure = draw_training([(run, pd.Series([0.5]))], [run.trainer])
    assert figure is not None
    marked = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "", None)]
    assert [50] in [list(line.get_ydata()) for line in marked]
    assert all(float(place).is_integer() for place in figure.axes[0].get_xticks())


def test_no_figure_stays_in_memory(reported: Tree) -> None:
    assert reported.figures_left == []


def test_cases_are_drawn_over_the_seeds_that_both_have() -> None:
    """nnU-Net is much better with the second seed, which the method does not have."""
    rows = [("nnUNetTrainer", 0, 0.5), ("nnUNetTrainer", 1, 0.9), ("nnUNetTrainerMICD", 0, 0.6)]
    scores = make_scores({(name, seed, "x", "a"): dice for name, seed, dice in rows})
    figure = draw_cases(scores, ["nnUNetTrainer", "nnUNetTrainerMICD"])
    assert figure is not None
    assert "1 better, 0 worse" in figure.axes[0].get_title()
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), [[50, 60]])


def test_false_alarms_are_drawn_as_they_are_tested() -> None:
    """In case y there is nothing to find. nnU-Net finds nothing, and the method something."""
    stock, ours = "nnUNetTrainer", "nnUNetTrainerMICD"
    dice = {(stock, "x"): 0.5, (ours, "x"): 0.6, (stock, "y"): np.nan, (ours, "y"): 0.0}
    figure = draw_cases(make_scores({(name, 0, case, "a"): one for (name, case), one in dice.items()}), [stock, ours])
    assert figure is not None
    assert "1 better, 1 worse" in figure.axes[0].get_title()
