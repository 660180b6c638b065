"""Writes the report of a benchmark: tables, figures and a page. Nothing is trained or predicted."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from nnunetv2_micd.data.groups import load_groups
from nnunetv2_micd.report.aggregate import collect_costs, summarize
from nnunetv2_micd.report.claims import list_claims
from nnunetv2_micd.report.collect import collect_runs
from nnunetv2_micd.report.comparisons import (
    compare_all,
    compare_at_equal_time,
    compare_best,
    compare_with_control,
    find_best,
)
from nnunetv2_micd.report.figures import FIGURES, draw_all
from nnunetv2_micd.report.page import write_page
from nnunetv2_micd.report.run_scores import load_scores
from nnunetv2_micd.report.runs import FinishedRun, display_name, is_candidate, is_control
from nnunetv2_micd.report.scores import check_tolerance
from nnunetv2_micd.report.tables import format_tables
from nnunetv2_micd.report.texts import describe, describe_methods, find_caveats, list_rules
from nnunetv2_micd.training.registry import STOCK
from nnunetv2_micd.utils.files import replaced_together
from nnunetv2_micd.utils.locks import hold_lock


def write_report(
    dataset: str | int,
    output: str | os.PathLike[str],
    configuration: str | None = None,
    plans: str | None = None,
    tolerance: float = 1.0,
    epochs: int | None = None,
    num_processes: int = 1,
    baseline: str = STOCK,
) -> tuple[Path, list[str]]:
    """Write tables (CSV, Markdown), figures and a self-contained page about all finished runs of a dataset.

    Args:
        dataset: Name or number of the dataset.
        output: Folder to write into; files of an earlier report are replaced.
        configuration: Name of the configuration, such as ``3d_fullres``; needed if there are runs of several.
        plans: Name of the plans; needed if there are runs of several.
        tolerance: Tolerance of the normalized surface Dice in mm.
        epochs: Number of epochs of the runs to take. Longer runs of the baseline and the controls are
            taken as well.
        num_processes: Number of processes that compute scores, which takes most of the time.
        baseline: Trainer that learned from the labels alone. Its longer runs, and those of controls, make the
            comparison at equal time.

    Returns:
        Path of the page, and a sentence about each run that was left out and each restriction of a comparison.

    Raises:
        ValueError: The runs cannot be compared, or an argument is wrong.
        OSError: There are no runs, or a file cannot be read or written.

    Examples:
        >>> page, notes = write_report(4, "report", configuration="3d_fullres")  # doctest: +SKIP
    """
    check_tolerance(tolerance)
    runs, longer, notes = collect_runs(dataset, configuration, plans, epochs, baseline)
    scored, scores, failures = _score_all([*runs, *longer], tolerance, num_processes)
    # Longer runs have a table and a figure of their own.
    usual_runs = [run for run in scored if run.trainer not in {run.trainer for run in longer}]
    if not usual_runs:
        raise ValueError(failures[0])
    groups = load_groups(usual_runs[0].settings.dataset)
    scores["group"] = [groups.get(case, case) for case in scores["case"]]
    notes += failures + find_caveats(scored, groups)
    usual_scores = scores[scores["trainer"].isin({run.trainer for run in usual_runs})]
    costs = collect_costs(scored)
    best = find_best(usual_scores, is_candidate)
    frames = {
        "cases": scores,
        "costs": costs,
        "equal_time": compare_at_equal_time(scores, costs),
        "summary": summarize(usual_scores),
        "comparisons": compare_all(usual_scores),
        "against_control": compare_with_control(usual_scores),
        "best_against_others": compare_best(usual_scores, best),
    }
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / ".report.lock", f"writing a report into {folder}", wait=0):
        with replaced_together(folder, last="report.html") as incomplete:
            for name, frame in frames.items():
                frame.map(_defuse).to_csv(incomplete / f"{name}.csv", index=False)
            pictures = draw_all(usual_runs, scores, costs, frames["comparisons"], incomplete / "figures")
            page = write_page(
                incomplete,
                facts=describe(usual_runs, groups, tolerance, baseline),
                claims=list_claims(frames, best),
                notes=notes,
                tables=[*format_tables(frames, _names_of(scored), usual_runs[0].unit), describe_methods(usual_runs)],
                pictures=pictures,
                rules=list_rules(tolerance, usual_runs[0].unit),
            )
        _remove_outdated(folder / "figures", {picture.file.name for picture in pictures})
    return folder / page.name, notes


def _remove_outdated(figures: Path, drawn: Collection[str]) -> None:
    """Remove figures of an earlier report that this one has no data for. Other files stay."""
    for name in FIGURES:
        if name not in drawn:
            (figures / name).unlink(missing_ok=True)


def _defuse(cell: Any) -> Any:
    """Return a cell that no spreadsheet program takes for a formula: names of cases and trainers may be anybody's."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def _score_all(
    runs: Sequence[FinishedRun], tolerance: float, num_processes: int
) -> tuple[list[FinishedRun], pd.DataFrame, list[str]]:
    """Return the runs that could be scored, all their scores, and a sentence about each run that could not."""
    scored, tables, failures = [], [], []
    num_cases = sum(len(run.cases) for run in runs)
    with _pool_map(num_processes) as apply, tqdm(total=num_cases, desc="scoring", unit="case", disable=None) as bar:

        def counted(function: Callable[[str], Any], cases: Sequence[str]) -> Iterator[Any]:
            for result in apply(function, cases):
                bar.update()
                yield result

        for run in _in_order(runs):
            end = bar.n + len(run.cases)
            try:
                table = load_scores(run, tolerance, counted)
            except (ValueError, OSError) as error:
                failures.append(f"{run.place} is left out: {error}")
                continue
            finally:
                bar.update(end - bar.n)  # with cached scores, or none
            settings = run.settings
            keys = {
                "trainer": run.trainer,
                "budget": settings.budget,
                "num_labeled": len(settings.labeled),
                "seed": settings.seed,
            }
            tables.append(table.assign(**keys)[[*keys, *table.columns]])
            scored.append(run)
    return scored, pd.concat([pd.DataFrame(), *tables], ignore_index=True), failures


@contextmanager
def _pool_map(num_processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a ``map`` that uses this many processes."""
    if num_processes < 1:
        raise ValueError(f"The number of processes must be at least 1, not {num_processes}")
    if num_processes == 1:
        yield map
        return
    # Spawned like nnU-Net's own: a forked process can hang because of the threads that PyTorch has started.
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            yield pool.map
        except BrokenProcessPool:
            raise ChildProcessError(
                "A worker process was killed, most often because the memory was full; run the same command again with "
                "fewer processes (-np)"
            ) from None


def _in_order(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return the runs in the order of all tables and figures: by budget, first the baseline, then the controls."""

    def key(run: FinishedRun) -> tuple[Any, ...]:
        settings, trainer = run.settings, run.trainer
        kind = trainer != STOCK, not is_control(trainer)
        return len(settings.labeled), settings.budget, *kind, trainer.lower(), settings.seed

    return sorted(runs, key=key)


def _names_of(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], str]:
    """Return the names of the methods in tables, with a mark if test images were used for training."""
    transductive = {(run.settings.budget, run.trainer) for run in runs if run.settings.transductive}
    keys = {(run.settings.budget, run.trainer) for run in runs}
    return {key: display_name(key[1]) + (" †" if key in transductive else "") for key in keys}
