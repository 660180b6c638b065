"""What the folder of a run holds: nothing yet, this run, or another one."""

from collections.abc import Sequence
from typing import Any

from nnunetv2_micd.benchmark.prediction import lacks_mean
from nnunetv2_micd.benchmark.records import Run, read_record, was_trained_again
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
    recorded = record.run.to_json()
    for name, value in run.to_json().items():
        if recorded[name] != value:
            raise ValueError(
                f"The run in {folder} was made with {name} {_cut(recorded[name])}, not {_cut(value)}; move the folder "
                "elsewhere, or repeat the benchmark as it was"
            )
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


def _cut(value: Any, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def is_done(run: Run, mean_of_both: bool = False) -> bool:
    """Return True if a run has been trained and has predicted, if asked for also with the mean of both networks.

    Raises:
        FileNotFoundError: The checkpoint of a trained run, which tells whether it has two networks, is missing.
    """
    record = read_record(run.folder)
    if record is None or record.result.status != "done":
        return False
    return not (mean_of_both and lacks_mean(run, record.result))
