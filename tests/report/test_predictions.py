"""Pictures of predictions beside their images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import TinyDataset, make_volume, write_image
from matplotlib.image import imread

from nnunetv2_micd.cli.main import main
from nnunetv2_micd.report import predictions
from nnunetv2_micd.report.predictions import draw_predictions

SHAPE = (12, 16, 20)


@pytest.fixture
def folders(dataset: TinyDataset) -> dict[str, Path]:
    """Images, labels and two sets of predictions of three cases; those of case_0 are the worst, of case_2 the best."""
    folders = {name: dataset.root / name for name in ("images", "labels", "ours", "theirs")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("dataset.json", "nnUNetPlans.json"):
        shutil.copy(dataset.preprocessed / name, folders["ours"] / name.replace("nnUNetPlans", "plans"))
    for number in range(3):
        image, _ = make_volume(number, SHAPE)
        truth = np.zeros(SHAPE, np.uint8)
        truth[4:8, 4:12, 4:12] = 1
        truth[6, 4:12, 12] = 1  # the fullest slice
        truth[6, 6:9, 6:9] = 2
        prediction = truth.copy()
        prediction[:, :, : 11 - 3 * number] = 0
        for name, array in (("labels", truth), ("ours", prediction), ("theirs", truth)):
            write_image(folders[name] / f"case_{number}.nii.gz", array)
        write_image(folders["images"] / f"case_{number}_0000.nii.gz", image)
    return folders


def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    calls: list = []
    original = predictions._draw
    monkeypatch.setattr(predictions, "_draw", lambda *arguments: calls.append(arguments) or original(*arguments))
    return calls


def test_rows_from_the_worst_to_the_best(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch)
    output = folders["images"].parent / "picture.png"
    path = draw_predictions(folders["images"], [folders["ours"], folders["theirs"]], output, folders["labels"], 2)
    assert path == output
    assert imread(output).shape[2] == 4
    [(cases, columns, names)] = calls
    assert [case.name for case in cases] == ["case_0", "case_2"]
    assert columns == ["truth", "ours", "theirs"]
    assert names == {1: "first", 2: "second"}
    assert cases[0].dice["theirs"] == 1
    assert cases[0].dice["ours"] < cases[1].dice["ours"] < 1
    np.testing.assert_array_equal(cases[0].image.shape, SHAPE[1:])
    assert (cases[0].labels["truth"] == 2).any()


def test_command_without_labels(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calls = drawn(monkeypatch)
    output = folders["images"].parent / "picture.pdf"
    main(["draw", "-i", str(folders["images"]), "-p", str(folders["ours"]), "-o", str(output)])
    assert capsys.readouterr().out == f"Written: {output}\n"
    assert output.read_bytes().startswith(b"%PDF")
    [(cases, columns, _)] = calls
    assert [case.name for case in cases] == ["case_0", "case_1", "case_2"]
    assert columns == ["ours"]
    assert cases[0].dice == {}


def test_validation_of_a_training(folders: dict[str, Path]) -> None:
    validation = folders["images"].parent / "model" / "fold_0" / "validation"
    shutil.copytree(folders["theirs"], validation)
    for name in ("dataset.json", "plans.json"):
        shutil.move(folders["ours"] / name, validation.parents[1] / name)
    assert draw_predictions(folders["images"], [validation], folders["images"] / "picture.png").is_file()


def test_wrong_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "picture.png"
    with pytest.raises(FileNotFoundError, match=r"no dataset.json in .*labels; name a folder that nnUNetv2_predict"):
        draw_predictions(folders["images"], [folders["labels"]], output)
    with pytest.raises(ValueError, match="number of cases must be at least 1, not 0"):
        draw_predictions(folders["images"], [folders["ours"]], output, number=0)
    write_image(folders["ours"] / "case_1.nii.gz", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"case_1 in .*ours has another size than its image"):
        draw_predictions(folders["images"], [folders["ours"]], output)
    with pytest.raises(ValueError, match=r"case_1 has another size in .*ours than in .*labels"):
        draw_predictions(folders["images"], [folders["ours"]], output, folders["labels"])
    for file in folders["ours"].glob("*.nii.gz"):
        file.unlink()
    with pytest.raises(ValueError, match=r"No image in .* has a file of the same name in .*ours"):
        draw_predictions(folders["images"], [folders["ours"]], output)
    assert not output.exists()


def test_voxels_that_nobody_annotated_do_not_count(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = folders["ours"] / "dataset.json"
    description = json.loads(path.read_text())
    description["labels"]["ignore"] = 3
    path.write_text(json.dumps(description))
    truth = np.full(SHAPE, 3, np.uint8)
    truth[4:8] = 0
    truth[6, 4:12, 4:12] = 1
    everywhere = np.ones(SHAPE, np.uint8)
    everywhere[4:8] = truth[4:8]
    for number in range(3):
        write_image(folders["labels"] / f"case_{number}.nii.gz", truth)
        write_image(folders["ours"] / f"case_{number}.nii.gz", everywhere)
    calls = drawn(monkeypatch)
    draw_predictions(folders["images"], [folders["ours"]], folders["images"] / "picture.png", folders["labels"])
    [(cases, _, names)] = calls
    assert [case.dice["ours"] for case in cases] == [1, 1, 1]
    assert 3 not in names


def test_a_damaged_prediction_is_named(folders: dict[str, Path]) -> None:
    (folders["ours"] / "case_1.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"case_1.nii.gz cannot be read"):
        draw_predictions(folders["images"], [folders["ours"]], folders["images"] / "picture.png")


def test_regions_are_drawn_by_their_values(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = folders["ours"] / "dataset.json"
    description = json.loads(path.read_text())
    description |= {"labels": {"background": 0, "whole": [1, 2], "second": 2}, "regions_class_order": [1, 2]}
    path.write_text(json.dumps(description))
    calls = drawn(monkeypatch)
    draw_predictions(folders["images"], [folders["ours"]], folders["images"] / "picture.png")
    assert calls[0][2] == {2: "second"}


def test_predictions_in_a_folder_called_truth(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not take the place of the labels."""
    calls = drawn(monkeypatch)
    root = folders["ours"].parent
    monkeypatch.chdir(folders["ours"].rename(root / "truth").parent)
    draw_predictions(folders["images"], ["truth", folders["theirs"]], root / "picture.png", folders["labels"], 1)
    [([case], columns, _)] = calls
    assert columns == ["truth", str(root / "truth"), "theirs"]
    assert case.dice[str(root / "truth")] < 1
