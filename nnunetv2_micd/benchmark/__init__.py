"""Trains and tests several trainers on the same few labels, nnU-Net's own among them."""

from nnunetv2_micd.benchmark.grid import Grid
from nnunetv2_micd.benchmark.scheduler import run_benchmark, run_tuning
from nnunetv2_micd.benchmark.trainers import CONTROLS, Length

__all__ = ["CONTROLS", "Grid", "Length", "run_benchmark", "run_tuning"]
