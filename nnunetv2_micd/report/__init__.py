"""Tables, figures and a page about the finished runs of a benchmark."""

from nnunetv2_micd.report.writer import write_report

__all__ = ["write_report"]
