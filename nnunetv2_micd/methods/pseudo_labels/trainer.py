"""Self-training with pseudo-labels: ST++ (L. Yang et al., CVPR 2022, https://arxiv.org/abs/2106.05095)."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunetv2_micd.augmentation.intensity import StrongView
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map
from nnunetv2_micd.methods.pseudo_labels.files import PseudoLabeledImages, build_pseudo_labeled_loader, write_stability
from nnunetv2_micd.methods.pseudo_labels.labeling import Weights, copy_weights, label_images, most_stable
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.loader import Origin
from nnunetv2_micd.training.networks import forward_to_logits, full_resolution
from nnunetv2_micd.training.step import Losses, as_error
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.ranges import Between


@dataclass(frozen=True)
class PseudoLabelsConfig(SemiSupervisedConfig):
    """Numbers of ST++ (LiheYoung/ST-PlusPlus, commit f4e7a571), but for one retraining instead of two.

    There is no moving average (with a decay of 0 it is the network itself), and no ramp-up: pseudo-labels weigh as much
    as labels from the first step on that has any.

    Attributes:
        rounds: Number of trainings with pseudo-labels, after the one on labels. ST++ has two.
        full_length: Whether each of these trainings has all the epochs, as in ST++; otherwise the epochs are divided
            equally among them.
        stable_share: Share of the unlabeled images, those with the most stable labels, that the first round uses;
            further rounds use all.
        checkpoints: Number of checkpoints of a training that label each image, at equal distances, the last at its end;
            two or more, as stability compares them.
        view: Strength of the strong view of pseudo-labeled images.
    """

    ema_decay: float = 0.0
    ramp_length: float = 0.0
    rounds: Annotated[int, Between(1)] = 1
    full_length: bool = False
    stable_share: Annotated[float, Between(0, 1, exclude="low")] = 0.5
    checkpoints: Annotated[int, Between(2)] = 3
    view: StrongView = field(default_factory=StrongView)


class StartsWithPhase:
    """A learning-rate schedule that starts with a phase.

    Args:
        schedule: Learning-rate schedule of nnU-Net, or of your own trainer, over the epochs of this phase.
        start: Epoch in which the phase began.
    """

    def __init__(self, schedule: Any, start: int):
        self.schedule = schedule
        self.start = start

    def step(self, epoch: int) -> None:
        """Set the learning rate for an epoch of the whole training."""
        self.schedule.step(epoch - self.start)


class nnUNetTrainerPseudoLabels(SemiSupervisedTrainer):
    """Offline pseudo-labels: a network trained on the labels labels the other images, and a new one learns from both.

    A training has two phases of equal length. After the first, on labeled images only, the network segments the
    unlabeled images. Checkpoints after one and two thirds of the phase segment them as well, and the stability of a
    pseudo-label is the mean over both of their mean IoU with the last one. The second phase starts from the initial
    weights, with a new optimizer and the whole learning-rate schedule, and learns from labels and, in strong views of
    the images, from the more stable half of the pseudo-labels: ``L_s(labeled) + b L_s(pseudo-labeled)``, both nnU-Net's
    loss with deep supervision, on batches of the same size; b is 1. All of this is in ``pseudo_labels`` in the results
    folder.

    Where this departs from the paper:

    - A training has as many steps as with any other method, so a phase has half of them. Weaker.
      :class:`nnUNetTrainerPseudoLabels_fullLength` trains each phase in full, as the authors do.
    - One retraining. In ST++ a second follows, for which the network of the first labels the less stable half; with
      ``rounds=2`` it labels all images anew here, and all are used. The winners of FLARE22
      (https://doi.org/10.1007/978-3-031-23911-3_16) made their pseudo-labels anew several times as well.
    - The last network of a phase makes the pseudo-labels, not the one that was best on validation images.
    - The strong view, after nnU-Net's augmentation, is that of UniMatch for medical images, by the same authors. It has
      no CutOut, which hides the label as well.
    - Pseudo-labels are predicted without mirroring, which takes an eighth of the time. The authors average over
      mirrored images, which is slightly stronger.
    - Initial weights are the same in all phases, so that they may be given (``-pretrained_weights``).
    - The IoU leaves the background out. Images with nothing but background in their pseudo-label are not used (their
      stability counts as 0): an empty prediction proves nothing, and a network that sees nothing would be most stable.

    With regions a pseudo-label is what nnU-Net exports: each voxel has one label, and by it belongs to regions. With an
    ignore label, unannotated voxels of labeled images have no loss: they get no pseudo-label. If no
    pseudo-label can be used the training goes on with labels alone. ``checkpoint_best.pth`` may be of an earlier phase.

    Passes of a step: first phase 1 F + 1 backward; second the same twice. Labeling an image takes as long as three
    predictions without mirroring.
    """

    config: ClassVar[PseudoLabelsConfig] = PseudoLabelsConfig()
    lr_scheduler: Any
    dataloader_train: Any
    dataloader_val: Any

    # ------------------------------------------------------------------------------------------------------ phases

    @property
    def phases(self) -> int:
        """Number of trainings, the first of them on labeled images alone."""
        return 1 + self.config.rounds if self.config.ramp_peak > 0 else 1

    @property
    def phase_length(self) -> int:
        """Epochs of the current phase: an equal part, rounded up, of those that are left when it begins."""
        return max(1, -(-(self.num_epochs - self.phase_start) // (self.phases - self.phase)))

    def initialize(self) -> None:
        """Build nnU-Net's parts, with a learning-rate schedule of one phase.

        Raises:
            ValueError: there are too few epochs.
        """
        if self.config.full_length:
            self.num_epochs *= self.phases
        if self.num_epochs < self.phases:
            raise ValueError(
                f"{self.num_epochs} epochs cannot be divided into {self.phases} trainings; train for more epochs."
            )
        super().initialize()
        self.phase = 0
        self.phase_start = 0  # its first epoch
        self.initial_weights: Weights = {}
        self.earlier: list[Weights] = []  # checkpoints of this phase
        self.used: list[str] = []  # images whose pseudo-labels this phase learns from
        self.pseudo_target: Any = None  # of the current step
        # A new network starts with a low Dice, which is not a collapse; and no network here learns from itself.
        self.monitor.watches_for_collapse = False
        self._start_schedule()

    def _start_schedule(self) -> None:
        whole, self.num_epochs = self.num_epochs, self.phase_length  # what trainers make their schedule for
        try:
            self.optimizer, schedule = self.configure_optimizers()
        finally:
            self.num_epochs = whole
        self.lr_scheduler = StartsWithPhase(schedule, self.phase_start)

    def prepare_method(self) -> None:
        """Keep the initial weights for the next phases."""
        if self.phases > 1:
            self.initial_weights = copy_weights(self.students["a"])

    def on_epoch_start(self) -> None:
        """Start the next phase when it is time, in a training that is continued as well."""
        super().on_epoch_start()  # first, so that labeling is part of the time of the epoch
        if self.current_epoch - self.phase_start >= self.phase_length:
            self._start_next_phase()

    def _start_next_phase(self) -> None:
        self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
        self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        self.current_epoch += 1
        assert self.unlabeled_images is not None  # without unlabeled images there is one phase
        self.print_to_log_file(
            f"Phase {self.phase + 1} of {self.phases} is done; its network labels "
            f"{len(self.unlabeled_images.identifiers)} unlabeled images."
        )
        with self.deployed():
            self.set_deep_supervision_enabled(False)
            stability = label_images(self, self.network, self.earlier, self.unlabeled_images, self.pseudo_label_folder)
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.phase += 1
        self.phase_start = self.current_epoch
        self.used = most_stable(stability, self.config.stable_share if self.phase == 1 else 1.0)
        self._report(stability)
        for network in (self.students["a"], self.teachers["a"]):
            network.load_state_dict(self.initial_weights)
        self.earlier = []
        if self.phase == self.phases - 1:
            self.initial_weights = {}
        self._start_schedule()
        self._restart_loaders()

    def _restart_loaders(self) -> None:
        earlier = self.dataloader_unlabeled
        for loader in (self.dataloader_train, self.dataloader_val, earlier):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader._finish()
        self.dataloader_train = self.dataloader_val = self.dataloader_unlabeled = None
        self._watch_workers()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        self.continue_random_numbers(earlier)
        self._watch_workers()

    def method_state(self) -> dict[str, Any]:
        """Return the phase, the images it uses, and the weights that are still needed."""
        return {name: getattr(self, name) for name in ("phase", "phase_start", "used", "initial_weights", "earlier")}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take back what `method_state` returned."""
        for name, value in state.items():
            setattr(self, name, value)
        optimizer = self.optimizer.state_dict()  # of the checkpoint
        self._start_schedule()
        self.optimizer.load_state_dict(optimizer)

    @property
    def pseudo_label_folder(self) -> str:
        """The folder of the pseudo-labels."""
        return os.path.join(self.output_folder, "pseudo_labels")

    def _report(self, stability: Mapping[str, float]) -> None:
        values = [stability[case] for case in self.used]
        range_of_values = f" (stability {min(values):.3f} to {max(values):.3f})" if values else ""
        self.print_to_log_file(
            f"Phase {self.phase + 1} of {self.phases}: a new network learns from the labels and from {len(self.used)} "
            f"of {len(stability)} pseudo-labels{range_of_values}; see pseudo_labels/stability.csv."
        )
        if not self.used:
            self.print_to_log_file("WARNING: no pseudo-label has stable foreground, so only the labels are used.")
        if self.local_rank == 0:
            write_stability(stability, self.used, self.pseudo_label_folder)

    # ---------------------------------------------------------------------------------------------------- the step

    @property
    def loads_unlabeled(self) -> bool:
        """Whether this phase learns from pseudo-labels."""
        return bool(self.used)

    @property
    def unlabeled_patch_cost(self) -> float:
        """As much as a labeled patch, whose loader this is."""
        return 1.0

    def build_unlabeled_loader(self) -> nnUNetDataLoader:
        """Build nnU-Net's loader of training patches on the images and pseudo-labels that are used."""
        assert self.unlabeled_images is not None
        images = PseudoLabeledImages(self.unlabeled_images, self.used, self.pseudo_label_folder)
        return build_pseudo_labeled_loader(self, images)

    def next_unlabeled(self) -> Tensor:
        """Return a strong view of the next pseudo-labeled patches, and keep their targets for the loss."""
        batch = next(self.dataloader_unlabeled)
        self.unlabeled_origin = Origin(list(batch["keys"]), torch.zeros(0, 0))  # nnU-Net's loader tells no positions
        self.pseudo_target = self._to_device(batch["target"])
        return self.strong_view(self._to_device(batch["data"]), self.config.view, self.generator)

    @property
    def unsupervised_weight(self) -> float:
        """b, 0 as long as there are no pseudo-labels."""
        return super().unsupervised_weight if self.used else 0.0

    def train_step(self, batch: dict) -> dict:
        """Take a step, and keep the weights when it is time for a checkpoint."""
        record = super().train_step(batch)
        start, steps = (epochs * self.num_iterations_per_epoch for epochs in (self.phase_start, self.phase_length))
        number = self.config.checkpoints
        due = {start + max(1, steps * part // number) for part in range(1, number)}
        if self.phase < self.phases - 1 and self.iteration in due:
            self.earlier.append(copy_weights(self.teachers["a"]))
        return record

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images, then on the pseudo-labeled ones."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None:
            return
        output = self.network(unlabeled)
        pseudo, _ = self.hard_target(full_resolution(self.pseudo_target))
        self.metrics["agreement"] = 1 - differing(self.pseudo_label(full_resolution(output)), pseudo).float().mean()
        self.metrics["foreground_pseudo_label"] = foreground_share(pseudo)
        yield Losses(unsupervised={"pseudo_label": as_error(self.loss(output, self.pseudo_target))})

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, its pseudo-label, what the network says, and where they differ."""
        network = self.pseudo_label(forward_to_logits(self.students["a"], unlabeled))
        pseudo, _ = self.hard_target(full_resolution(self.pseudo_target))
        return {
            "image": self.image_panel(unlabeled),
            "pseudo-label": label_map(pseudo),
            "network": label_map(network),
            "they differ": differing(network, pseudo),
        }


class nnUNetTrainerPseudoLabels_fullLength(nnUNetTrainerPseudoLabels):
    """Offline pseudo-labels with each training in full length, as ST++ trains: twice the epochs of other methods."""

    config = replace(nnUNetTrainerPseudoLabels.config, full_length=True)
