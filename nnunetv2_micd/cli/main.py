"""Entry point of the command ``nnUNetv2_micd``, for everything that nnU-Net's own commands do not do."""

import argparse
import errno
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nnunetv2_micd import __version__
from nnunetv2_micd.cli import (
    benchmark,
    dataset,
    doctor,
    draw,
    export,
    list_trainers,
    path,
    preprocess,
    profile,
    rank,
    report,
    split,
    tune,
)

REMEDIES = {
    errno.EACCES: "change the permissions of this file or its folder, or choose another place",
    errno.EPERM: "change the permissions of this file or its folder, or choose another place",
    errno.EROFS: "the place cannot be written to, choose another",
    errno.ENOSPC: "make room on the disk and run the same command again",
    errno.EDQUOT: "make room on the disk and run the same command again",
}
"""What to do about errors of the system."""

COMMANDS = (
    path,
    dataset,
    preprocess,
    split,
    list_trainers,
    doctor,
    export,
    draw,
    rank,
    report,
    benchmark,
    tune,
    profile,
)
"""Modules of the subcommands in the order of ``nnUNetv2_micd --help``."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line.

    Args:
        argv: Words after the name of the program. Default: those of this process.
    """
    # Users cannot act on torch's warnings about what it imports, such as an old package for the GPU's state.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\b")
    arguments = make_parser().parse_args(argv)
    with errors_in_one_sentence():
        arguments.run(arguments)


@contextmanager
def errors_in_one_sentence() -> Iterator[None]:
    """End the process with the message of a `ValueError` or `OSError` instead of a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {_describe(error)}")


def _describe(error: Exception) -> str:
    """Return the message of an error; of one of the system itself, what to do about it."""
    remedy = REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    if remedy is None or not isinstance(error, OSError):
        return str(error)
    return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}; {remedy}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; ``run`` of what it parses is the function to call."""
    parser = argparse.ArgumentParser(prog="nnUNetv2_micd", description="Semi-supervised training with nnU-Net.")
    parser.add_argument("--version", action="version", version=f"nnunetv2_micd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    return parser
