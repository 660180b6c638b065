"""Findings: what a check found, how bad it is, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """Outcome of a check.

    Attributes:
        level: ``"problem"`` if it prevents training.
        subject: Thing that was checked, in a word or two.
        text: Result of the check.
        remedy: Advice, if ``text`` does not contain it, in one or more lines.

    Examples:
        >>> print(format_findings([Finding("ok", "Python", "3.11"), Finding("problem", "nnU-Net", "not installed")]))
        ok       Python   3.11
        problem  nnU-Net  not installed
        <BLANKLINE>
        1 problem, no warnings
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


def format_findings(findings: Sequence[Finding]) -> str:
    """Return the report: one line for each finding, its remedy below it, and the number of problems at the end."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:9}{finding.subject:{width}}  {finding.text}")
        for number, line in enumerate(finding.remedy.splitlines()):
            lines.append(f"{'':{9 + width}}  {'  ' if number else '->'} {line}")
    problems, warnings = (sum(finding.level == level for finding in findings) for level in ("problem", "warning"))
    return "\n".join([*lines, "", f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}"])


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
