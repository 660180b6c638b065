"""What to train on a dataset, from what was measured on others with about as many labels."""

import math
from dataclasses import dataclass

RECOMMENDED = "nnUNetTrainerBCP_half"


@dataclass(frozen=True)
class Measurement:
    """The gain of a trainer over nnU-Net on one dataset. Dice in points of percent.

    Attributes:
        data: The dataset, as a reader knows it.
        labeled: Labeled cases.
        unlabeled: Unlabeled cases.
        trainer: The trainer.
        gain: Its Dice minus that of nnU-Net, trained at least as long in time if that was measured.
        low, high: 95 % interval of the gain.
        is_equal_time: Whether nnU-Net had at least as much time.
        from_images: Its Dice minus that of the best control, which is the part that the unlabeled images gave.
        page: Page with the figures, in ``docs/results``.
    """

    data: str
    labeled: int
    unlabeled: int
    trainer: str
    gain: float
    low: float
    high: float
    is_equal_time: bool
    from_images: float
    page: str

    def __str__(self) -> str:
        time = "of the same time" if self.is_equal_time else "of the same steps"
        return (
            f"{self.gain:+.1f} points of Dice ({self.low:+.1f} to {self.high:+.1f}) over nnU-Net {time} with "
            f"{self.labeled} labeled and {self.unlabeled} unlabeled cases of {self.data} (docs/results/{self.page})"
        )


MEASURED: tuple[Measurement, ...] = ()


def advise(labeled: int, unlabeled: int) -> str:
    """Return a sentence or two: what to train, and the measurement on which this rests.

    Args:
        labeled: Number of labeled training cases.
        unlabeled: Number of unlabeled cases.
    """
    nearest = min(MEASURED, key=lambda each: abs(math.log(each.labeled / labeled)))
    if not unlabeled:
        return f"train nnU-Net: there are no unlabeled images to learn from; with some, {RECOMMENDED} had {nearest}"
    doubt = "" if labeled <= 4 * nearest.labeled else "; nothing was measured with as many labels as here"
    if nearest.low <= 0:
        return f"train nnU-Net, longer rather than with unlabeled images: {nearest.trainer} had {nearest}{doubt}"
    return f"try -tr {nearest.trainer}: it had {nearest}{doubt}; other data may gain more, or nothing"
