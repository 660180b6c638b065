"""The figures of the report: which there are, with their captions, and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import pyplot

from nnunetv2_micd.benchmark.records import ALL_LABELS
from nnunetv2_micd.report.aggregate import mean_over_cases, mean_over_classes
from nnunetv2_micd.report.examples import choose_examples, draw_examples
from nnunetv2_micd.report.looks import STYLE
from nnunetv2_micd.report.plots import draw_budgets, draw_cases, draw_differences, draw_times, draw_training
from nnunetv2_micd.report.runs import FinishedRun
from nnunetv2_micd.utils.checkpoint_files import read_checkpoint
from nnunetv2_micd.utils.figures import default_style

RESOLUTION = 150


FIGURES = (
    *("differences.png", "dice_over_labels.png", "dice_over_time.png"),
    *("cases.png", "training.png", "examples.png"),
)
"""Files of all figures."""


@dataclass(frozen=True)
class Picture:
    """A figure on disk and its texts.

    Attributes:
        title: The title.
        caption: What the figure shows.
        file: The PNG.
        width: Width in inches. A page that uses it shows the letters of all figures in the same size.
    """

    title: str
    caption: str
    file: Path
    width: float


def draw_all(
    runs: Sequence[FinishedRun],
    scores: pd.DataFrame,
    costs: pd.DataFrame,
    comparisons: pd.DataFrame,
    folder: Path,
) -> list[Picture]:
    """Draw every figure for which there is data.

    Args:
        runs: The runs in the order of the legends.
        scores: Scores of all cases of all runs, and of the longer runs of baseline and controls.
        costs: Costs of the same runs, see `aggregate.collect_costs`.
        comparisons: Comparisons with the baseline, see `comparisons.compare_all`.
        folder: Folder for the PNGs; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainers = list(dict.fromkeys(run.trainer for run in runs))
    usual_scores = scores[scores["trainer"].isin(trainers)]
    by_case = mean_over_classes(usual_scores)
    examples = choose_examples(runs, by_case)
    has_one_budget = len({run.settings.budget for run in runs} - {ALL_LABELS}) == 1
    with default_style(), matplotlib.rc_context(STYLE):
        figures = [
            (
                "Difference to nnU-Net",
                "differences.png",
                "Mean difference of the Dice to nnU-Net with the same labels, in points, with its 95 % interval. A "
                "filled marker is a significant difference (p with Holm's correction below 0.05). Controls, which used "
                "no unlabeled images, are gray.",
                draw_differences(comparisons, trainers),
            ),
            (
                "Dice of each method" if has_one_budget else "Dice over the number of labels",
                "dice_over_labels.png",
                "Points are means over the seeds with their standard deviation, small dots the seeds. nnU-Net is dark, "
                "controls are gray. The dashed line is nnU-Net trained on all labels, if there is such a run.",
                draw_budgets(mean_over_cases(usual_scores), trainers),
            ),
            (
                "Dice over training time",
                "dice_over_time.png",
                "Points are means over the seeds with their standard deviation. The line is nnU-Net, trained for "
                "several times as many steps. A method above the line is worth its time.",
                draw_times(mean_over_cases(scores), costs, trainers),
            ),
            (
                "Case by case against nnU-Net",
                "cases.png",
                "A point is a test case, its Dice the mean over classes and the seeds that both have. Above the line "
                "the method is better than nnU-Net with the same labels.",
                draw_cases(usual_scores, trainers),
            ),
            (
                "Training",
                "training.png",
                "Online Dice on patches of the validation cases after each epoch, mean over the seeds (thin: the "
                "seeds). nnU-Net estimates it while training; it is not the score in the tables.",
                draw_training([(run, read_curve(run)) for run in runs if not run.is_mean], trainers),
            ),
            (
                "Examples",
                "examples.png",
                examples.caption if examples else "",
                draw_examples(examples) if examples else None,
            ),
        ]
        pictures = []
        for title, name, caption, figure in figures:
            if figure is not None:
                figure.savefig(folder / name, dpi=RESOLUTION)
                pictures.append(Picture(title, caption, folder / name, figure.get_figwidth()))
                pyplot.close(figure)  # pyplot keeps the figures that seaborn makes
    return pictures


def read_curve(run: FinishedRun) -> pd.Series | None:
    """Return the online Dice by epoch, or None if the run has no record of it.

    The trainers of this package write it to a table, nnU-Net's own to its checkpoint.
    """
    try:
        table = pd.read_csv(run.folder / "semi_supervised.csv").set_index("epoch")
        return table["mean_fg_dice"]
    except (OSError, ValueError, KeyError):
        pass  # not a trainer of this package, or damaged
    try:
        checkpoint = read_checkpoint(run.folder / run.result.checkpoint, mapped=True)
        values: Mapping[str, list[float]] = checkpoint["logging"]
        return pd.Series(values["mean_fg_dice"], dtype=float)
    except (OSError, ValueError, KeyError, TypeError):
        return None
