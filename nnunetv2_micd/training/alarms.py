"""What a training notices going wrong: losses that are not finite, and a collapse of the deployed network."""

from collections.abc import Callable

MOST_SKIPPED = 20  # steps in a row whose losses are not finite
COLLAPSE = 0.7  # of the best online Dice


class Alarms:
    """Counts skipped steps and reports a collapse once.

    Args:
        log: prints a line to the training log.
    """

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.collapsed = False

    def step(self, iteration: int, finite: bool) -> None:
        """Note whether the losses of a step were finite; if not, it was skipped.

        Raises:
            RuntimeError: when too many steps in a row were skipped.
        """
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if not finite:
            self.skipped += 1
            self.log(f"Step {iteration} was skipped because a loss is not finite.")
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise RuntimeError(
                f"The losses of {MOST_SKIPPED} steps in a row are not finite, so the training stops; the last "
                f"checkpoint is whole. Look for broken images, lower the learning rate or the ramp_peak of the config."
            )

    def take_skipped(self) -> int:
        """Return how many steps were skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped

    def epoch(self, dice: float, best_dice: float, unsupervised_weight: float) -> None:
        """Warn when the deployed network has fallen far below its best while the unsupervised losses are on.

        Args:
            dice: nnU-Net's moving average of the online Dice.
            best_dice: the best one so far.
            unsupervised_weight: b(t).
        """
        if unsupervised_weight == 0 or self.collapsed or not dice < COLLAPSE * best_dice:
            return
        self.collapsed = True
        self.log(
            f"WARNING: the online Dice has fallen from {best_dice:.3f} to {dice:.3f} while the unsupervised losses are "
            f"on. Look at the pictures in unlabeled_patches; try a trainer whose config has a smaller ramp_peak, or "
            f"predict with checkpoint_best (-chk checkpoint_best.pth)."
        )
