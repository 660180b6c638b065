"""What to run with so many labeled and unlabeled images, and what was measured with about as many."""

from dataclasses import dataclass
from math import log

from nnunetv2_micd.doctor.finding import Finding

FAR = 2
"""Factor in the number of labeled images up to which a measurement says something about another number."""


@dataclass(frozen=True)
class Measurement:
    """A gain in Dice that a table in ``docs/results`` shows.

    Attributes:
        data: Images of the measurement.
        labeled: Number of labeled images.
        unlabeled: Number of unlabeled images.
        trainer: Best trainer, without ``nnUNetTrainer``; empty if none gained.
        over_nnunet: Difference to nnU-Net in equal steps, in points, with its 95 % interval.
        over_control: Difference to the best control, likewise.
        table: Folder in ``docs/results``.
        budget: Name of the number of labels in that table.
    """

    data: str
    labeled: int
    unlabeled: int
    trainer: str
    over_nnunet: tuple[float, float, float]
    over_control: tuple[float, float, float]
    table: str
    budget: str

    @property
    def sentence(self) -> str:
        """The measurement in a sentence without its end."""
        (gain, *interval), (by_images, *its_interval) = self.over_nnunet, self.over_control
        return (
            f"on {self.data} with {self.labeled} labeled and {self.unlabeled} unlabeled images it gained {gain:+.1f} "
            f"Dice points over nnU-Net ({_range(interval)}), and {by_images:+.1f} ({_range(its_interval)}) over the "
            f"best training without unlabeled images: docs/results/{self.table}"
        )


def _range(interval: list[float]) -> str:
    return f"95 % interval {interval[0]:.1f} to {interval[1]:.1f}"


MEASUREMENTS = (
    Measurement(
        "hippocampus volumes", 1, 159, "MICD", (3.5, 2.9, 4.1), (3.3, 2.7, 3.9), "hippocampus_1_label", budget="1"
    ),
)
"""One for each number of labels of each dataset; small networks and short trainings on processor cores."""


def advise(labeled: int, unlabeled: int) -> Finding:
    """Return what to train with so many images, with the nearest measurement.

    Args:
        labeled: Number of labeled training images.
        unlabeled: Number of unlabeled images.

    Examples:
        >>> advise(labeled=500, unlabeled=0).text
        'with 500 labeled and no unlabeled images: nnU-Net itself'
    """
    images = f"with {labeled} labeled and {unlabeled or 'no'} unlabeled images"
    if not unlabeled:
        return Finding("ok", "advice", f"{images}: nnU-Net itself")
    nearest = min(MEASUREMENTS, key=lambda one: (abs(log(one.labeled / labeled)), -one.over_control[0]))
    if labeled > FAR * nearest.labeled:
        text = f"{images}: nnU-Net itself first; what unlabeled images are worth with so many labels was not measured"
        return Finding("ok", "advice", text)
    return Finding("ok", "advice", f"{images}: -tr nnUNetTrainer{nearest.trainer}", nearest.sentence)
