"""The report of a benchmark: what is on disk becomes tables, figures and a page; nothing is trained or predicted."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from nnunetv2_micd.report.case_scores import load_scores
from nnunetv2_micd.report.equal_time import TOLERANCE, compare_at_equal_time
from nnunetv2_micd.report.runs import BASELINE, Run, collect_runs, display_name
from nnunetv2_micd.report.scores import RULE_FOR_EMPTY_MASKS, check_tolerance
from nnunetv2_micd.report.statistics import BOOTSTRAP_SAMPLES
from nnunetv2_micd.report.tables import collect_costs, compare_all, format_tables, summarize


def write_report(
    dataset: str | int,
    output: str | os.PathLike[str],
    configuration: str | None = None,
    plans: str | None = None,
    tolerance: float = 1.0,
    epochs: int | None = None,
    num_processes: int = 1,
    baseline: str = BASELINE,
) -> tuple[Path, list[str]]:
    """Write tables (CSV, Markdown), figures and a self-contained page of all finished runs of a dataset.

    Args:
        dataset: name or number of the dataset.
        output: folder to write into; files of an earlier report are replaced.
        configuration: such as ``3d_fullres``; needed where there are runs of several.
        plans: name of the plans; needed where there are runs of several.
        tolerance: of the normalized surface Dice, in mm.
        epochs: only runs of this length, and longer ones of the baseline.
        num_processes: for the scores, which take most of the time.
        baseline: the trainer that learned from the labels alone; its longer runs make the comparison at equal time.

    Returns:
        The page, and a sentence for each thing that was left out or restricts a comparison.

    Raises:
        ValueError: the runs cannot be compared, or an argument is wrong.
        OSError: there are no runs, or a file cannot be read or written.
    """
    from nnunetv2_micd.report.figures import draw_all  # takes seconds
    from nnunetv2_micd.report.page import write_page

    check_tolerance(tolerance)
    runs, longer, notes = collect_runs(dataset, configuration, plans, epochs, baseline)
    scored, scores, failures = _score_all([*runs, *longer], tolerance, num_processes)
    # The longer ones have a table and a figure of their own.
    runs = [run for run in scored if run.trainer not in {run.trainer for run in longer}]
    if not runs:
        raise ValueError(failures[0])
    notes += failures + find_caveats(scored)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    costs = collect_costs(scored)
    frames = {"cases": scores, "costs": costs, "equal_time": compare_at_equal_time(scores, costs)}
    usual = scores[scores["trainer"].isin({run.trainer for run in runs})]
    frames |= {"summary": summarize(usual), "comparisons": compare_all(usual)}
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    tables = format_tables(frames, _names_of(scored))
    figures = draw_all(runs, scores, costs, folder / "figures")
    facts, rules = {"Baseline, called nnU-Net": baseline} | describe(runs, tolerance), list_rules(tolerance)
    return write_page(folder, facts, notes, tables, figures, rules), notes


def _score_all(runs: Sequence[Run], tolerance: float, num_processes: int) -> tuple[list[Run], pd.DataFrame, list[str]]:
    """Return the runs that could be scored, all their scores, and what went wrong with the others."""
    scored, tables, failures = [], [], []
    with _pool_map(num_processes) as apply:
        for run in tqdm(_in_order(runs), desc="scoring", unit="run", disable=None):
            try:
                table = load_scores(run, tolerance, apply)
            except (ValueError, OSError) as error:
                failures.append(f"{run.folder.parent.name}/{run.folder.name} is left out: {error}")
                continue
            who = {"trainer": run.trainer, "budget": run.budget, "num_labeled": run.num_labeled, "seed": run.seed}
            tables.append(table.assign(**who)[[*who, *table.columns]])
            scored.append(run)
    return scored, pd.concat([pd.DataFrame(), *tables], ignore_index=True), failures


@contextmanager
def _pool_map(num_processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    if num_processes < 1:
        raise ValueError(f"The number of processes must be at least 1, not {num_processes}")
    if num_processes == 1:
        yield map
        return
    # spawned, as nnU-Net's own: a forked process may hang with the threads that PyTorch has started
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield pool.map


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """Return the runs by budget, nnU-Net's own trainer first: the order of all tables and figures."""
    return sorted(
        runs, key=lambda run: (run.num_labeled, run.budget, run.trainer != BASELINE, run.trainer.lower(), run.seed)
    )


def find_caveats(runs: Sequence[Run]) -> list[str]:
    """Return what a reader of the tables has to know about these runs."""
    caveats = []
    transductive = sorted({run.trainer for run in runs if run.transductive})
    if transductive:
        names = ", ".join(map(display_name, transductive))
        caveats.append(f"Transductive: test images were among the unlabeled images of {names}, marked with †.")
    if len({(run.machine, run.device) for run in runs}) > 1:
        caveats.append("The runs come from several machines or devices: their times and memory are not comparable.")
    for package in sorted({name for run in runs for name in run.versions}):
        versions = sorted({str(run.versions.get(package)) for run in runs})
        if len(versions) > 1:
            caveats.append(f"The runs were made with several versions of {package}: {', '.join(versions)}.")
    seeds = {(run.budget, run.trainer): set() for run in runs}  # type: dict[tuple[str, str], set[int]]
    for run in runs:
        seeds[run.budget, run.trainer].add(run.seed)
    for (budget, trainer), found in seeds.items():
        missing = sorted(set.union(*(others for (each, _), others in seeds.items() if each == budget)) - found)
        if missing:
            caveats.append(
                f"There is no run of {display_name(trainer)} with {budget} labeled and seed "
                f"{', '.join(map(str, missing))}, but of other methods."
            )
    if not any(run.trainer == BASELINE for run in runs):
        caveats.append("There are no runs of the baseline, so there is nothing to test the methods against.")
    return caveats


def _names_of(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """Return the name of each budget and trainer, with a mark where test images were trained on."""
    marked = {(run.budget, run.trainer) for run in runs if run.transductive}
    keys = {(run.budget, run.trainer) for run in runs}
    return {key: display_name(key[1]) + (" †" if key in marked else "") for key in keys}


def describe(runs: Sequence[Run], tolerance: float) -> dict[str, str]:
    """Return what all the runs have in common."""
    first = runs[0]
    versions = {f"{name} {version}" for run in runs for name, version in run.versions.items()}
    return {
        "Dataset": first.dataset,
        "Configuration and plans": f"{first.configuration}, {first.plans}",
        "Training": f"{first.epochs} epochs of {first.iterations} iterations, final checkpoint",
        "Test cases": f"{len(first.cases)}, from {first.test_images or 'the validation cases of the folds'}",
        "Runs": str(len(runs)),
        "Surface Dice tolerance": f"{tolerance:g} mm",
        "Machines": "; ".join(sorted({run.machine for run in runs})),
        "Versions": ", ".join(sorted(versions)),
    }


def list_rules(tolerance: float) -> list[str]:
    """Return how the figures in the report come about."""
    return [
        "A run is scored on its test cases with the segmentations of its final checkpoint, in the geometry of the "
        "images: distances are in mm. Classes are those that nnU-Net evaluates (regions where there are some). Voxels "
        "with the ignore label in the truth are left out of truth and prediction.",
        RULE_FOR_EMPTY_MASKS,
        "Dice: overlap of the masks. NSD: normalized surface Dice, the share of both surfaces that lies within "
        f"{tolerance:g} mm of the other. HD95: 95th percentile of the distances between the surfaces, the larger of "
        "the two directions. ASD: mean of these distances, both directions together.",
        "Tables: a run's score for a class is the mean over its test cases, its mean score the mean over the classes; "
        "shown are mean and standard deviation over the seeds, each of which has other labeled cases, but for those of "
        "a fold. Counts of empty masks are over all test cases, classes and seeds.",
        f"Tests: the score of a case is the mean over its classes and then over the seeds that both methods have; a "
        "case that is not scored for one of the two is left out, so the number of cases is given. The p-value is that "
        "of the two-sided Wilcoxon signed-rank test, also corrected after Holm over all comparisons of that metric. "
        "The interval is the 95 % percentile bootstrap of the mean difference to the baseline with the same labels "
        f"({BOOTSTRAP_SAMPLES} draws of cases). It speaks of other test cases, not of other labeled ones: those "
        "are the standard deviation's matter.",
        "At equal time: where the baseline was trained longer, too, each method is tested against the shortest of its "
        f"trainings that took at least {TOLERANCE:.0%} of the method's time, or the longest where none did; Holm's "
        "correction is over the rows of that table.",
        "Training and prediction time are means over the seeds; memory is the largest of all seeds.",
    ]
