"""The report as a page: one HTML file with everything in it, and the same in Markdown."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from nnunetv2_micd.report.figures import Picture
from nnunetv2_micd.report.tables import Table

TITLE = "Semi-supervised methods compared"


def write_page(
    folder: Path,
    facts: Mapping[str, str],
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    rules: Sequence[str],
) -> Path:
    """Write ``report.html``, which needs no other file and no network, and ``report.md``.

    Args:
        folder: to write into.
        facts: what all runs have in common.
        notes: what was left out and what restricts the comparison.
        tables: in their order.
        pictures: whose files are put into the page.
        rules: how the figures come about.

    Returns:
        The HTML file.

    Raises:
        ValueError: Jinja is not installed.
    """
    try:
        from jinja2 import Environment
    except ModuleNotFoundError:
        raise ValueError(
            'jinja2 is not installed, which the report needs; install it: pip install "nnunetv2_micd[benchmark]"'
        ) from None
    source = resources.files("nnunetv2_micd.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(
        title=TITLE,
        facts=facts,
        notes=notes,
        tables=tables,
        pictures=[(each.title, each.caption, round(96 * each.width), _encode(each.file)) for each in pictures],
        rules=rules,
    )
    (folder / "report.md").write_text(_markdown(folder, facts, notes, tables, pictures, rules), encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _encode(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _markdown(
    folder: Path,
    facts: Mapping[str, str],
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    rules: Sequence[str],
) -> str:
    parts = [f"# {TITLE}", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    if notes:
        parts += ["## To be noted", "\n".join(f"- {note}" for note in notes)]
    parts += ["## Tables", *(table.to_markdown() for table in tables if table.rows), "## Figures"]
    parts += [f"![{each.title}]({each.file.relative_to(folder).as_posix()})\n\n{each.caption}" for each in pictures]
    parts += ["## Rules", "\n".join(f"- {rule}" for rule in rules)]
    return "\n\n".join(parts) + "\n"
