"""What to run with so many labeled and unlabeled images, and what was measured with about as many."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, log, nan

from nnunetv2_micd.doctor.finding import Finding
from nnunetv2_micd.utils.wording import counted

FAR = 2
"""Factor in the number of labeled images up to which a measurement is shown for another number."""

LONG = 3200
"""Steps from which a measurement recommends a trainer: in short trainings other methods win."""


@dataclass(frozen=True)
class Measurement:
    """A gain in Dice that a table in ``docs/results`` shows.

    Attributes:
        data: Noun for one image of the measurement.
        labeled: Number of labeled images.
        unlabeled: Number of unlabeled images that the trainer used.
        trainer: Trainer, without ``nnUNetTrainer``.
        over_nnunet: Difference to nnU-Net in equal steps, in points, with its 95 % interval; the interval is
            NaN where none was computed.
        over_control: Difference to the best control, likewise; None where there was none.
        table: Folder in ``docs/results``.
        budget: Name of the number of labels in that table.
        steps: Length of the trainings.
        trainings: Number of trainings of each, with different labeled images or another randomness.
        only_for: Images that the trainer is made for, if not all.
        doubt: What speaks against the figures, if anything does.
    """

    data: str
    labeled: int
    unlabeled: int
    trainer: str
    over_nnunet: tuple[float, float, float]
    over_control: tuple[float, float, float] | None
    table: str
    budget: str
    steps: int
    trainings: int = 3
    only_for: str = ""
    doubt: str = ""

    @property
    def has_gained(self) -> bool:
        """Whether the interval of the difference to nnU-Net lies above zero."""
        return self.over_nnunet[1] > 0

    @property
    def needs_control(self) -> bool:
        """Whether it is not shown that the unlabeled images add to the control."""
        return self.over_control is not None and self.over_control[1] <= 0

    @property
    def decides(self) -> bool:
        """Whether it decides about its trainer for about as many labeled images of any kind."""
        return not self.only_for and self.steps >= LONG

    @property
    def line(self) -> str:
        """The measurement in one line."""
        gains = [
            f"{gain:+.1f}" if isnan(low) else f"{gain:+.1f} ({low:.1f} to {high:.1f})"
            for gain, low, high in filter(None, (self.over_nnunet, self.over_control))
        ]
        trainer = f"{self.trainer} ({self.only_for} only)" if self.only_for else self.trainer
        images = f"{counted(self.labeled, self.data)}, {self.unlabeled or 'none'} unlabeled, {self.steps} steps"
        images += f", {counted(self.trainings, 'training')}"
        doubt = f" ({self.doubt})" if self.doubt else ""
        return f"{trainer}, {images}: {' | '.join(gains)}{doubt} [docs/results/{self.table}]"


MEASUREMENTS = (
    Measurement("heart", 6, 134, "SelfTraining", (21.8, 17.3, 26.4), (5.1, 3.6, 6.7), "acdc", "f0", 3200),
    Measurement("heart", 6, 0, "SelfTraining_LabeledOnly", (16.7, 13.2, 20.3), None, "acdc", "f0", 3200),
    Measurement("heart", 14, 126, "SelfTraining", (5.9, 3.9, 8.2), (0.2, -0.4, 0.8), "acdc", "f1", 3200),
    Measurement("heart", 14, 0, "SelfTraining_LabeledOnly", (5.7, 3.6, 8.0), None, "acdc", "f1", 3200),
    Measurement("heart", 20, 120, "SelfTraining", (2.3, 0.7, 4.0), (0.7, -0.4, 1.8), "acdc/ten_patients", "10", 3200),
    Measurement("heart", 20, 0, "SelfTraining_LabeledOnly", (1.6, 0.9, 2.4), None, "acdc/ten_patients", "10", 3200),
    Measurement(
        *("heart", 40, 100, "SelfTraining", (0.4, -1.0, 2.0), (-0.6, -1.4, 0.3)),
        *("acdc/twenty_patients", "20", 3200),
    ),
    Measurement(
        *("heart", 40, 0, "SelfTraining_LabeledOnly", (1.0, -0.2, 2.3), None, "acdc/twenty_patients", "20", 3200),
    ),
    Measurement(
        *("fetal head", 12, 777, "SelfTraining", (2.9, 1.5, 4.4), (1.0, 0.4, 1.7)),
        *("self_training_elsewhere/fetal_heads", "10", 3200),
    ),
    Measurement(
        *("fetal head", 12, 0, "SelfTraining_LabeledOnly", (1.9, 0.9, 3.0), None),
        *("self_training_elsewhere/fetal_heads", "10", 3200),
        doubt="p 0.14: nnU-Net fails on a few images and is a little better on many others",
    ),
    Measurement(
        *("fetal head", 25, 764, "SelfTraining", (1.3, 0.4, 2.3), (0.8, 0.3, 1.6)),
        *("self_training_elsewhere/fetal_heads_20", "20", 3200),
        doubt="p 0.24: nnU-Net fails on a few images and is a little better on most others",
    ),
    Measurement(
        *("fetal head", 25, 0, "SelfTraining_LabeledOnly", (0.5, 0.0, 0.9), None),
        *("self_training_elsewhere/fetal_heads_20", "20", 3200),
    ),
    Measurement(
        *("hippocampus volume", 1, 159, "SelfTraining", (4.2, 3.5, 5.0), (2.8, 2.0, 3.6)),
        *("self_training_elsewhere/hippocampus", "1", 3200, 2),
    ),
    Measurement(
        *("hippocampus volume", 1, 0, "SelfTraining_LabeledOnly", (1.4, 0.5, 2.4), None),
        *("self_training_elsewhere/hippocampus", "1", 3200, 2),
    ),
    Measurement(
        *("hippocampus volume", 1, 159, "SelfTraining", (1.9, 0.9, 2.9), (7.6, 6.1, 9.3)),
        *("self_training_elsewhere/hippocampus_third_draw", "1", 3200, 1),
    ),
    Measurement(
        *("hippocampus volume", 1, 0, "SelfTraining_LabeledOnly", (-5.7, -7.4, -4.2), None),
        *("self_training_elsewhere/hippocampus_third_draw", "1", 3200, 1),
    ),
    Measurement(
        *("hippocampus volume", 2, 158, "SelfTraining", (0.9, 0.5, 1.4), (1.2, 0.9, 1.5)),
        *("self_training_elsewhere/hippocampus_2_labels", "2", 3200),
    ),
    Measurement(
        *("hippocampus volume", 2, 0, "SelfTraining_LabeledOnly", (-0.3, -0.7, 0.2), None),
        *("self_training_elsewhere/hippocampus_2_labels", "2", 3200),
    ),
    Measurement(
        *("hippocampus volume", 1, 159, "SelfTraining", (-5.2, -6.3, -4.1), (-3.5, -4.1, -2.9)),
        *("hippocampus_1_label_self_training", "1", 300),
    ),
    Measurement(
        *("hippocampus volume", 1, 159, "MICD", (3.5, 2.9, 4.1), (3.3, 2.7, 3.9)),
        *("hippocampus_1_label", "1", 300),
    ),
    Measurement("hippocampus volume", 10, 150, "SelfTraining", (-1.2, nan, nan), None, "chosen_labels", "10", 800),
    Measurement("hippocampus volume", 2, 158, "MICD", (-0.2, -0.5, 0.0), None, "hippocampus_300_steps", "2", 300),
    Measurement("hippocampus volume", 6, 154, "MICD", (-0.5, -0.7, -0.3), None, "hippocampus_300_steps", "6", 300),
    Measurement(
        *("fetal head", 12, 777, "ERSR", (1.0, 0.5, 1.6), (1.3, 0.8, 1.9)),
        *("fetal_heads/mended_filter", "10", 300),
        only_for="one object in 2D",
    ),
    Measurement(
        *("fetal head", 22, 767, "ERSR", (1.2, 0.8, 1.6), (1.1, 0.7, 1.5), "fetal_heads", "20", 300),
        only_for="one object in 2D",
        doubt="unreliable: its filter had a fault",
    ),
)
"""Of the recommended trainer and its control, and of MICD and ERSR in short trainings; small networks on CPUs."""


def advise(labeled: int, unlabeled: int) -> Finding:
    """Return what to train with so many images, with the nearest measurements.

    The long trainings with the nearest number of labeled images decide about a trainer: all of them must have gained
    over nnU-Net. Beyond the largest number with which any trainer gained, nothing is recommended.

    Args:
        labeled: Number of labeled training images.
        unlabeled: Number of unlabeled images.

    Examples:
        >>> advise(labeled=6, unlabeled=100).text
        'with 6 labeled and 100 unlabeled images: -tr nnUNetTrainerSelfTraining'
    """
    images = f"with {labeled} labeled and {unlabeled or 'no'} unlabeled images"

    def distance(one: Measurement) -> float:
        return abs(log(one.labeled / labeled))

    # What needs no unlabeled image can be trained with some as well.
    near = [one for one in MEASUREMENTS if distance(one) <= log(FAR) and (unlabeled > 0 or one.unlabeled == 0)]
    if not near:
        text = f"{images}: nnU-Net itself first; with about as many labels nothing was measured"
        return Finding("ok", "advice", text)
    # Where there are unlabeled images, a trainer that uses them comes before its control.
    near.sort(key=lambda one: (one.unlabeled == 0 < unlabeled, distance(one), -one.over_nnunet[0]))
    nearest: dict[tuple[str, str, int], int] = {}
    for one in near:
        nearest.setdefault((one.data, one.trainer, one.steps), one.labeled)

    def is_nearest(one: Measurement) -> bool:
        return one.labeled == nearest[one.data, one.trainer, one.steps]

    lines = [
        "measured with small networks, points of Dice (95 % interval): over nnU-Net | over the best control beside it",
        f"only trainings of {LONG} steps and more count for the advice, which is given where the interval of the gain "
        "over nnU-Net lies above 0.0; shorter ones are listed below them",
        *(one.line for one in sorted(near, key=lambda one: not one.decides) if is_nearest(one)),
        "the intervals are about other test images, not about other labeled ones",
        "the gain depends on the images as well as on their number: compare on yours with nnUNetv2_micd benchmark; "
        "docs/how_to/choose_a_trainer.md goes by the kind of images as well",
    ]
    trainer = _choose([one for one in near if one.decides], labeled)
    return Finding("ok", "advice", f"{images}: {trainer}", "\n".join(lines))


def _choose(measurements: Sequence[Measurement], labeled: int) -> str:
    """Return the first trainer whose nearest measurements, which come first, have all gained."""
    if labeled <= max((one.labeled for one in MEASUREMENTS if one.decides and one.has_gained), default=0):
        for trainer in dict.fromkeys(one.trainer for one in measurements):
            of_trainer = [one for one in measurements if one.trainer == trainer]
            nearest = [one for one in of_trainer if one.labeled == of_trainer[0].labeled]
            if all(one.has_gained for one in nearest):
                control = f"{trainer}_LabeledOnly"
                has_control = any(one.trainer == control for one in measurements)
                as_good = has_control and any(one.needs_control for one in nearest)
                return f"-tr nnUNetTrainer{trainer}" + (f", or its control nnUNetTrainer{control}" if as_good else "")
    return "nnU-Net itself"
