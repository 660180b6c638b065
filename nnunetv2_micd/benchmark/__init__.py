"""Trains and tests several trainers on the same few labels, nnU-Net's own among them."""

from nnunetv2_micd.benchmark.grid import Grid
from nnunetv2_micd.benchmark.scheduler import run_benchmark
from nnunetv2_micd.benchmark.trainers import Length

__all__ = ["Grid", "Length", "run_benchmark"]
