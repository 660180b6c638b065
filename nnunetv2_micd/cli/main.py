"""Entry point of the command ``nnUNetv2_micd``, for everything that nnU-Net's own commands do not do."""

import argparse
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
    label,
    list_trainers,
    path,
    preprocess,
    profile,
    rank,
    report,
    split,
    tune,
)
from nnunetv2_micd.utils.errors import describe_error

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
    label,
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
    """End the process with a sentence instead of a traceback, whatever the user or the machine did wrong."""
    try:
        yield
    except (ValueError, NotImplementedError, OSError) as error:  # a trainer does not take all data
        sys.exit(f"error: {describe_error(error)}")
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        sys.exit(
            f"error: The memory is full{reason}; end other programs, or work with fewer processes or smaller images"
        )
    except ImportError as error:  # a library that is broken, or that the memory has no room for
        sys.exit(f"error: {error}; nnUNetv2_micd doctor says what is wrong with the installation")
    except KeyboardInterrupt:
        sys.exit("error: Interrupted; to go on, run the same command again")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; ``run`` of what it parses is the function to call."""
    parser = argparse.ArgumentParser(prog="nnUNetv2_micd", description="Semi-supervised training with nnU-Net.")
    parser.add_argument("--version", action="version", version=f"nnunetv2_micd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    return parser
