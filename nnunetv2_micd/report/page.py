"""The report as a page: one HTML file that contains everything, and the same in Markdown."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment

from nnunetv2_micd.report.figures import Picture
from nnunetv2_micd.report.tables import Table
from nnunetv2_micd.utils.markdown import escape

TITLE = "Semi-supervised methods compared"
CSS_PIXELS = 96
"""Pixels of a browser in an inch."""


def write_page(
    folder: Path,
    facts: Mapping[str, str],
    claims: Sequence[str],
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    rules: Sequence[str],
) -> Path:
    """Write ``report.html``, which needs no other file and no network, and ``report.md``.

    Args:
        folder: Folder to write into.
        facts: What all runs have in common, as values by name.
        claims: Paragraphs about what can be claimed.
        notes: Sentences about what was left out and what restricts the comparison.
        tables: Tables in their order; those without rows are left out.
        pictures: Pictures to include.
        rules: Sentences about how the numbers are computed.

    Returns:
        Path of the HTML file.
    """
    source = resources.files("nnunetv2_micd.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(
        title=TITLE,
        facts=facts,
        claims=claims,
        notes=notes,
        tables=tables,
        pictures=[
            (picture.title, picture.caption, round(CSS_PIXELS * picture.width), _encode(picture.file))
            for picture in pictures
        ],
        rules=rules,
    )
    (folder / "report.md").write_text(
        _markdown(folder, facts, claims, notes, tables, pictures, rules), encoding="utf-8"
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _encode(file: Path) -> str:
    """Return the content of a file for a data URL."""
    return base64.b64encode(file.read_bytes()).decode()


def _markdown(
    folder: Path,
    facts: Mapping[str, str],
    claims: Sequence[str],
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    rules: Sequence[str],
) -> str:
    parts = [f"# {TITLE}", "\n".join(f"- {name}: {escape(value)}" for name, value in facts.items())]
    if claims:
        parts += ["## What can be claimed", *map(escape, claims)]
    if notes:
        parts += ["## To be noted", "\n".join(f"- {escape(note)}" for note in notes)]
    parts += ["## Tables", *(table.to_markdown() for table in tables if table.rows), "## Figures"]
    for picture in pictures:
        file = picture.file.relative_to(folder).as_posix()
        parts.append(f"![{picture.title}]({file})\n\n{picture.caption}")
    parts += ["## Rules", "\n".join(f"- {rule}" for rule in rules)]
    return "\n\n".join(parts) + "\n"
