"""Chooses the unsupervised weight of a trainer by its scores on cases that no benchmark reports.

Each weight is a factor: the published weight times 1/3, 1 or 3. All are trained with the same labeled cases, and the
one with the best mean of nnU-Net's own validation Dice is chosen.
"""

import csv
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from statistics import fmean

from nnunetv2_micd.benchmark.folds import read_entry
from nnunetv2_micd.benchmark.records import PUBLISHED, Record, Run, read_record
from nnunetv2_micd.data.results import results_root
from nnunetv2_micd.data.splits import Entry
from nnunetv2_micd.utils.files import atomic, read_json

DEFAULT_WEIGHTS = ("1/3", PUBLISHED, "3")


def parse_weights(weights: Iterable[str]) -> list[str]:
    """Return weights in their order of size and in lowest terms, each once.

    Raises:
        ValueError: One is not a positive number, or the published weight or any other is missing.

    Examples:
        >>> parse_weights(["3", "1", "2/6", "0.5"])
        ['1/3', '1/2', '1', '3']
    """
    parsed = _sort({_parse_weight(weight) for weight in weights})
    if PUBLISHED not in parsed or len(parsed) == 1:
        raise ValueError(
            f"The weights to choose from must be {PUBLISHED}, the published one, and others, not {' '.join(parsed)}"
        )
    return parsed


def _sort(weights: Iterable[Fraction]) -> list[str]:
    return [str(weight) for weight in sorted(weights)]


def _parse_weight(weight: str) -> Fraction:
    try:
        fraction = Fraction(weight)
        if not 0 < float(fraction) < math.inf:
            raise ValueError
    except (ValueError, ArithmeticError):
        raise ValueError(f'A weight must be a positive number such as "3" or "1/3", not "{weight}"') from None
    return fraction


@dataclass(frozen=True)
class Setting:
    """Everything for which a weight is chosen.

    Attributes:
        dataset: Full name of the dataset.
        configuration: Name of the configuration.
        plans: Name of the plans.
        plans_hash: See `records.Run`.
        trainer: Name of the trainer.
        budget: Number of labeled cases, as the user wrote it.
        epochs: Number of epochs.
        iterations: Number of iterations in an epoch.
        config: The trainer's own settings, see `records.Run`.
        validation: Validation cases of the tuning.
        others: Labeled and unlabeled cases of the tuning. Which of them are labeled depends on the seed.
    """

    dataset: str
    configuration: str
    plans: str
    plans_hash: str
    trainer: str
    budget: str
    epochs: int
    iterations: int
    config: str
    validation: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, entry: Entry) -> "Setting":
        """Return the setting of a run with the cases of its fold."""
        return cls(
            dataset=run.dataset,
            configuration=run.configuration,
            plans=run.plans,
            plans_hash=run.plans_hash,
            trainer=run.trainer,
            budget=run.budget,
            epochs=run.epochs,
            iterations=run.iterations,
            config=run.config,
            **divide(entry),
        )


def divide(entry: Entry) -> dict[str, tuple[str, ...]]:
    """Return the cases of a tuning's fold as the fields of a :class:`Setting`."""
    others = sorted([*entry["train"], *entry["unlabeled"]])
    return {"validation": tuple(sorted(entry["val"])), "others": tuple(others)}


@dataclass(frozen=True)
class Tuning:
    """The runs that serve to choose the weight in a setting.

    Attributes:
        setting: The setting.
        records: Records of its runs, also of those that are not done.
    """

    setting: Setting
    records: tuple[Record, ...]

    @property
    def seeds(self) -> list[int]:
        """All seeds, sorted."""
        return sorted({record.run.seed for record in self.records})

    @property
    def weights(self) -> list[str]:
        """All weights, sorted."""
        return _sort({Fraction(record.run.weight) for record in self.records})

    @property
    def is_complete(self) -> bool:
        """Whether there are several weights, and every weight was trained to the end with every seed."""
        done = {(record.run.weight, record.run.seed) for record in self.records if record.result.status == "done"}
        return len(self.weights) > 1 and done == {(weight, seed) for weight in self.weights for seed in self.seeds}

    @cached_property
    def scores(self) -> dict[str, float]:
        """Mean Dice over the seeds by weight.

        Raises:
            ValueError: A run has no Dice.
        """
        return {
            weight: fmean(_read_dice(record.run) for record in self.records if record.run.weight == weight)
            for weight in self.weights
        }

    @property
    def chosen(self) -> str:
        """The weight with the highest score, of several the one that is nearest to the published one."""
        return min(self.weights, key=lambda weight: (-self.scores[weight], abs(math.log(Fraction(weight)))))


def _read_dice(run: Run) -> float:
    """Return nnU-Net's mean Dice over the classes of the validation cases."""
    path = run.folder / "validation" / "summary.json"
    try:
        dice = float(read_json(path)["foreground_mean"]["Dice"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is missing or damaged; delete the folder {run.folder} and repeat the tuning"
        ) from None
    if not math.isfinite(dice):
        raise ValueError(
            f"{path} has no Dice, as a class is in no validation case; tune and benchmark with more of them, with the "
            "same --val"
        )
    return dice


def read_tunings(dataset_name: str, configuration: str, plans: str) -> dict[Setting, Tuning]:
    """Return the tunings of a dataset with a configuration and plans, by their settings.

    Runs of which the fold has changed since, such as by new labels, are those of another setting, and are left out.

    Raises:
        ValueError: A record is damaged.
    """
    found: dict[Setting, list[Record]] = {}
    for path in sorted((results_root() / dataset_name).glob(f"*__{plans}__{configuration}/fold_*/benchmark.json")):
        record = read_record(path.parent)
        if record is None or not record.run.is_tuning:
            continue
        try:
            entry = read_entry(record.run)
        except ValueError as error:
            print(f"Not taken into account: {error}", file=sys.stderr)
            continue
        found.setdefault(Setting.of(record.run, entry), []).append(record)
    return {setting: Tuning(setting, tuple(records)) for setting, records in found.items()}


def list_to_complete(tunings: Sequence[Tuning], seeds: Iterable[int]) -> dict[str, list[str]]:
    """Return trainers, budgets, seeds and weights that complete tunings, by the option of ``nnUNetv2_micd tune``.

    Args:
        tunings: The tunings.
        seeds: Seeds for tunings without any run.
    """
    weights = _all_weights(tunings)
    return {
        "-tr": list(dict.fromkeys(tuning.setting.trainer for tuning in tunings)),
        "-n": list(dict.fromkeys(tuning.setting.budget for tuning in tunings)),
        "--seeds": [str(seed) for seed in sorted({seed for tuning in tunings for seed in tuning.seeds} or {*seeds})],
        "--weights": weights if len(weights) > 1 else list(DEFAULT_WEIGHTS),
    }


def format_tunings(tunings: Sequence[Tuning]) -> str:
    """Return a table of the scores and the choices, for a terminal."""
    weights = _all_weights(tunings)
    rows = [["trainer", "labeled", *(f"x {weight}" for weight in weights), "chosen"]]
    for tuning in tunings:
        scores = [f"{tuning.scores[weight]:.4f}" if weight in tuning.scores else "" for weight in weights]
        rows.append([tuning.setting.trainer, tuning.setting.budget, *scores, tuning.chosen])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def write_tunings(tunings: Sequence[Tuning]) -> Path:
    """Write a table of tunings with the same configuration and plans beside the results; return its path."""
    weights = _all_weights(tunings)
    first = tunings[0].setting
    path = results_root() / first.dataset / f"tuning__{first.plans}__{first.configuration}.csv"
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        names = ["configuration", "plans", "trainer", "budget", "epochs", "iterations"]
        table = csv.writer(file)
        table.writerow([*names, "num_validation", "seeds", *(f"dice_weight_{weight}" for weight in weights), "chosen"])
        for tuning in tunings:
            table.writerow(
                [
                    *(getattr(tuning.setting, name) for name in names),
                    len(tuning.setting.validation),
                    " ".join(map(str, tuning.seeds)),
                    *(tuning.scores.get(weight, "") for weight in weights),
                    tuning.chosen,
                ]
            )
    return path


def _all_weights(tunings: Iterable[Tuning]) -> list[str]:
    return _sort({Fraction(weight) for tuning in tunings for weight in tuning.weights})
