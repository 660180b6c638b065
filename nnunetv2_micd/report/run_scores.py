"""The scores of all test cases of a run, cached as a table in its folder."""

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_micd.report.runs import FinishedRun, find_classes
from nnunetv2_micd.report.scores import METRICS, check_tolerance, score_case
from nnunetv2_micd.utils.files import atomic

SCORES_FILE = "scores.csv"
MEAN_SCORES_FILE = "scores_mean.csv"
"""Scores of the predictions of the mean of both networks."""


def load_scores(run: FinishedRun, tolerance: float, apply: Callable[..., Iterable[Any]] = map) -> pd.DataFrame:
    """Return the scores of a run, a row for each case and class, from the cache in its folder if that is current.

    Args:
        run: The run.
        tolerance: Tolerance of the normalized surface Dice in mm.
        apply: Function that applies another one to each case, such as the ``map`` of a pool of processes.

    Returns:
        The columns ``case``, ``class``, the fields of :class:`~nnunetv2_micd.report.scores.Score`, and ``tolerance``.

    Raises:
        ValueError: A segmentation does not fit its labels, or the tolerance is not positive.
        OSError: A file cannot be read.
    """
    check_tolerance(tolerance)
    path = run.folder / (MEAN_SCORES_FILE if run.is_mean else SCORES_FILE)
    cached = _read_cache(path, run, tolerance)
    if cached is not None:
        return cached
    files = _identify_files(run)  # before they are read
    rows = [row for rows in apply(partial(_score_one, run, tolerance), run.cases) for row in rows]
    table = pd.DataFrame(rows).assign(tolerance=tolerance)
    with suppress(OSError), atomic(path) as temporary:  # somebody else's results may not be writable
        table.assign(files=files).to_csv(temporary, index=False)
    return table


def _identify_files(run: FinishedRun) -> str:
    """Return a hash of the size and time of all predictions and labels, which changes when one is replaced."""
    files = [file for case in run.cases for file in (run.prediction_file(case), run.truth_file(case))]
    if run.has_sidecars:
        files += [run.prediction_file(case).with_name(f"{case}.json") for case in run.cases]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _score_one(run: FinishedRun, tolerance: float, case: str) -> list[dict[str, Any]]:
    """Return a row for each class; all arguments can be pickled, so this can run in a worker process."""
    try:
        truth, prediction, spacing = run.read_pair(case)
    except Exception as error:  # readers raise various types for damaged files
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Case {case} of {run} cannot be read ({reason}); run it again, or restore its label"
        ) from None
    try:
        scores = score_case(truth, prediction, spacing, find_classes(run), run.ignore_label, tolerance)
    except ValueError as error:
        raise ValueError(f"Case {case} of {run}: {error}") from None
    return [{"case": case, "class": name, **asdict(score)} for name, score in scores.items()]


def _read_cache(path: Path, run: FinishedRun, tolerance: float) -> pd.DataFrame | None:
    """Return the cached table if it is of the same segmentations, cases, classes and tolerance."""
    if not path.is_file():
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
        is_current = rows == expected and all(math.isclose(value, tolerance) for value in table["tolerance"])
        is_current &= set(table["files"]) == {_identify_files(run)}
        return table.drop(columns="files") if is_current and {*METRICS, "outcome"} <= set(table) else None
    except (ValueError, KeyError, TypeError):  # damaged, or written by another version
        return None
