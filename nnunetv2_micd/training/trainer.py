"""Every contact of semi-supervised training with nnU-Net, once: a method adds its losses and nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from io import BytesIO
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.labeled import check_labeled_cases
from nnunetv2_micd.data.splits import load_split_unlabeled
from nnunetv2_micd.data.unlabeled import UnlabeledCase, find_unlabeled_cases
from nnunetv2_micd.losses.labels import hard_target, pseudo_label
from nnunetv2_micd.training import checkpoints, history
from nnunetv2_micd.training.alarms import Alarms
from nnunetv2_micd.training.cascade import check_previous_stage, segment_for_next_stages
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.ema import ema_decay_at, make_teacher, update_ema
from nnunetv2_micd.training.loader import (
    IsolatedAugmenter,
    UnlabeledImages,
    allowed_workers,
    build_unlabeled_loader,
    start_unlabeled_loader,
)
from nnunetv2_micd.training.messages import next_commands, previous_stage_command
from nnunetv2_micd.training.networks import check_architecture, forward_with_features
from nnunetv2_micd.training.passes import Pass
from nnunetv2_micd.training.pictures import save_patches
from nnunetv2_micd.training.schedules import gaussian_ramp_up
from nnunetv2_micd.training.workers import explain_death, processes_of
from nnunetv2_micd.utils import random_states
from nnunetv2_micd.utils.distributed import average_gradients, mean_over_processes, share_weights, sum_over_processes

GRADIENT_NORM = 12  # nnUNetTrainer.train_step
PICTURE_EVERY = 10  # epochs


class SemiSupervisedTrainer(nnUNetTrainer):
    """nnU-Net's trainer with unlabeled images, further networks and an EMA teacher for each.

    A method defines :meth:`compute_losses` and :meth:`unsupervised_passes`, and where it needs them
    :meth:`build_further_networks`, :meth:`prepare_method`, :meth:`method_state`, :meth:`load_method_state` and
    :meth:`picture_panels`; one that learns from more than unlabeled patches also :attr:`loads_unlabeled`,
    :meth:`build_unlabeled_loader` and :meth:`next_unlabeled`.

    Attributes:
        config: the method's numbers; a variant is a subclass with another one.
        students: the trained networks by name, ``"a"`` is that of the plans.
        teachers: the moving averages of the students by the same names; ``teachers["a"]`` is validated, saved under
            ``network_weights`` and so predicts.
        metrics: figures of the current step that are no losses, set by the method.
        iteration: training steps so far.
        generator: randomness of the method, apart from that of nnU-Net's loaders; on the CPU, continued by ``--c``.
        labeled_cases: nnU-Net's dataset of the labeled training cases, once the loaders are built.
        forward_with_features: :func:`networks.forward_with_features`, compiled where nnU-Net compiles.
    """

    config: ClassVar[SemiSupervisedConfig] = SemiSupervisedConfig()
    network: Any
    is_ddp: bool

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
        self.students: dict[str, nn.Module] = {}
        self.teachers: dict[str, nn.Module] = {}
        self.metrics: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(torch.initial_seed() + self.local_rank)
        self.dataloader_unlabeled: Any = None
        self.labeled_cases: Any = None
        self.forward_with_features = forward_with_features
        self.alarms = Alarms(self.print_to_log_file)
        self._images: UnlabeledImages | None = None
        self._last_unlabeled: Tensor | None = None
        self._workers: dict[str, list[BaseProcess]] = {}
        self._saved_random: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------ what a method defines

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Yield named losses; each group is backpropagated, and its graph released, before the next is computed.

        Names that begin with ``supervised`` have weight one, all others the ramped-up weight b(t).

        Args:
            labeled: ``data`` ``(B, channels, *patch)`` and ``target`` as nnU-Net's loader gives it (a list with deep
                supervision), on the device.
            unlabeled: ``(B, channels, *patch)`` on the device, or None when only supervised losses are wanted.
        """
        raise NotImplementedError

    def unsupervised_passes(self) -> list[Pass]:
        """Return the passes of a step that the method's definition asks for besides the supervised ones."""
        raise NotImplementedError

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Return the networks that are trained beside that of the plans, by name."""
        return {}

    def prepare_method(self) -> None:
        """Prepare what needs the training data; called once at the start of a training, not when it is continued."""

    def method_state(self) -> dict[str, Any]:
        """Return what the method has to find again when a training is continued."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`method_state` returned."""

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Return titled panels ``(B, *patch)`` for the picture: floats are images, integers labels, bools marks."""
        return {}

    # ---------------------------------------------------------------------------------------- what a method can use

    def pseudo_label(self, logits: Tensor) -> Tensor:
        """Return hard labels of classes or regions, see :func:`hard_labels.pseudo_label`."""
        return pseudo_label(logits, self.label_manager.has_regions)

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return what a network puts out at full resolution, ``(B, K, *spatial)``."""
        return self.forward_with_features(network, images)[0]

    def hard_target(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the truth at full resolution, and which voxels are ignored, see :func:`hard_labels.hard_target`."""
        return hard_target(target, self.label_manager.has_regions, self.label_manager.ignore_label)

    def backpropagate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Send back what an earlier group's losses said to outputs that had no graph then, and have one now.

        Args:
            outputs: with a graph, which is released.
            gradients: ``grad`` of the same outputs without a graph, None where no loss saw one.
        """
        seen = [number for number, gradient in enumerate(gradients) if gradient is not None]
        # As in all backward passes. Older PyTorch has no autocast on mps.
        with nullcontext() if self.device.type == "mps" else torch.autocast(self.device.type, enabled=False):
            torch.autograd.backward([outputs[number] for number in seen], [gradients[number] for number in seen])

    def passes(self) -> list[Pass]:
        """Return all passes that a step, on average, has to compute, once the networks are built."""
        supervised = [Pass(name, "labeled") for name in self.students]
        if self.config.ramp_peak == 0:
            return supervised
        share = 1 / self.config.consistency_every
        return supervised + [replace(each, times=share * each.times) for each in self.unsupervised_passes()]

    # ------------------------------------------------------------------------------------------------- set-up

    def initialize(self) -> None:
        """Build the further networks and the teachers beside nnU-Net's own parts.

        Raises:
            ValueError: for plans with an architecture that is not supported, before any time is spent.
        """
        check_architecture(self.configuration_manager.network_arch_class_name)
        with self._as_one_process():  # without DistributedDataParallel, see processes.py
            super().initialize()
        self.students = {"a": getattr(self.network, "_orig_mod", self.network)}  # not torch.compile's wrapper
        for name, network in self.build_further_networks().items():
            self.students[name] = network.to(self.device)
            self.optimizer.add_param_group({"params": list(network.parameters())})
        if self.is_ddp:
            self._prepare_for_several_processes()
        self.teachers = {name: make_teacher(student) for name, student in self.students.items()}
        if self.config.channels_last and self.device.type == "cpu":
            self._store_channels_last()
        if self._do_i_compile():
            self._compile()

    def _store_channels_last(self) -> None:
        is_3d = len(self.configuration_manager.patch_size) == 3
        for network in (*self.students.values(), *self.teachers.values()):
            network.to(memory_format=torch.channels_last_3d if is_3d else torch.channels_last)

    def _compile(self) -> None:
        """Compile what nnU-Net does not, in place: a wrapper would change the names of the weights in checkpoints."""
        for name, student in self.students.items():
            if name != "a":
                student.compile()
        for teacher in self.teachers.values():
            teacher.compile()
        self.forward_with_features = torch.compile(forward_with_features)

    @contextmanager
    def _as_one_process(self) -> Iterator[None]:
        several, self.is_ddp = self.is_ddp, False
        try:
            yield
        finally:
            self.is_ddp = several

    def _prepare_for_several_processes(self) -> None:
        self._set_batch_size_and_oversample()
        self.loss = self._build_loss()
        share_weights(self.students.values())
        for student in self.students.values():
            if self.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(student)
            # Where nnU-Net expects DistributedDataParallel, it works on the network's ``module``. Not as a submodule.
            object.__setattr__(student, "module", student)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Find the unlabeled cases together with the labeled ones, so that wrong data stops before loaders start."""
        without_labels = self.split_unlabeled()  # first, as it sees whether the file is as it should be
        training, validation = super().get_tr_and_val_datasets()
        check_labeled_cases(self, training, "train", "labeled training case")
        check_labeled_cases(self, validation, "val", "validation case")
        self._check_previous_stage([*training.identifiers, *validation.identifiers], "labeled cases")
        self.labeled_cases = training
        if self.config.ramp_peak > 0:
            cases = self._find_unlabeled(training.identifiers, validation.identifiers, without_labels)
            self._check_previous_stage([case.identifier for case in cases], "unlabeled images")
            self._images = UnlabeledImages(cases, self.folder_with_segs_from_previous_stage)
            self.print_to_log_file(f"Training on {len(training.identifiers)} labeled and {len(cases)} unlabeled cases.")
        return training, validation

    def _check_previous_stage(self, cases: Sequence[str], meaning: str) -> None:
        if self.is_cascaded:
            command = previous_stage_command(self)
            check_previous_stage(self.folder_with_segs_from_previous_stage, cases, meaning, command)

    def _find_unlabeled(
        self, training: Sequence[str], validation: Sequence[str], without_labels: Sequence[str]
    ) -> list[UnlabeledCase]:
        dataset = Dataset(self.plans_manager.dataset_name, self.plans_manager, self.dataset_json)
        entry = {"train": list(training), "val": list(validation), "unlabeled": list(without_labels)}
        return find_unlabeled_cases(dataset, self.configuration_name, entry)

    def split_unlabeled(self) -> list[str]:
        """Return the labeled cases that this fold of ``splits_final.json`` uses without their labels."""
        return load_split_unlabeled(join(self.preprocessed_dataset_folder_base, "splits_final.json"), self.fold)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Start nnU-Net's loaders with a part of the allowed workers and the unlabeled loader with the rest."""
        allowed = get_allowed_n_proc_DA()
        for_unlabeled = allowed // 2 if self.loads_unlabeled else 0
        with allowed_workers(allowed - for_unlabeled):
            loaders = super().get_dataloaders()
        if self.loads_unlabeled:
            self.dataloader_unlabeled = start_unlabeled_loader(
                self.build_unlabeled_loader(), for_unlabeled, pin_memory=self.device.type == "cuda"
            )
        return loaders

    @property
    def loads_unlabeled(self) -> bool:
        """Whether the steps to come need unlabeled patches."""
        return self.config.ramp_peak > 0

    @property
    def unlabeled_batch_size(self) -> int:
        """How many unlabeled patches a step sees."""
        return max(1, round(self.config.unlabeled_ratio * self.batch_size))

    def build_unlabeled_loader(self) -> nnUNetDataLoader:
        """Build the loader of unlabeled patches, see :func:`unlabeled_loader.build_unlabeled_loader`."""
        assert self._images is not None  # found together with the labeled cases
        return build_unlabeled_loader(self, self._images)

    def next_unlabeled(self) -> Tensor:
        """Return the next unlabeled patches ``(B, channels, *patch)``, on the device."""
        return self._to_device(next(self.dataloader_unlabeled)["data"])

    def run_training(self) -> None:
        """Train as nnU-Net does, and name the cause when a worker process was killed.

        Raises:
            RuntimeError: a worker process died, or too many steps in a row were not finite.
        """
        try:
            super().run_training()
        except RuntimeError as error:
            if cause := explain_death(self._workers, error):
                raise RuntimeError(cause) from error
            raise

    def on_train_start(self) -> None:
        """Start as nnU-Net does; the teachers of a new training begin as copies of what the students are by then."""
        super().on_train_start()
        self._watch_workers()
        if self.iteration == 0:
            for name, teacher in self.teachers.items():  # -pretrained_weights may have changed the student
                teacher.load_state_dict(self.students[name].state_dict())
            self.prepare_method()
        if self._saved_random is not None:
            self._continue_random(self._saved_random)

    def _watch_workers(self) -> None:
        self._workers = {
            "labeled images": processes_of(self.dataloader_train),
            "validation images": processes_of(self.dataloader_val),
            "unlabeled images": processes_of(self.dataloader_unlabeled),
        }

    def _continue_random(self, saved: dict[str, Any]) -> None:
        """Draw on from where a training was saved, after its loaders have drawn their first batches.

        With ``nnUNet_n_proc_DA=0`` the batches are those of a training that was not interrupted. Worker processes,
        which nnU-Net seeds anew at every start, cannot be continued.
        """
        random_states.set_states(saved["main"])
        if isinstance(self.dataloader_unlabeled, IsolatedAugmenter) and saved["unlabeled"] is not None:
            self.dataloader_unlabeled.states = saved["unlabeled"]

    def on_train_end(self) -> None:
        """Stop the unlabeled workers before the final validation, and say what to do next."""
        super().on_train_end()
        if isinstance(self.dataloader_unlabeled, NonDetMultiThreadedAugmenter):
            self.dataloader_unlabeled._finish()
        self.dataloader_unlabeled = None
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
        for student in self.students.values():
            student.train()

    def on_validation_epoch_start(self) -> None:
        """Take all students out of training mode."""
        super().on_validation_epoch_start()
        for student in self.students.values():
            student.eval()

    def train_step(self, batch: dict) -> dict:
        """Take one optimizer step on the losses of the method and update the teachers.

        Each network's gradients are clipped by themselves: clipping them together would make the training of one
        depend on the gradients of the other.
        """
        labeled = {"data": self._to_device(batch["data"]), "target": self._to_device(batch["target"])}
        unlabeled = None
        if self.dataloader_unlabeled is not None and self.iteration % self.config.consistency_every == 0:
            unlabeled = self._last_unlabeled = self.next_unlabeled()
        self.optimizer.zero_grad(set_to_none=True)
        self.metrics = {}
        losses: dict[str, Tensor] = {}
        weight = self.unsupervised_weight
        for group in self._under_autocast(self.compute_losses(labeled, unlabeled)):
            total: Any = sum(loss if name.startswith("supervised") else weight * loss for name, loss in group.items())
            (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
            losses |= {name: loss.detach() for name, loss in group.items()}
            del total, group  # what is left of their graph holds what the networks put out
        average_gradients(self.students.values())
        not_finite = sum_over_processes(torch.stack([~loss.isfinite() for loss in losses.values()]).sum())
        # On CUDA nnU-Net's GradScaler finds out whether to step, without waiting for the GPU.
        if self.grad_scaler is not None or not not_finite:
            self._optimizer_step()
            decay = ema_decay_at(self.iteration, self.config.ema_decay)
            for name, teacher in self.teachers.items():
                update_ema(teacher, self.students[name], decay)
        self.iteration += 1
        return self._step_record(losses, weight, not_finite)

    def _to_device(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self._to_device(item) for item in data]
        return data.to(self.device, non_blocking=True)

    def autocast(self) -> AbstractContextManager:
        """Mixed precision where nnU-Net uses it: on CUDA."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _under_autocast(self, groups: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        while True:
            with self.autocast():  # around the forward passes only, as in nnU-Net
                group = next(groups, None)
            if group is None:
                return
            yield group
            del group

    def _optimizer_step(self) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        for student in self.students.values():
            torch.nn.utils.clip_grad_norm_(student.parameters(), GRADIENT_NORM)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _step_record(self, losses: dict[str, Tensor], weight: float, not_finite: Tensor) -> dict[str, Any]:
        """Copy all figures of a step to the host at once; ``loss`` is the loss that nnU-Net reports."""
        named = losses | self.metrics | {"not_finite": not_finite}
        values = torch.stack([value.float() for value in named.values()]).cpu().numpy()
        record = dict(zip(named, values, strict=True))
        self.alarms.step(self.iteration, not record.pop("not_finite"))
        unsupervised = weight * sum(record[name] for name in losses if not name.startswith("supervised"))
        # nnU-Net's Dice loss is minus the Dice; one more makes it an error, which is never negative.
        supervised = sum(1 + record[name] for name in losses if name.startswith("supervised"))
        share = unsupervised / max(unsupervised + supervised, 1e-8)
        return {"loss": record["supervised"], **record, "b": weight, "unsupervised_share": share}

    # ------------------------------------------------------------------------------------------------- the log

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Average the named figures of the epoch."""
        super().on_train_epoch_end([{"loss": output["loss"]} for output in train_outputs])
        row: dict[str, float] = {}
        for name in dict.fromkeys(name for output in train_outputs for name in output if name != "loss"):
            values = [output[name] for output in train_outputs if name in output and np.isfinite(output[name])]
            row[name] = float(np.mean(values)) if values else float("nan")
        row["skipped_steps"] = self.alarms.take_skipped()
        row = {"epoch": self.current_epoch, **mean_over_processes(row)}
        self.history = [*self.history[: self.current_epoch], row]

    def on_epoch_end(self) -> None:
        """Write the figures of the epoch to the log, the CSV, the plot, the picture and nnU-Net's external loggers."""
        epoch, row = self.current_epoch, self.history[-1]
        row["mean_fg_dice"] = float(self.logger.get_value("mean_fg_dice", step=-1))
        figures = {name: value for name, value in row.items() if name != "epoch"}
        self.print_to_log_file(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        for logger in self.logger.loggers:
            for name, value in figures.items():
                logger.log(f"semi_supervised/{name}", value, epoch)
        super().on_epoch_end()
        self.alarms.epoch(self.logger.get_value("ema_fg_dice", step=-1), self._best_ema, row["b"])
        if self.local_rank != 0:
            return
        try:
            self._write_figures(epoch)
        except OSError as error:  # a full disk, or a CSV that a spreadsheet holds, must not end the training
            self.print_to_log_file(f"The figures of epoch {epoch} could not be written: {error}")

    def _write_figures(self, epoch: int) -> None:
        history.write_csv(self.history, join(self.output_folder, "semi_supervised.csv"))
        history.plot(self.history, join(self.output_folder, "semi_supervised.png"))
        if (epoch % PICTURE_EVERY == 0 or epoch == self.num_epochs - 1) and self._last_unlabeled is not None:
            with torch.no_grad(), self.autocast():
                panels = self.picture_panels(self._last_unlabeled)
            save_patches(panels, join(self.output_folder, "unlabeled_patches", f"epoch_{epoch:04d}.png"))

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
            if self.configuration_manager.next_stage_names and self.config.ramp_peak > 0 and self.local_rank == 0:
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
            "students": {name: student.state_dict() for name, student in self.students.items()},
            "teachers": {name: teacher.state_dict() for name, teacher in self.teachers.items() if name != "a"},
            "iteration": self.iteration,
            "history": self.history,
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
            ValueError: for a checkpoint of another trainer.
        """
        if not self.was_initialized:
            self.initialize()
        state = checkpoints.read_state(filename_or_checkpoint, type(self).__name__)
        with self.deployed():
            super().load_checkpoint(filename_or_checkpoint)
        for name, student in self.students.items():
            student.load_state_dict(state["students"][name])
        for name, weights in state["teachers"].items():
            self.teachers[name].load_state_dict(weights)
        self.iteration = state["iteration"]
        self.history = state["history"]
        self.generator.set_state(state["generator"])
        self._saved_random = state["random"]
        if self.local_rank != 0:  # the states are those of the first process
            self.generator.manual_seed(self.generator.initial_seed() + self.iteration + self.local_rank)
            self._saved_random = None
        self.load_method_state(state["method"])
