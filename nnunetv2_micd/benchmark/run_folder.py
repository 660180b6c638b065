"""What the folder of a run holds: nothing yet, this run, or another one."""

import json
from collections.abc import Sequence
from typing import Any

from nnunetv2_micd.benchmark.prediction import lacks_mean
from nnunetv2_micd.benchmark.records import Record, Run, read_record, was_trained_again
from nnunetv2_micd.utils.files import shorten


def check_folder(run: Run, test_cases: Sequence[str], ending: str) -> None:
    """Refuse a folder that holds another run, which must be neither continued nor taken for this one.

    Args:
        run: The run that is planned.
        test_cases: Its test cases; none if it is tested on validation cases.
        ending: File ending of predictions, such as ``.nii.gz``.

    Raises:
        ValueError: The folder holds another run.
    """
    folder = run.folder
    record = read_record(folder)
    if record is None:
        if any(folder.glob("checkpoint_*.pth")):
            raise ValueError(f"{folder} holds a training that no benchmark has started; move it elsewhere")
        return
    check_same(run, record)
    if record.result.is_complete and was_trained_again(folder, record.result):
        raise ValueError(
            f"The run in {folder} was trained again after the benchmark; move the folder elsewhere, and the benchmark "
            "does the run again"
        )
    if record.result.is_complete and test_cases:
        predictions = (folder / record.result.predictions).glob(f"*{ending}")
        predicted = {path.name.removesuffix(ending) for path in predictions}
        if missing := sorted(set(test_cases) - predicted) if predicted <= set(test_cases) else []:
            raise ValueError(
                f"The run in {folder} lacks predictions of test images ({shorten(missing)}); restore them, or delete "
                "that folder, and the benchmark does the run again"
            )
        if predicted != set(test_cases):
            differing = shorten(sorted(predicted.symmetric_difference(test_cases)))
            raise ValueError(
                f"The run in {folder} was tested on other images ({differing}); move the folder elsewhere, or restore "
                "the test images"
            )


def check_same(run: Run, record: Record) -> None:
    """Refuse the record of another run in the folder of this one.

    A setting of the trainer that only one of them knows came or went with a version of this package. That changes
    nothing for a run that is complete; but half a run is not continued so, nor is a weight chosen by such runs.

    Raises:
        ValueError: They differ.
    """
    old, new = _with_settings(record.run), _with_settings(run)
    names = old.keys() & new.keys() if record.result.is_complete and not run.is_tuning else old.keys() | new.keys()
    for name in sorted(names):
        before, now = old.get(name), new.get(name)
        if before != now:
            raise ValueError(
                f"The run in {run.folder} was made with {name} {_cut(before, now)}, not {_cut(now, before)}; move the "
                "folder elsewhere, or repeat the benchmark as it was"
            )


def _with_settings(run: Run) -> dict[str, Any]:
    """Return the description of a run with each setting of its trainer by itself."""
    content = run.to_json()
    settings = json.loads(content.pop("config") or "{}")
    return content | {f"config {name}": value for name, value in settings.items()}


def _cut(value: Any, other: Any, length: int = 60) -> str:
    """Return a value as text; of a long one a part that begins shortly before it differs from the other."""
    text = str(value)
    if len(text) <= length:
        return text
    pairs = enumerate(zip(text, str(other), strict=False))
    differs_at = next((index for index, (one, another) in pairs if one != another), len(text))
    start = max(0, differs_at - length // 3)
    return f"{'...' if start else ''}{text[start : start + length]}{'...' if start + length < len(text) else ''}"


def is_done(run: Run, mean_of_both: bool = False) -> bool:
    """Return True if a run has been trained and has predicted, if asked for also with the mean of both networks.

    Raises:
        FileNotFoundError: The checkpoint of a trained run, which tells whether it has two networks, is missing.
        ValueError: The folder holds another run, which another benchmark has started since.
    """
    record = read_record(run.folder)
    if record is None or record.result.status != "done":
        return False
    check_same(run, record)
    return not (mean_of_both and lacks_mean(run, record.result))
