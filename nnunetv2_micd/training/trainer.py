"""Base trainer: the integration with nnU-Net's training. A method only adds its losses."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnunetv2_micd.augmentation.intensity import StrongView, strong_view
from nnunetv2_micd.losses.labels import differing, hard_target, label_map, pseudo_label
from nnunetv2_micd.training import checkpoints
from nnunetv2_micd.training.cascade import segment_for_next_stages
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.external_loggers import log_figures, log_picture
from nnunetv2_micd.training.figures import image_panel, label_names
from nnunetv2_micd.training.loader import IsolatedAugmenter
from nnunetv2_micd.training.messages import next_commands
from nnunetv2_micd.training.monitor import PICTURE_EVERY, Monitor
from nnunetv2_micd.training.networks import (
    check_architecture,
    forward_to_logits,
    forward_with_features,
    forward_with_outputs,
)
from nnunetv2_micd.training.reference import find_reference
from nnunetv2_micd.training.schedules import gaussian_ramp_up
from nnunetv2_micd.training.step import Losses
from nnunetv2_micd.training.students import Students, compiled, prepare_for_several_processes
from nnunetv2_micd.training.targets import at_all_resolutions
from nnunetv2_micd.training.unlabeled_trainer import UnlabeledDataTrainer
from nnunetv2_micd.utils import random_states
from nnunetv2_micd.utils.distributed import sum_over_processes

GRADIENT_NORM = 12  # nnUNetTrainer.train_step


class SemiSupervisedTrainer(UnlabeledDataTrainer):
    """nnU-Net's trainer with unlabeled images, further networks and an EMA teacher for each network.

    How it finds and loads the unlabeled images is in :class:`~unlabeled_trainer.UnlabeledDataTrainer`.

    A method is a configuration and :meth:`compute_losses`. Where it needs more it defines
    :meth:`build_further_networks`, :meth:`build_method`, :meth:`prepare_method`, :meth:`method_state`,
    :meth:`load_method_state` and :meth:`picture_panels`. A method that learns from more than unlabeled patches, or not
    in all steps, defines :attr:`needs_unlabeled`, :attr:`loads_unlabeled`, :meth:`build_unlabeled_loader` and
    :meth:`next_unlabeled` as well.

    Attributes:
        config: Numbers of the method; a variant is a subclass with another config.
        has_weak_views: Whether unlabeled patches are deformed and mirrored only, without nnU-Net's changes of
            intensities.
        has_unsupervised_losses: Whether there are losses that ``config.ramp_peak`` weighs. Where not, it is only a
            switch: at 0 no unlabeled image is read.
        students: Trained networks by name; ``"a"`` is the network of the plans.
        teachers: Moving averages of the students by the same names. ``teachers["a"]`` is validated, saved under
            ``network_weights`` and therefore predicts.
        metrics: Figures of the current step that are not losses; a method sets them.
        monitor: History of the training and its alarms.
        iteration: Number of training steps so far.
        generator: Random generator of the method on the CPU, apart from the ones of nnU-Net's loaders; continued by
            ``--c``.
        forward_to_logits: :func:`networks.forward_to_logits`, compiled where nnU-Net compiles.
        forward_with_features: :func:`networks.forward_with_features`, likewise.
        forward_with_outputs: :func:`networks.forward_with_outputs`, likewise.

    Examples:
        A method that asks for agreement with the teacher's hard labels::

            class nnUNetTrainerFollowsTeacher(SemiSupervisedTrainer):
                def compute_losses(self, labeled, unlabeled):
                    loss = self.loss(self.network(labeled["data"]), labeled["target"])
                    yield Losses(supervised={"supervised": loss})
                    if unlabeled is not None:
                        with torch.no_grad():
                            pseudo = self.pseudo_label(self.logits(self.teachers["a"], unlabeled))
                        student = self.logits(self.students["a"], unlabeled)
                        yield Losses(unsupervised={"consistency": hard_cross_entropy(student, pseudo)})
    """

    config: ClassVar[SemiSupervisedConfig] = SemiSupervisedConfig()
    has_weak_views: ClassVar[bool] = False
    has_unsupervised_losses: ClassVar[bool] = True
    network: Any
    is_ddp: bool
    num_epochs: int
    num_iterations_per_epoch: int

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads and repeats this signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp and device.type == "cpu":  # nnU-Net takes it for granted that several processes mean CUDA
            self.device, self.grad_scaler = device, None
        self.networks = Students({}, self.config.ema_decay)
        self.metrics: dict[str, Tensor] = {}
        self.monitor = Monitor(self.print_to_log_file)
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(torch.initial_seed() + self.local_rank)
        self.forward_to_logits = forward_to_logits
        self.forward_with_features = forward_with_features
        self.forward_with_outputs = forward_with_outputs
        self._last_unlabeled: Tensor | None = None
        self._step_bar = tqdm(disable=True)
        self._saved_random: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------ what a method defines

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """Yield groups of losses; each is backpropagated, and its graph released, before the next is computed.

        Args:
            labeled: ``data`` ``(B, channels, *patch)`` and ``target`` as nnU-Net's loader gives it (a list with deep
                supervision), on the device.
            unlabeled: ``(B, channels, *patch)`` on the device, or None when only supervised losses are wanted.
        """
        raise NotImplementedError

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Return the networks, or small parts such as projectors, that are trained beside the network of the plans.

        By name: ``"b"`` is a second network that predicts as well.
        """
        return {}

    def build_method(self) -> None:
        """Build further parts of the method, into which a checkpoint may be loaded; called after the networks."""

    def prepare_method(self) -> None:
        """Prepare what needs the training data; called once at the start of a training, not when it is continued."""

    def method_state(self) -> dict[str, Any]:
        """Return the state of the method that a checkpoint has to keep: tensors, arrays, numbers and text.

        Dictionaries, lists, tuples and sets of these as well, but no other objects: a checkpoint is read as data.
        """
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`method_state` returned."""

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Return panels of the picture by title, see :func:`figures.save_patches`."""
        # Not compiled: a picture has another batch size now and then, for which compiling costs more than it saves.
        networks = {"student": self.students["a"], "teacher": self.teachers["a"]}
        labels = {name: self.pseudo_label(forward_to_logits(network, unlabeled)) for name, network in networks.items()}
        differ = differing(labels["student"], labels["teacher"])
        return {
            "image": self.image_panel(unlabeled),
            **{name: label_map(label) for name, label in labels.items()},
            "they differ": differ,
        }

    # ---------------------------------------------------------------------------------------- what a method can use

    def image_panel(self, images: Tensor) -> Tensor:
        """Return images ``(B, channels, *patch)`` as a panel of the picture, see :func:`figures.image_panel`."""
        return image_panel(images, self.dataset.has_colors)

    @property
    def students(self) -> dict[str, nn.Module]:
        """The trained networks by name."""
        return self.networks.networks

    @property
    def teachers(self) -> dict[str, nn.Module]:
        """The moving averages of the students by the same names."""
        return self.networks.teachers

    def pseudo_label(self, logits: Tensor) -> Tensor:
        """Return hard labels of classes or regions, see :func:`losses.pseudo_label`."""
        return pseudo_label(logits, self.label_manager.has_regions)

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of a network at full resolution, ``(B, K, *spatial)``."""
        return self.forward_to_logits(network, images)

    def hard_target(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the truth at full resolution, and which voxels are ignored, see :func:`losses.hard_target`."""
        return hard_target(target, self.label_manager.has_regions, self.label_manager.ignore_label)

    def as_target(self, labels: Tensor) -> Tensor:
        """Return hard labels as nnU-Net's target, with no voxel ignored; the reverse of :meth:`hard_target`."""
        if labels.dtype != torch.bool:
            return labels[:, None]
        nowhere = torch.zeros_like(labels[:, :1])
        return torch.cat((labels, nowhere), 1) if self.label_manager.has_ignore_label else labels

    @property
    def uses_labeled_images(self) -> bool:
        """Whether the consistency losses see the labeled images as well: with an ignore label, by which most of them
        may be unlabeled too.
        """
        return bool(self.label_manager.has_ignore_label)

    def consistency_images(self, labeled: dict[str, Any], unlabeled: Tensor) -> Tensor:
        """Return the images of the consistency losses: the unlabeled ones, after the labeled ones where those count."""
        return torch.cat((labeled["data"], unlabeled)) if self.uses_labeled_images else unlabeled

    @property
    def masked_channels(self) -> list[int]:
        """The channels that are zero outside of the nonzero mask, ``use_mask_for_norm`` of the plans."""
        return [channel for channel, use in enumerate(self.configuration_manager.use_mask_for_norm) if use]

    def change_intensities(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return images with changed intensities; the one-hot labels of a cascade's first stage stay as they are."""
        if not self.is_cascaded:
            return change(images)
        intensities, labels = images.tensor_split([-len(self.label_manager.foreground_labels)], dim=1)
        return torch.cat((change(intensities), labels), dim=1)

    def strong_view(self, images: Tensor, view: StrongView, generator: torch.Generator) -> Tensor:
        """Return a view of images with other intensities, see :func:`augmentation.strong_view`."""
        masked = self.masked_channels
        return self.change_intensities(images, lambda image: strong_view(image, view, generator, masked))

    def at_all_resolutions(self, target: Tensor) -> Tensor | list[Tensor]:
        """Bring a target to the resolutions of deep supervision, see :func:`targets.at_all_resolutions`."""
        return at_all_resolutions(target, self._get_deep_supervision_scales())

    # ------------------------------------------------------------------------------------------------- set-up

    def initialize(self) -> None:
        """Build the further networks and the teachers beside nnU-Net's own parts.

        Raises:
            ValueError: for plans with an architecture that is not supported, before any time is spent.
        """
        configuration = self.configuration_manager
        check_architecture(
            configuration.network_arch_class_name, configuration.network_arch_init_kwargs, self.enable_deep_supervision
        )
        with self._as_one_process():  # without DistributedDataParallel, see utils.distributed
            super().initialize()
        networks = {"a": getattr(self.network, "_orig_mod", self.network)}  # without the wrapper of torch.compile
        for name, network in self.build_further_networks().items():
            networks[name] = network.to(self.device)
            # Not a group of its own, which a learning-rate schedule of PyTorch would not know.
            self.optimizer.param_groups[0]["params"].extend(network.parameters())
        if self.is_ddp:
            self._set_batch_size_and_oversample()
            self.loss = self._build_loss()
            prepare_for_several_processes(networks.values(), self.device)
        self.networks = Students(networks, self.config.ema_decay)
        self.build_method()
        if self.config.channels_last and self.device.type == "cpu":
            self.networks.store_channels_last()
        if self._do_i_compile():
            self.networks.compile()
        self.forward_to_logits = compiled(forward_to_logits, self._do_i_compile())
        self.forward_with_features = compiled(forward_with_features, self._do_i_compile())
        self.forward_with_outputs = compiled(forward_with_outputs, self._do_i_compile())

    @contextmanager
    def _as_one_process(self) -> Iterator[None]:
        several, self.is_ddp = self.is_ddp, False
        try:
            yield
        finally:
            self.is_ddp = several

    def on_train_start(self) -> None:
        """Start as nnU-Net does; the teachers of a new training begin as copies of the students."""
        super().on_train_start()
        self.monitor.reference = find_reference(Path(self.output_folder), self.num_epochs)
        if self.iteration == 0:
            self.networks.reset_teachers()  # -pretrained_weights may have changed a student
            self.prepare_method()
            if self.local_rank == 0 and not self.disable_checkpointing:
                self._set_earlier_checkpoints_aside()
        if self._saved_random is not None:
            self._continue_random(self._saved_random)

    def _set_earlier_checkpoints_aside(self) -> None:
        """Let ``--c`` find the checkpoints of this training only, even before the first is written."""
        if names := checkpoints.set_aside(self.output_folder):
            self.print_to_log_file(
                f"The checkpoints of an earlier training of this fold are now called {', '.join(names)}; predict with "
                "them by -chk, or delete them."
            )

    def _continue_random(self, saved: dict[str, Any]) -> None:
        """Continue the random states of a saved training, after the loaders have drawn their first batches.

        With ``nnUNet_n_proc_DA=0`` the batches equal those of an uninterrupted training. Worker processes cannot be
        continued, as nnU-Net seeds them anew at every start.
        """
        random_states.set_states(saved["main"])
        if isinstance(self.dataloader_unlabeled, IsolatedAugmenter) and saved["unlabeled"] is not None:
            self.dataloader_unlabeled.states = saved["unlabeled"]

    def on_train_end(self) -> None:
        """Say how the training went and what to do next."""
        super().on_train_end()
        starts, ends = (self.logger.get_value(f"epoch_{end}_timestamps", step=None) for end in ("start", "end"))
        self.print_to_log_file(self.monitor.summary(sum(end - start for start, end in zip(starts, ends, strict=False))))
        if not self.disable_checkpointing:
            self.print_to_log_file(next_commands(self), add_timestamp=False)

    # ------------------------------------------------------------------------------------------------- the step

    @property
    def unsupervised_weight(self) -> float:
        """b(t) of eq. 7 for the current step."""
        ramp_steps = round(self.config.ramp_length * self.num_epochs * self.num_iterations_per_epoch)
        return gaussian_ramp_up(self.iteration, ramp_steps, self.config.ramp_peak)

    def on_train_epoch_start(self) -> None:
        """Put all students into training mode."""
        super().on_train_epoch_start()
        self.networks.train()
        title, steps = f"epoch {self.current_epoch} of {self.num_epochs}", self.num_iterations_per_epoch
        disable = True if self.local_rank else None  # None hides it where the output is no terminal
        self._step_bar = tqdm(total=steps, desc=title, unit="step", leave=False, disable=disable)

    def on_validation_epoch_start(self) -> None:
        """Take all students out of training mode."""
        super().on_validation_epoch_start()
        self.networks.train(False)

    def train_step(self, batch: dict) -> dict:
        """Take one step on the losses of the method, and record it."""
        labeled = {"data": self._to_device(batch["data"]), "target": self._to_device(batch["target"])}
        self.metrics = {}
        weight = self.unsupervised_weight
        losses, not_finite = self.update_networks(labeled, weight)
        self.iteration += 1
        self._step_bar.update()
        return self.monitor.record_step(self.iteration, losses, self.metrics, weight, not_finite)

    def update_networks(self, labeled: dict[str, Any], weight: float) -> tuple[Losses, Tensor]:
        """Take one optimizer step and update the teachers.

        Args:
            labeled: Labeled patches, see :meth:`compute_losses`.
            weight: b(t).

        Returns:
            The losses without graphs, and how many of them are not finite, or one if the gradients are not.
        """
        unlabeled = None
        is_due = self.iteration % self.config.consistency_every == 0
        # The first step always loads some, for the pictures of the epochs that need none.
        if self.dataloader_unlabeled is not None and is_due and (self.needs_unlabeled or self.iteration == 0):
            unlabeled = self._last_unlabeled = self.next_unlabeled()
        scaler = self.grad_scaler
        scale = 0.0 if scaler is None else scaler.get_scale()  # now, as there is nothing to wait for
        self.optimizer.zero_grad(set_to_none=True)
        losses = Losses()
        for group in self._under_autocast(self.compute_losses(labeled, unlabeled)):
            total = group.total(weight)
            (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
            losses |= group.detached()
            del total, group  # the rest of their graph holds the outputs of the networks
        self.networks.average_gradients()
        # All processes skip a step together, or their weights would drift apart.
        not_finite = sum_over_processes(torch.stack([~loss.isfinite() for loss in losses.named.values()]).sum())
        # On CUDA nnU-Net's GradScaler decides about the step by itself.
        has_changed = (scaler is not None or not not_finite) and self._optimizer_step()
        if has_changed:
            self.networks.update_teachers(self.iteration)
        if not has_changed or (scaler is not None and scaler.get_scale() < scale):  # only after a step that it skipped
            not_finite = not_finite.clamp(min=1)
        return losses, not_finite

    def autocast(self) -> AbstractContextManager:
        """Mixed precision where nnU-Net uses it: on CUDA."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _under_autocast(self, groups: Iterator[Losses]) -> Iterator[Losses]:
        while True:
            with self.autocast():  # around the forward passes only, as in nnU-Net
                group = next(groups, None)
            if group is None:
                return
            yield group
            del group

    def _optimizer_step(self) -> bool:
        """Change the weights, and return True; without a GradScaler not by gradients that are not finite."""
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        norms = self.networks.clip_gradients(GRADIENT_NORM)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            return True
        if not all(norm.isfinite() for norm in norms):  # the same in all processes, as they average the gradients
            return False
        self.optimizer.step()
        return True

    # ------------------------------------------------------------------------------------------------- the log

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Average the figures of the steps."""
        self._step_bar.close()
        super().on_train_epoch_end([{"loss": output["loss"]} for output in train_outputs])
        self.monitor.end_training_steps(self.current_epoch, train_outputs)

    def on_epoch_end(self) -> None:
        """Report the figures of the epoch: log, nnU-Net's external loggers, table, plot and picture."""
        epoch = self.current_epoch
        figures = self.monitor.end_epoch(float(self.logger.get_value("mean_fg_dice", step=-1)))
        log_figures(self.logger.loggers, figures, epoch)
        super().on_epoch_end()
        self.monitor.watch_for_collapse(self.logger.get_value("ema_fg_dice", step=-1), self._best_ema)
        if self.local_rank == 0:
            has_picture = epoch % PICTURE_EVERY == 0 or epoch == self.num_epochs - 1
            draw = self._draw_patches if has_picture and self._last_unlabeled is not None else None
            picture = self.monitor.write(
                self.output_folder, draw, self.unlabeled_origin.keys, label_names(self.label_manager)
            )
            if picture is not None:
                log_picture(self.logger.loggers, picture, epoch)

    def _draw_patches(self) -> dict[str, Tensor]:
        assert self._last_unlabeled is not None
        with torch.no_grad(), self.autocast():
            return self.picture_panels(self._last_unlabeled)

    # ------------------------------------------------------------------------------------------- what is deployed

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """Let nnU-Net's own code work on the deployed network, the EMA teacher of A, as if it were the trained one."""
        student, self.network = self.network, self.teachers["a"]
        try:
            yield
        finally:
            self.network = student

    def validation_step(self, batch: dict) -> dict:
        """Validate the deployed network."""
        with self.deployed():
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate the deployed network, and let it segment the unlabeled images where a next stage needs that."""
        with self.deployed():
            super().perform_actual_validation(save_probabilities)
            next_stages = self.configuration_manager.next_stage_names
            if next_stages and self.config.ramp_peak > 0 and self.local_rank == 0:
                training, validation = self.do_split()
                cases = self._find_unlabeled(training, validation, self.split_unlabeled())
                self.set_deep_supervision_enabled(False)
                segment_for_next_stages(self, self.network, cases)
                self.set_deep_supervision_enabled(self.enable_deep_supervision)

    def save_checkpoint(self, filename: str) -> None:
        """Save the deployed network where nnU-Net looks for it, and all else under one key of ours."""
        buffer = BytesIO()
        with self.deployed():
            super().save_checkpoint(buffer)
        if buffer.tell() == 0:  # checkpointing is off
            return
        state = {
            **self.networks.state_dict(),
            "iteration": self.iteration,
            "history": self.monitor.history,
            "generator": self.generator.get_state(),
            "random": {
                "main": random_states.get_states(),
                "unlabeled": getattr(self.dataloader_unlabeled, "states", None),
            },
            "config": asdict(self.config),
            "method": self.method_state(),
        }
        checkpoints.write(filename, buffer, state)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Continue, or validate, from a checkpoint of the same trainer.

        Raises:
            ValueError: for a checkpoint of another trainer, or one that lacks something.
        """
        if not self.was_initialized:
            self.initialize()
        state = checkpoints.read_state(filename_or_checkpoint, type(self).__name__)
        with checkpoints.fitting(filename_or_checkpoint):
            with self.deployed():
                super().load_checkpoint(filename_or_checkpoint)
            self.networks.load_state_dict(state)
            self.iteration = state["iteration"]
            self.monitor.history = state["history"]
            self.generator.set_state(state["generator"])
            self._saved_random = state["random"]
        if self.current_epoch < self.num_epochs and not self.optimizer.state:
            self.print_to_log_file(f"{filename_or_checkpoint} holds no momentum; the optimizer begins without.")
        if changed := checkpoints.list_changes(state["config"], asdict(self.config)):
            self.print_to_log_file(f"Warning: the checkpoint was trained with other settings: {changed}.")
        if self.local_rank != 0:  # the saved states belong to the first process
            self.generator.manual_seed(self.generator.initial_seed() + self.iteration + self.local_rank)
            self._saved_random = None
        self.load_method_state(state["method"])
        self.print_to_log_file(f"Loaded {filename_or_checkpoint} of epoch {self.current_epoch}.")
