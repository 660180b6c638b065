"""The sentences of the report: facts about the runs, what restricts a comparison, and how the numbers are computed."""

from collections.abc import Sequence

from nnunetv2_micd.report.comparisons import EQUAL_TIME
from nnunetv2_micd.report.runs import FinishedRun, display_name
from nnunetv2_micd.report.scores import RULE_FOR_EMPTY_MASKS
from nnunetv2_micd.report.statistics import BOOTSTRAP_SAMPLES
from nnunetv2_micd.training.registry import STOCK


def find_caveats(runs: Sequence[FinishedRun]) -> list[str]:
    """Return what a reader of the tables has to know about these runs."""
    caveats = []
    transductive = sorted({run.trainer for run in runs if run.settings.transductive})
    if transductive:
        names = ", ".join(map(display_name, transductive))
        caveats.append(f"Transductive: test images were among the unlabeled images of {names}, marked with †.")
    if len({(run.result.machine, run.result.device) for run in runs}) > 1:
        caveats.append("The runs come from several machines or devices: their times and memory are not comparable.")
    for package in sorted({name for run in runs for name in run.result.versions}):
        versions = sorted({str(run.result.versions.get(package)) for run in runs})
        if len(versions) > 1:
            caveats.append(f"The runs were made with several versions of {package}: {', '.join(versions)}.")
    caveats += _missing_seeds(runs)
    if not any(run.trainer == STOCK for run in runs):
        caveats.append("There are no runs of the baseline, so there is nothing to test the methods against.")
    return caveats


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
                f"There is no run of {display_name(trainer)} with {budget} labeled and seed "
                f"{', '.join(map(str, missing))}, but of other methods."
            )
    return sentences


def describe(runs: Sequence[FinishedRun], tolerance: float, baseline: str) -> dict[str, str]:
    """Return what all the runs have in common."""
    settings = runs[0].settings
    versions = {f"{name} {version}" for run in runs for name, version in run.result.versions.items()}
    return {
        "Baseline, called nnU-Net": baseline,
        "Dataset": settings.dataset,
        "Configuration and plans": f"{settings.configuration}, {settings.plans}",
        "Training": f"{settings.epochs} epochs of {settings.iterations} iterations, final checkpoint",
        "Test cases": f"{len(runs[0].cases)}, from {settings.test_images or 'the validation cases of the folds'}",
        "Runs": str(len(runs)),
        "Surface Dice tolerance": f"{tolerance:g} mm",
        "Machines": "; ".join(sorted({run.result.machine for run in runs})),
        "Versions": ", ".join(sorted(versions)),
    }


def list_rules(tolerance: float) -> list[str]:
    """Return how the numbers in the report are computed."""
    return [
        "A run is scored on its test cases with the segmentations of its final checkpoint, in the geometry of the "
        "images: distances are in mm. Classes are those that nnU-Net evaluates (regions if the dataset has some). "
        "Voxels with the ignore label in the truth are left out of truth and prediction.",
        RULE_FOR_EMPTY_MASKS,
        "Dice: overlap of the masks. NSD: normalized surface Dice, the share of both surfaces that lies within "
        f"{tolerance:g} mm of the other. HD95: 95th percentile of the distances between the surfaces, the larger of "
        "the two directions. ASD: mean of these distances, both directions together.",
        "Tables: the score of a run for a class is the mean over its test cases, its mean score is the mean over the "
        "classes. The tables show mean and standard deviation over the seeds, each of which has other labeled cases, "
        "unless a fold names them. Counts of empty masks are over all test cases, classes and seeds.",
        "Tests: the score of a case is the mean over its classes and then over the seeds that both methods have. A "
        "case that is not scored for one of the two is left out, so the number of cases is given. The p-value is from "
        "the two-sided Wilcoxon signed-rank test. It is also given with Holm's correction over all comparisons of the "
        "metric. The interval is the 95 % percentile bootstrap of the mean difference to the baseline with the same "
        f"labels ({BOOTSTRAP_SAMPLES} draws of cases). It reflects variation between test cases; variation between "
        "labeled sets is shown by the standard deviation.",
        "At equal time: if the baseline was also trained longer, each method is tested against the shortest of these "
        f"trainings that took at least {EQUAL_TIME:.0%} of the method's time, or the longest if all took less. Holm's "
        "correction is over the rows of that table.",
        "Training and prediction time are means over the seeds; memory is the largest of all seeds.",
    ]
