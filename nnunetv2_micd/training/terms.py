"""What the columns of ``semi_supervised.csv`` are, in words for the legend of its plot."""

from typing import Final

DICE: Final = "mean_fg_dice"

WEIGHTS: Final = {
    "b": "weight of the unsupervised losses",
    "unsupervised_share": "their share of the whole loss",
}

LOSSES: Final = {
    "supervised": "labeled images, nnU-Net's loss",
    "supervised_b": "the same of network B",
    "mcpc": "each network follows the other, masked images",
    "cfc": "features of both networks agree",
    "cmd": "each network follows its own teacher",
    "consistency": "student follows teacher",
    "cps": "each network follows the other",
    "cps_labeled": "each follows the other, labeled images",
    "cps_unlabeled": "each follows the other, unlabeled images",
    "cps_a": "A follows the teacher of B",
    "cps_b": "B follows the teacher of A",
    **{
        f"displaced_{kind}_{name}": f"{name.upper()} on displaced images, {kind} view"
        for kind in ("weak", "strong")
        for name in "ab"
    },
    "copy_paste": "mixed images, the teacher's part",
    "high_level": "deep features of mixed images",
    "low_level": "shallow features of mixed images",
    "augmented": "labeled voxels, features shifted",
    "pseudo_label": "pseudo-labels",
    "pseudo_label_b": "pseudo-labels of network B",
    "review": "where the networks differ on labels",
    "weighted": "labeled voxels by uncertainty",
    "evidential": "evidence of both networks",
    "cosine": "two views of an image agree",
    "competition": "the better network teaches the other",
    "contrast": "features of a class apart from the rest",
    "feature_dropout": "weak view with dropped features",
    "strong_1": "first strong view",
    "strong_2": "second strong view",
    "position_contrast": "patches of the same place are alike",
    "case_contrast": "patches of the same image are alike",
    "refined": "refined labels of the teacher",
    **{f"augmented_{side}": f"image completed from the {side}" for side in ("left", "right")},
    **{f"mirror_{side}": f"symmetry, completed from the {side}" for side in ("left", "right")},
}

SHARES: Final = {
    "agreement": "both labels agree",
    "foreground": "foreground in the pseudo-labels",
    "foreground_teacher": "foreground in the teacher's labels",
    "foreground_pseudo_label": "foreground in the pseudo-labels",
    "foreground_a": "foreground that A sees",
    "foreground_b": "foreground that B sees",
    "confident": "confident voxels",
    "certain": "certain voxels",
    "a_is_better": "steps in which A is the better one",
    "reliability": "mean reliability of voxels",
    "pseudo_labeled": "share of the pseudo-labels in the loss",
    "low_confidence": "blocks of low confidence",
    "displaced": "displaced voxels",
    "kept": "pseudo-labels that are kept",
    "symmetric": "images with an ellipse",
    **{f"{label}_weight": f"mean weight of a pair, by {label}" for label in ("position", "case")},
    **{f"{label}_usable": f"usable patches, by {label}" for label in ("position", "case")},
}


def describe(column: str) -> str:
    """Return the words for a column and its name; of a method's own column only the name is known.

    Examples:
        >>> describe("agreement"), describe("mine")
        ('both labels agree (agreement)', 'mine')
    """
    words = {DICE: "network that predicts, on validation patches", **WEIGHTS, **LOSSES, **SHARES}.get(column)
    return column if words is None else f"{words} ({column})"


def is_share(column: str) -> bool:
    """Return True for a figure between 0 and 1 that is drawn beside the agreement."""
    return column in SHARES or column.startswith("foreground")
