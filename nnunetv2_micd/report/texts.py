"""The sentences of the report: facts about the runs, what restricts a comparison, and how the numbers are computed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from nnunetv2_micd.benchmark.records import PUBLISHED
from nnunetv2_micd.data.groups import GROUPS_FILE, group_cases
from nnunetv2_micd.report.comparisons import EQUAL_TIME
from nnunetv2_micd.report.runs import FinishedRun, display_name, name_of_usual
from nnunetv2_micd.report.scores import RULE_FOR_EMPTY_MASKS
from nnunetv2_micd.report.statistics import BOOTSTRAP_SAMPLES, LEVEL
from nnunetv2_micd.report.tables import Table
from nnunetv2_micd.training.registry import STOCK, find_trainer
from nnunetv2_micd.utils.files import shorten

MOST_TIME = 1.25
"""Factor by which the times of the same trainer may differ without a word."""


def find_caveats(runs: Sequence[FinishedRun], groups: Mapping[str, str]) -> list[str]:
    """Return what a reader of the tables has to know about these runs.

    Args:
        runs: The runs.
        groups: Group of each case, see `data.groups`; empty if there are none.
    """
    caveats = []
    transductive = sorted({run.trainer for run in runs if run.settings.transductive and not run.is_mean})
    if transductive:
        names = ", ".join(map(display_name, transductive))
        caveats.append(f"Transductive: test images were among the unlabeled images of {names}, marked with †.")
    if len({(run.result.machine, run.result.device) for run in runs}) > 1:
        caveats.append("The runs come from several machines or devices: their times and memory are not comparable.")
    else:
        caveats += _other_work(runs)
    for package in sorted({name for run in runs for name in run.result.versions}):
        versions = sorted({str(run.result.versions.get(package)) for run in runs})
        if len(versions) > 1:
            caveats.append(f"The runs were made with several versions of {package}: {', '.join(versions)}.")
    caveats += [*_missing_seeds(runs), *_several_pools(runs), *_several_tunings(runs), *_reconstructions(runs)]
    alone = sorted({case for run in runs for case in run.cases} - set(groups)) if groups else []
    if alone:
        caveats.append(
            f"{GROUPS_FILE} gives {len(alone)} of the test cases no group ({shorten(alone)}): the tests take each as "
            "independent; add them there."
        )
    if not any(run.trainer == STOCK for run in runs):
        caveats.append("There are no runs of the baseline, so there is nothing to test the methods against.")
    return caveats


def _several_pools(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a sentence for each budget whose runs had more or fewer images than others, labeled ones included."""
    pools: dict[str, set[int]] = {}
    for run in runs:
        if run.settings.num_unlabeled > 0:
            pools.setdefault(run.settings.budget, set()).add(len(run.settings.labeled) + run.settings.num_unlabeled)
    return [
        f"The runs with {budget} labeled learned from {' or '.join(map(str, sorted(sizes)))} images, labeled and "
        "unlabeled together: unlabeled images came or went in between."
        for budget, sizes in pools.items()
        if len(sizes) > 1
    ]


def _several_tunings(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a sentence for each method that has rows with several tuned weights."""
    weights: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        if run.settings.weight != PUBLISHED:
            weights.setdefault((run.settings.budget, run.settings.trainer), set()).add(run.settings.weight)
    return [
        f"{trainer} with {budget} labeled was tuned more than once, with the weights {' and '.join(sorted(each))}: "
        "move the runs of the earlier choice away."
        for (budget, trainer), each in weights.items()
        if len(each) > 1
    ]


def _other_work(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a sentence if an epoch of a trainer took much longer in some of its trainings than in others."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if run.result.training_seconds and not run.is_mean:
            name = name_of_usual(run.trainer)
            seconds.setdefault(name, []).append(run.result.training_seconds / run.settings.epochs)
    busy = {name: each for name, each in seconds.items() if max(each) > MOST_TIME * min(each)}
    if not busy:
        return []
    name = max(busy, key=lambda one: max(busy[one]) / min(busy[one]))
    return [
        f"An epoch of {display_name(name)} took {min(busy[name]):.3g} to {max(busy[name]):.3g} s, as if the machine "
        "had done other work in some of the trainings: do not rely on times, nor on what is said of equal time; "
        "nnUNetv2_micd profile compares the steps."
    ]


def _reconstructions(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a sentence about methods that were built without their authors' code."""
    names = [name for name, text in describe_methods(runs).rows if text.startswith("Reconstruction of ")]
    listed = ", ".join(map(display_name, sorted(names)))
    sentence = f"Reconstructions, because their authors published no code: {listed}. Their figures say nothing about "
    return [f"{sentence}the published ones."] if names else []


def _missing_seeds(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a sentence for each method that lacks seeds which others have with the same budget."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        seeds.setdefault((run.settings.budget, run.trainer), set()).add(run.settings.seed)
    sentences = []
    for (budget, trainer), seeds_of_method in seeds.items():
        all_seeds = set().union(*(others for (other, _), others in seeds.items() if other == budget))
        missing = sorted(all_seeds - seeds_of_method)
        if missing:
            sentences.append(
                f"{display_name(trainer)} has no run with {budget} labeled and "
                f"seed{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}; other methods have."
            )
    return sentences


def describe(runs: Sequence[FinishedRun], groups: Mapping[str, str], tolerance: float, baseline: str) -> dict[str, str]:
    """Return what all the runs have in common."""
    settings, cases = runs[0].settings, runs[0].cases
    of_groups = f" of {len(group_cases(cases, groups))} groups" if groups.keys() >= set(cases) else ""
    versions = {f"{name} {version}" for run in runs for name, version in run.result.versions.items()}
    return {
        "Baseline, called nnU-Net": baseline,
        "Dataset": settings.dataset,
        "Configuration and plans": f"{settings.configuration}, {settings.plans}",
        "Training": f"{settings.epochs} epochs of {settings.iterations} iterations, final checkpoint",
        "Test cases": f"{len(cases)}{of_groups}, from {settings.test_images or 'the validation cases of the folds'}",
        "Runs": str(len({run.folder for run in runs})),
        "Surface Dice tolerance": f"{tolerance:g} {runs[0].unit}",
        "Machines": "; ".join(sorted({run.result.machine for run in runs})),
        "Versions": ", ".join(sorted(versions)),
    }


def describe_methods(runs: Sequence[FinishedRun]) -> Table:
    """Return what each trainer is, by the first paragraph of its docstring; trainers that are gone have no row."""
    rows = []
    for name in dict.fromkeys(run.settings.trainer for run in runs):
        with suppress(ValueError):
            paragraph = (find_trainer(name).trainer_class.__doc__ or "").partition("\n\n")[0]
            rows.append([name, " ".join(paragraph.split())])
    return Table("The trainers", ["trainer", "what it is"], [row for row in rows if row[1]])


def list_rules(tolerance: float, unit: str) -> list[str]:
    """Return how the numbers in the report are computed."""
    return [
        "A run is scored on its test cases with the segmentations of its final checkpoint, in the geometry of the "
        f"images: distances are in {unit}. Classes are those that nnU-Net evaluates (regions if the dataset has "
        "some). Voxels with the ignore label in the truth are left out of truth and prediction.",
        RULE_FOR_EMPTY_MASKS,
        "Dice: overlap of the masks. NSD: normalized surface Dice, the share of both surfaces that lies within "
        f"{tolerance:g} {unit} of the other. HD95: 95th percentile of the distances between the surfaces, the larger "
        "of the two directions. ASD: mean of these distances, both directions together.",
        "Tables: the score of a run for a class is the mean over its test cases, its mean score is the mean over the "
        "classes. The tables show mean and standard deviation over the seeds, each of which has other labeled cases, "
        "unless a fold names them. Counts of empty masks are over all test cases, classes and seeds.",
        "Tests: the score of a case is the mean over its classes and then over the seeds that both methods have. A "
        "class that is absent for both is left out of a case; where only one of the two predicts it (a false alarm), "
        "the other counts as perfect there. Cases of one group, such as a patient, are not independent: "
        f"where {GROUPS_FILE} names groups, the score of a group is the mean over its cases, and n is the "
        "number of groups; otherwise n is the number of cases. The p-value is from the two-sided Wilcoxon signed-rank "
        "test. It is also given with Holm's correction over all comparisons of the metric. The interval is the 95 % "
        "expanded percentile bootstrap of the mean difference to the baseline with the same labels "
        f"({BOOTSTRAP_SAMPLES} draws of cases or groups). Interval and p are about other test cases, given these "
        "trainings. Other labeled cases, and other trainings, are not in them: the column of each seed shows the "
        "lowest and the highest difference that a seed has by itself.",
        "A control is another trainer that used no unlabeled images, such as nnU-Net with averaged weights. What a "
        "method gains over nnU-Net but not over a control need not come from the unlabeled images. Against the best "
        "control: each method is tested as against nnU-Net, but against the control with the highest mean Dice with "
        "the same labels, over the seeds that the controls with the most seeds have. As that control is chosen on the "
        "test cases, it is the harder opponent. A control that predicts with the mean of both networks is an opponent "
        "of methods that do so too.",
        "The best method is the one with the highest mean Dice with the same labels, over the seeds that the methods "
        "with the most seeds have; nnU-Net, the controls and tuned methods are not candidates. Its Dice is tested as "
        "above against that of each other method and control, with Holm's correction over the rows of that table. As "
        "the best method is chosen on the test cases, its lead is flattered: only a significant difference tells two "
        "methods apart.",
        "What can be claimed: these sentences are made from the tables and are about the Dice. Significant means that "
        f"p with Holm's correction is below {LEVEL:g}, and that the mean difference lies on the side of most of the "
        "ranks, on which the test is based (the pseudomedian of Hodges and Lehmann).",
        "At equal time: if the baseline or the best control was also trained longer, each method is tested against the "
        f"shortest of its trainings that took at least {EQUAL_TIME:.0%} of the method's time, or the longest if all "
        "took less. Holm's correction is over the rows of that table.",
        "Training and prediction time are means over the seeds; memory is the largest of all seeds.",
        "Rows named mean of both networks are the same trainings as the rows without these words, predicted with the "
        "mean of both networks; all others are predicted with one network. Rows named tuned (weight x 3) have three "
        "times the published weight of the unlabeled images; all others have the published weight. That weight was "
        "chosen with the labels of further cases, so these rows have used more labels than the others and are not "
        "tested.",
    ]
