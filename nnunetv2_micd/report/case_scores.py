"""The scores of all cases of a run, kept as a table in its folder."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_micd.report.runs import Run, find_classes
from nnunetv2_micd.report.scores import check_tolerance, score_case

METRICS = ("dice", "nsd", "hd95", "asd")
SCORES_FILE = "scores.csv"


def load_scores(run: Run, tolerance: float, apply: Callable[..., Iterable[Any]] = map) -> pd.DataFrame:
    """Return the scores of a run, a row for each case and class, from the cache in its folder where that holds.

    Args:
        run: whose predictions are scored.
        tolerance: of the normalized surface Dice, in mm.
        apply: what applies a function to each case, such as the ``map`` of a pool of processes.

    Returns:
        The columns ``case``, ``class``, those of :class:`~nnunetv2_micd.report.scores.Score`, and ``tolerance``.

    Raises:
        ValueError: a segmentation does not fit its truth, or the tolerance is not positive.
        OSError: a file cannot be read or the cache not be written.
    """
    check_tolerance(tolerance)
    path = run.folder / SCORES_FILE
    cached = _read_cache(path, run, tolerance)
    if cached is not None:
        return cached
    rows = [row for rows in apply(partial(_score_case_of, run, tolerance), run.cases) for row in rows]
    table = pd.DataFrame(rows).assign(tolerance=tolerance)
    _write_atomically(table, path)
    return table


def _score_case_of(run: Run, tolerance: float, case: str) -> list[dict[str, Any]]:
    """Return a row for each class; the arguments are such as another process can be given."""
    ignore_label = run.plans_manager.get_label_manager(run.dataset_json).ignore_label
    try:
        truth, spacing = run.read_segmentation(run.truth_file(case))
        prediction, _ = run.read_segmentation(run.prediction_file(case))
        scores = score_case(truth, prediction, spacing, find_classes(run), ignore_label, tolerance)
    except RuntimeError as error:  # SimpleITK's, of a damaged file
        raise ValueError(f"Case {case} of {run} cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"Case {case} of {run}: {error}") from None
    return [{"case": case, "class": name, **asdict(score)} for name, score in scores.items()]


def _read_cache(path: Path, run: Run, tolerance: float) -> pd.DataFrame | None:
    files = [file for case in run.cases for file in (run.prediction_file(case), run.truth_file(case))]
    if not path.is_file() or path.stat().st_mtime_ns <= max(file.stat().st_mtime_ns for file in files):
        return None
    try:
        table = pd.read_csv(
            path,
            dtype={"case": str, "class": str},
            keep_default_na=False,  # a class may be called "NA"
            na_values={metric: [""] for metric in METRICS},
        )
        rows = list(zip(table["case"], table["class"], strict=True))
        expected = [(case, name) for case in run.cases for name in find_classes(run)]
        is_current = rows == expected and all(math.isclose(each, tolerance) for each in table["tolerance"])
        return table if is_current and {*METRICS, "outcome"} <= set(table) else None
    except (ValueError, KeyError, TypeError):  # damaged, or of another version
        return None


def _write_atomically(table: pd.DataFrame, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        table.to_csv(temporary, index=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
