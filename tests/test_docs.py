"""The commands and trainers that the documentation names exist, and the tables of its results agree."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from nnunetv2_micd.cli.main import make_parser
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))
RESULT_TABLES = sorted((REPOSITORY / "docs/results").rglob("summary.csv"))
OTHERS = {"nnUNetTrainer", "nnUNetTrainerMICD_largeBlocks"}
"""nnU-Net's own trainer, and the example of how to write one."""


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


def commands(page: Path) -> list[str]:
    """Return the calls of ``nnUNetv2_micd`` in the shell blocks of a page."""
    lines = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            lines += [part.strip() for part in re.split(r"&&|;", line) if part.strip().startswith("nnUNetv2_micd ")]
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_are_those_of_the_parser(page: Path) -> None:
    for command in commands(page):
        make_parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.search(r"\b[A-Z]+_HERE\b|TODO", page.read_text(encoding="utf-8"))


GUIDES = [page for page in PAGES if "results" not in page.parts]  # results name trainers that were tried


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_trainers_exist(page: Path) -> None:
    names = re.findall(r"\bnnUNetTrainer[A-Za-z0-9]*(?:_[A-Za-z0-9]+)*\b", page.read_text(encoding="utf-8"))
    known = {*exported.__all__, *OTHERS}
    for name in names:
        base = re.sub(r"_(small(_\d+steps)?|e\d+(_i\d+)?|\d+epochs|NoMirroring)$", "", name)
        assert name in known or base in known, f"{name} in {page}"


def test_every_result_is_listed_once() -> None:
    results = REPOSITORY / "docs/results"
    listed = re.findall(
        r"^- \[(\w+)\]\(\1/README.md\)", (results / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(path.parent.name for path in results.glob("*/README.md"))


def test_every_trainer_has_its_place() -> None:
    trainers = (REPOSITORY / "docs/reference/trainers.md").read_text(encoding="utf-8")
    for name in exported.__all__:
        assert f"`{name}`" in trainers or f"`{name.removeprefix('nnUNetTrainerMICD')}`" in trainers, name


@pytest.mark.parametrize("summary", RESULT_TABLES, ids=lambda path: str(path.parent.relative_to(REPOSITORY)))
def test_tests_of_a_result_use_all_trainings_of_its_summary(summary: Path) -> None:
    """A table that was forgotten when a training was added would say so by its number of seeds."""
    seeds = {(row["budget"], row["trainer"]): int(row["seeds"]) for row in read_rows(summary) if "seeds" in row}
    for name, first, second in (
        ("comparisons.csv", "trainer", "trainer"),
        ("against_control.csv", "trainer", "control"),
        ("best_against_others.csv", "best", "trainer"),
    ):
        table = summary.with_name(name)
        for row in read_rows(table) if table.is_file() else []:
            assert int(row["seeds"]) == min(seeds[row["budget"], row[column]] for column in (first, second)), table
