"""What a training records: the figures of its steps and epochs, alarms, and pictures of unlabeled patches."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_micd.training.figures import plot_history, save_patches, write_csv
from nnunetv2_micd.training.step import Losses, as_error
from nnunetv2_micd.utils.distributed import mean_over_processes

MOST_SKIPPED = 20
"""Steps in a row whose losses or gradients are not finite, after which the training stops."""

COLLAPSE = 0.7
"""Share of the best online Dice below which the deployed network counts as collapsed."""

PICTURE_EVERY = 10
"""Epochs from one picture of unlabeled patches to the next."""

PATCHES_FOLDER = "unlabeled_patches"
"""Folder of these pictures, in that of the training."""


class Monitor:
    """The history of a training and its alarms.

    Args:
        log: Function that prints a line to the training log.

    Attributes:
        history: One row of named figures for each epoch.
        reference: Online Dice of each epoch of nnU-Net on the same labels, for the plot; empty if it is not known.
        watches_for_collapse: Whether a collapse of the deployed network is still to be reported; it is reported once.

    Examples:
        >>> monitor = Monitor(log=print)
        >>> losses = Losses({"supervised": torch.tensor(0.5)}, {"cmd": torch.tensor(1.0)})
        >>> row = monitor.record_step(0, losses, {}, unsupervised_weight=1.5, not_finite=torch.tensor(0))
        >>> row["unsupervised_share"]  # 1.5 * 1.0 beside 1 + 0.5
        np.float32(0.5)
    """

    def __init__(self, log: Callable[[str], None]):
        self.history: list[dict[str, float]] = []
        self.reference: Sequence[float] = ()
        self.watches_for_collapse = True
        self._log = log
        self._skipped = 0
        self._skipped_in_a_row = 0

    def record_step(
        self,
        iteration: int,
        losses: Losses,
        metrics: Mapping[str, Tensor],
        unsupervised_weight: float,
        not_finite: Tensor,
    ) -> dict[str, Any]:
        """Return the figures of a step as nnU-Net collects them; ``loss`` is the one it reports.

        Args:
            iteration: Number of the step, for the log.
            losses: Losses of the step, without graphs.
            metrics: Further figures of the step, scalars.
            unsupervised_weight: b(t).
            not_finite: Number of losses that are not finite, or 1 for gradients; if not 0, the step was skipped.

        Raises:
            RuntimeError: too many steps in a row were skipped.
        """
        named = {**losses.named, **metrics, "not_finite": not_finite}
        # One copy to the host for all of them: each waits until the device has finished the step.
        values = torch.stack([value.float() for value in named.values()]).cpu().numpy()
        record = dict(zip(named, values, strict=True))
        self._note_finite(iteration, not record.pop("not_finite"))
        # Those that are nnU-Net's own hold minus a Dice.
        errors = {name: as_error(record[name]) if "supervised" in name else record[name] for name in losses.named}
        supervised, unsupervised = (
            sum(losses.shares.get(name, 1) * errors[name] for name in group)
            for group in (losses.supervised, losses.unsupervised)
        )
        unsupervised = unsupervised_weight * unsupervised
        share = unsupervised / max(unsupervised + supervised, 1e-8)
        # A pre-training on unlabeled images has no supervised loss.
        loss = record[next(iter(losses.supervised))] if losses.supervised else unsupervised
        return {"loss": loss, **record, "b": unsupervised_weight, "unsupervised_share": share}

    def _note_finite(self, iteration: int, finite: bool) -> None:
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if not finite:
            self._skipped += 1
            self._log(f"Step {iteration} was skipped because a loss or gradient is not finite.")
        if self._skipped_in_a_row == MOST_SKIPPED:
            raise RuntimeError(
                f"Losses or gradients of {MOST_SKIPPED} steps in a row are not finite, so the training stops; the last "
                f"checkpoint is whole. Look for broken images, lower the learning rate or the ramp_peak of the config."
            )

    def end_training_steps(self, epoch: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Begin the row of an epoch with the means of its steps; a figure that is not finite does not count."""
        row: dict[str, float] = {}
        for name in dict.fromkeys(name for record in records for name in record if name != "loss"):
            values = [record[name] for record in records if name in record and np.isfinite(record[name])]
            row[name] = float(np.mean(values)) if values else float("nan")
        row["skipped_steps"], self._skipped = self._skipped, 0
        # A continued training repeats the epoch in which it was interrupted.
        self.history = [*self.history[:epoch], {"epoch": epoch, **mean_over_processes(row)}]

    def end_epoch(self, dice: float) -> dict[str, float]:
        """Complete the row of the epoch with the online Dice, log it, and return its figures."""
        row = self.history[-1]
        row["mean_fg_dice"] = dice
        figures = {name: value for name, value in row.items() if name != "epoch"}
        self._log(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        return figures

    def summary(self, seconds: float) -> str:
        """Return a sentence on the whole training.

        Args:
            seconds: Time of all epochs.
        """
        text = f"Trained {len(self.history)} epochs in {seconds / 60:.0f} minutes"
        rows = [row for row in self.history if "mean_fg_dice" in row]
        if not rows:
            return text + "."
        text += f"; online Dice of the network that predicts: {_mean_dice(rows):.3f} at the end"
        # What methods report only of unlabeled images.
        used = [any(name in row for name in ("agreement", "foreground_teacher", "foreground")) for row in rows]
        if True in used[1:] and not used[0]:
            start = used.index(True)
            text += f", {_mean_dice(rows[:start]):.3f} before it learned from unlabeled images (epoch {start - 1})"
        if "agreement" in rows[-1]:
            text += f"; agreement on unlabeled voxels: {rows[-1]['agreement']:.2f}"
        return text + "."

    def watch_for_collapse(self, dice: float, best_dice: float) -> None:
        """Warn once when the deployed network has fallen far below its best while unsupervised losses are on.

        Args:
            dice: nnU-Net's moving average of the online Dice.
            best_dice: The best one so far.
        """
        row = self.history[-1]
        # Without a supervised loss, in a pre-training, the Dice is that of chance.
        is_both = row["b"] > 0 and "supervised" in row
        if not (self.watches_for_collapse and is_both and dice < COLLAPSE * best_dice):
            return
        self.watches_for_collapse = False
        weighs = row.get("unsupervised_share", 0) > 0
        weaker = "try a trainer whose config has a smaller ramp_peak, or " if weighs else ""
        self._log(
            f"WARNING: the online Dice has fallen from {best_dice:.3f} to {dice:.3f} in a training with unlabeled "
            f"images. Look at the pictures in unlabeled_patches; {weaker}predict with checkpoint_best "
            "(-chk checkpoint_best.pth)."
        )

    def write(
        self,
        folder: str,
        draw_patches: Callable[[], Mapping[str, Tensor]] | None,
        cases: Sequence[str] = (),
        names: Mapping[int, str] = {},
    ) -> str | None:
        """Write the history as a table and a plot, and a picture of unlabeled patches.

        No error in this ends the training: it is logged.

        Args:
            folder: Results folder of the training.
            draw_patches: Function that returns the panels of the picture; None if there is none to draw.
            cases: Name of the image of each patch.
            names: Name of each label.

        Returns:
            Path of the picture, None if there is none.
        """
        epoch = int(self.history[-1]["epoch"])
        try:
            write_csv(self.history, os.path.join(folder, "semi_supervised.csv"))
            plot_history(self.history, os.path.join(folder, "semi_supervised.png"), self.reference)
            if draw_patches is not None:
                path = os.path.join(folder, PATCHES_FOLDER, f"epoch_{epoch:04d}.png")
                save_patches(draw_patches(), path, f"Unlabeled images after epoch {epoch}", cases, names)
                return path
        except Exception as error:  # a full disk, a table that is open elsewhere, or whatever a drawing raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._log(f"The figures of epoch {epoch} could not be written, the training goes on ({reason})")
        return None


def _mean_dice(rows: Sequence[Mapping[str, float]]) -> float:
    """Return the mean online Dice of the last epochs, as that of a single one is noisy."""
    return float(np.mean([row["mean_fg_dice"] for row in rows[-5:]]))
