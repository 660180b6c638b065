"""The weights that tunings have chosen for the trainers of a benchmark, and the commands for tunings that it lacks."""

from collections.abc import Sequence

from nnunetv2_micd.benchmark.folds import tuning_entry
from nnunetv2_micd.benchmark.grid import Grid
from nnunetv2_micd.benchmark.records import ALL_LABELS, PUBLISHED
from nnunetv2_micd.benchmark.trainers import Competitor
from nnunetv2_micd.benchmark.tuning import Setting, Tuning, divide, list_to_complete, read_tunings
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.splits import Entry
from nnunetv2_micd.utils.files import shorten
from nnunetv2_micd.utils.wording import counted


def find_tuned(
    grid: Grid, dataset: Dataset, cases: Sequence[str], competitors: Sequence[Competitor], plans_hash: str
) -> dict[tuple[str, str], list[Competitor]]:
    """Return, by trainer and budget, the trainer with the weight that a tuning has chosen, unless that is its own.

    Args:
        grid: The grid.
        dataset: The dataset.
        cases: All preprocessed labeled cases, sorted.
        competitors: The trainers; those without unsupervised weight are left out.
        plans_hash: See `records.Run`.

    Raises:
        ValueError: A tuning is missing or incomplete. The message has the command for it.
    """
    tunings = read_tunings(dataset.name, grid.configuration, grid.plans)
    tuned: dict[tuple[str, str], list[Competitor]] = {}
    missing = []
    for competitor in competitors:
        for budget in dict.fromkeys(grid.budgets):
            if budget == ALL_LABELS or not (competitor.needs_unlabeled and competitor.has_weight):
                continue
            entry = tuning_entry(dataset, cases, budget, grid.seeds[0], grid.val_fraction)
            setting = _setting(grid, dataset, competitor, budget, entry, plans_hash)
            tuning = tunings.get(setting, Tuning(setting, ()))
            if not tuning.is_complete:
                missing.append(tuning)
            elif tuning.chosen != PUBLISHED:
                tuned[competitor.trainer, budget] = [competitor.with_weight(tuning.chosen)]
    if missing:
        setting, state = missing[0].setting, "been tuned only in part" if missing[0].records else "not been tuned"
        raise ValueError(
            f"{setting.trainer} has {state} with {setting.budget} labeled{_name_failed(missing)}; run this first: "
            f"{_tune(grid, dataset, missing)}"
        )
    return tuned


def _name_failed(tunings: Sequence[Tuning]) -> str:
    """Return the folders of failed runs, which may fail again: without them, their weights are not part of a tuning."""
    records = [record for tuning in tunings for record in tuning.records]
    failed = [str(record.run.folder) for record in records if record.result.status == "failed"]
    return f" ({counted(len(failed), 'run')} failed; delete those that always do: {shorten(failed)})" if failed else ""


def _setting(
    grid: Grid, dataset: Dataset, competitor: Competitor, budget: str, entry: Entry, plans_hash: str
) -> Setting:
    return Setting(
        dataset=dataset.name,
        configuration=grid.configuration,
        plans=grid.plans,
        plans_hash=plans_hash,
        trainer=competitor.trainer,
        budget=budget,
        epochs=competitor.epochs,
        iterations=competitor.iterations,
        config=competitor.config,
        **divide(entry),
    )


def _tune(grid: Grid, dataset: Dataset, tunings: Sequence[Tuning]) -> str:
    """Return the commands that complete tunings: one for all that have no run yet, and one for each other."""
    groups = [[tuning for tuning in tunings if not tuning.records], *([each] for each in tunings if each.records)]
    return " && ".join(_tune_command(grid, dataset, group) for group in groups if group)


def _tune_command(grid: Grid, dataset: Dataset, tunings: Sequence[Tuning]) -> str:
    options: dict[str, Sequence[object]] = {
        "-d": [dataset.number],
        "-c": [grid.configuration],
        **list_to_complete(tunings, grid.seeds),
        "--val": [] if grid.val_fraction == Grid.val_fraction else [grid.val_fraction],
        "--epochs": [] if grid.length.epochs is None else [grid.length.epochs],
        "--iterations": [] if grid.length.iterations is None else [grid.length.iterations],
        "-p": [] if grid.plans == Grid.plans else [grid.plans],
    }
    words = (word for option, values in options.items() if values for word in (option, *map(str, values)))
    return " ".join(["nnUNetv2_micd tune", *words])
