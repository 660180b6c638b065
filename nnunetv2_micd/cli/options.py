"""Options that several commands share."""

import argparse

DEFAULT_PLANS = "nnUNetPlans"
DEFAULT_TRAINER = "nnUNetTrainerMICD"
DEFAULT_BASELINE = "nnUNetTrainer"


def add_dataset(
    parser: argparse.ArgumentParser, text: str = "number or name of the dataset", required: bool = True
) -> None:
    """Add ``-d``."""
    parser.add_argument("-d", metavar="DATASET", required=required, help=text)


def add_configuration(
    parser: argparse.ArgumentParser, text: str = "configuration, such as 3d_fullres", required: bool = True
) -> None:
    """Add ``-c``, one configuration."""
    parser.add_argument("-c", metavar="CONFIG", required=required, help=text)


def add_plans(parser: argparse.ArgumentParser) -> None:
    """Add ``-p``."""
    parser.add_argument("-p", metavar="PLANS", default=DEFAULT_PLANS, help="name of the plans; default: %(default)s")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``-device``, named as in nnU-Net's commands."""
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cuda", help="default: %(default)s")


def add_seeds(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--seeds``."""
    parser.add_argument("--seeds", metavar="SEED", type=int, nargs="+", default=[0], help=f"{text}; default: 0")


def add_validation_share(parser: argparse.ArgumentParser) -> None:
    """Add ``--val``."""
    parser.add_argument("--val", metavar="FRACTION", type=float, default=0.2, help="share for validation; default: 0.2")
