"""The notebook of the examples runs as it is committed, and holds nothing of whoever ran it last."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / "tutorial.ipynb", as_version=4)


def test_has_no_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.source


def test_starts(notebook: nbformat.NotebookNode, tmp_path: Path) -> None:
    """Run the cells before the first one that takes long, which import all names, in seconds."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    planning = next(
        index for index, source in enumerate(cells) if "plan_experiments(" in source and "import" not in source
    )
    command = [sys.executable, "-c", "\n".join(cells[:planning])]
    subprocess.run(command, check=True, cwd=tmp_path / "examples")
    raw = tmp_path / "tutorial" / "raw" / "Dataset004_Hippocampus"
    assert [len(list((raw / folder).iterdir())) for folder in ("imagesTr", "labelsTr", "imagesUn")] == [6, 6, 22]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_to_the_picture(notebook: nbformat.NotebookNode, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": tmp_path / "examples"}}).execute()
    drawn = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert "image/png" in drawn[-1]
    [file] = (tmp_path / "tutorial" / "predictions").glob("*/summary.json")
    summary = json.loads(file.read_text())
    assert len(summary["metric_per_case"]) == 12
    assert summary["foreground_mean"]["Dice"] > 0.6
