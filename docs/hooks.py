"""Hooks of MkDocs: the reference of commands comes from their parser, that of options from the source files."""

import argparse
import ast
import os
import posixpath
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in generated parts, and keep of a link to a file of the repository, which is no page, only its text."""
    markdown = markdown.replace("<!-- commands -->", _commands()) if "<!-- commands -->" in markdown else markdown
    markdown = markdown.replace("<!-- options -->", _options()) if "<!-- options -->" in markdown else markdown
    if page.file.src_uri.startswith("results/"):  # their tables need the width
        page.meta["hide"] = ["toc"]
    folder = posixpath.dirname(page.file.src_uri)

    def keep_pages(match: re.Match) -> str:
        target = match[2].partition("#")[0]
        is_outside = posixpath.normpath(posixpath.join(folder, target)).startswith("../")
        return match[1] if is_outside and "://" not in target else match[0]

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", keep_pages, markdown)


def _commands() -> str:
    os.environ["COLUMNS"] = "80"
    from nnunetv2_micd.cli.main import make_parser

    [commands] = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    parts = []
    for name, parser in commands.choices.items():
        parts.append(f"## `nnUNetv2_micd {name}`\n\n```text\n{parser.format_help().strip()}\n```\n")
    return "\n".join(parts)


def _options() -> str:
    parts = []
    for file in sorted((REPOSITORY / "nnunetv2_micd" / "methods").rglob("*.py")):
        module = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                parts.append(f"::: {module}.{node.name}\n")
    return "\n".join(parts)
