"""nnU-Net's trainer with a second loader, of unlabeled patches: finds, loads and stops them."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor

from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.groups import describe_units, load_groups
from nnunetv2_micd.data.labeled import check_labeled_cases
from nnunetv2_micd.data.splits import default_splits, load_split_unlabeled, write_folds_unlike_nnunet
from nnunetv2_micd.data.unlabeled import UnlabeledCase, find_unlabeled_cases
from nnunetv2_micd.training.cascade import check_previous_stage
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.loader import (
    IsolatedAugmenter,
    Origin,
    UnlabeledImages,
    build_unlabeled_loader,
    start_unlabeled_loader,
)
from nnunetv2_micd.training.messages import previous_stage_command
from nnunetv2_micd.training.monitor import PATCHES_FOLDER
from nnunetv2_micd.training.workers import explain_death, processes_of, workers_for_unlabeled
from nnunetv2_micd.utils.devices import check_device, to_device
from nnunetv2_micd.utils.files import environment, remove_abandoned
from nnunetv2_micd.utils.locks import hold_lock


class UnlabeledDataTrainer(nnUNetTrainer):
    """nnU-Net's trainer with a loader of unlabeled patches beside its own two.

    Attributes:
        labeled_cases: nnU-Net's dataset of the labeled training cases, once the loaders are built.
        unlabeled_images: Preprocessed unlabeled images, once the loaders are built; None if none are used.
        unlabeled_origin: Image and place of each unlabeled patch of the step, see :class:`loader.Origin`.
        dataloader_unlabeled: The loader, as long as the training needs it.
    """

    config: ClassVar[SemiSupervisedConfig]
    has_weak_views: ClassVar[bool]

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads and repeats this signature
    ):
        check_device(device.type)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.dataloader_unlabeled: Any = None
        self.labeled_cases: Any = None
        self.unlabeled_origin = Origin([], torch.zeros(0, 0))
        self.unlabeled_images: UnlabeledImages | None = None
        self._workers: dict[str, list[BaseProcess]] = {}

    @property
    def dataset(self) -> Dataset:
        """The dataset with the plans of this training."""
        return Dataset(self.plans_manager.dataset_name, self.plans_manager, self.dataset_json)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Find the unlabeled cases together with the labeled ones, so that wrong data stops before loaders start."""
        without_labels = self.split_unlabeled()  # first, because it checks the file that nnU-Net reads next
        training, validation = super().get_tr_and_val_datasets()
        is_blosc2 = isinstance(training, nnUNetDatasetBlosc2)
        check = partial(check_labeled_cases, self.dataset, self.configuration_name, self.fold, is_blosc2=is_blosc2)
        check("train", training.identifiers)
        check("val", validation.identifiers)
        if is_blosc2:  # in nnU-Net's older format the segmentations are in that format, too, and nnU-Net reads them
            labeled = [*training.identifiers, *validation.identifiers]
            self._check_previous_stage(
                [UnlabeledCase(case, self.preprocessed_dataset_folder) for case in labeled], "labeled cases"
            )
        self.labeled_cases = training
        if self.config.ramp_peak > 0:
            cases = self._find_unlabeled(training.identifiers, validation.identifiers, without_labels)
            self._check_previous_stage(cases, "unlabeled images")
            self.unlabeled_images = UnlabeledImages(cases, self.folder_with_segs_from_previous_stage)
            self.print_to_log_file(f"Training on {len(training.identifiers)} labeled and {len(cases)} unlabeled cases.")
        return training, validation

    def _check_previous_stage(self, cases: Sequence[UnlabeledCase], meaning: str) -> None:
        if self.is_cascaded:
            images = UnlabeledImages(cases, self.folder_with_segs_from_previous_stage)
            check_previous_stage(images, meaning, previous_stage_command(self))

    def _find_unlabeled(
        self, training: Sequence[str], validation: Sequence[str], without_labels: Sequence[str]
    ) -> list[UnlabeledCase]:
        entry = {"train": list(training), "val": list(validation), "unlabeled": list(without_labels)}
        return find_unlabeled_cases(self.dataset, self.configuration_name, entry)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Divide the cases as nnU-Net does, or as it does not: few cases, and groups of cases."""
        if self.fold != "all":
            cases = infer_dataset_class(self.preprocessed_dataset_folder).get_identifiers(
                self.preprocessed_dataset_folder
            )
            # macOS leaves a hidden file beside each file on foreign disks.
            cases = sorted(case for case in cases if not case.startswith("."))
            groups = load_groups(self.dataset.name)
            self._check_fold(cases, groups)
            if folds := write_folds_unlike_nnunet(cases, self.dataset.splits_file, groups):
                self.print_to_log_file(f"Made {folds} folds of {describe_units(cases, groups)}.")
        return super().do_split()

    def _check_fold(self, cases: Sequence[str], groups: Mapping[str, str]) -> None:
        """Check that a fold is among those that will be made if there are none; nnU-Net would draw cases of its own."""
        if not self.dataset.splits_file.is_file() and self.fold >= (number := len(default_splits(cases, groups))):
            raise ValueError(f"There is no fold {self.fold}, but folds 0 to {number - 1}; train one of these")

    def split_unlabeled(self) -> list[str]:
        """Return the labeled cases that this fold of ``splits_final.json`` uses without their labels."""
        return load_split_unlabeled(self.dataset.splits_file, self.fold)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Start nnU-Net's loaders with a part of the allowed workers and the unlabeled loader with the rest."""
        with environment(nnUNet_n_proc_DA=str(get_allowed_n_proc_DA() - self._unlabeled_workers)):
            loaders = super().get_dataloaders()  # nnU-Net starts its loaders with so many
        if self.loads_unlabeled:
            self._start_unlabeled_loader()
        return loaders

    @property
    def _unlabeled_workers(self) -> int:
        if not self.loads_unlabeled:
            return 0
        cost = self.unlabeled_patch_cost * self.unlabeled_batch_size
        return workers_for_unlabeled(get_allowed_n_proc_DA(), self.batch_size, cost)

    @property
    def unlabeled_patch_cost(self) -> float:
        """Time that loading an unlabeled patch takes, at most, that of a labeled one being 1: there is no segmentation
        to load, deform and shrink, and a weak view is not changed in its intensities. In a cascade, nnU-Net's changes
        of the previous stage's segmentation take most of the time, of both alike.
        """
        if self.is_cascaded:
            return 1.0
        return 0.25 if self.has_weak_views else 0.6

    def _start_unlabeled_loader(self) -> None:
        self.dataloader_unlabeled = start_unlabeled_loader(
            self.build_unlabeled_loader(), self._unlabeled_workers, pin_memory=self.device.type == "cuda"
        )

    def restart_unlabeled_loader(self) -> None:
        """Build the loader of unlabeled patches anew, after a change of its images."""
        earlier = self.dataloader_unlabeled
        if isinstance(earlier, NonDetMultiThreadedAugmenter):
            earlier._finish()
        self._start_unlabeled_loader()
        self.continue_random_numbers(earlier)
        self._watch_workers()

    def continue_random_numbers(self, earlier: Any) -> None:
        """Let a new loader of this process go on where an earlier one ended; else it would draw the same numbers again.

        Workers are seeded anew at each start.
        """
        if isinstance(earlier, IsolatedAugmenter) and isinstance(self.dataloader_unlabeled, IsolatedAugmenter):
            self.dataloader_unlabeled.states = earlier.states

    @property
    def loads_unlabeled(self) -> bool:
        """Whether the next steps need unlabeled patches."""
        return self.config.ramp_peak > 0

    @property
    def needs_unlabeled(self) -> bool:
        """Whether the current step learns from unlabeled patches; where not, none are loaded."""
        return True

    @property
    def unlabeled_batch_size(self) -> int:
        """Number of unlabeled patches in a step."""
        return max(1, round(self.config.unlabeled_ratio * self.batch_size))

    def build_unlabeled_loader(self) -> nnUNetDataLoader:
        """Build the loader of unlabeled patches, see :func:`loader.build_unlabeled_loader`."""
        assert self.unlabeled_images is not None  # found together with the labeled cases
        return build_unlabeled_loader(self, self.unlabeled_images)

    def next_unlabeled(self) -> Tensor:
        """Return the next unlabeled patches ``(B, channels, *patch)``, on the device; remember where they lie."""
        batch = next(self.dataloader_unlabeled)
        self.unlabeled_origin = Origin(batch["keys"], batch["positions"])
        return self._to_device(batch["data"])

    def _to_device(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self._to_device(item) for item in data]
        return to_device(data, self.device)

    def run_training(self) -> None:
        """Train as nnU-Net does, keep other processes out, and name the cause when a worker process was killed.

        Raises:
            BlockingIOError: another process is training in the same folder.
            RuntimeError: a worker process died, or too many steps in a row were not finite.
        """
        lock = hold_lock(
            os.path.join(self.output_folder, ".training.lock"), f"training in {self.output_folder}", wait=0
        )
        try:
            with lock if self.local_rank == 0 else nullcontext():
                if self.local_rank == 0:
                    for folder in (self.output_folder, os.path.join(self.output_folder, PATCHES_FOLDER)):
                        remove_abandoned(folder)
                super().run_training()
        except RuntimeError as error:
            if cause := explain_death(self._workers, error):
                raise RuntimeError(cause) from error
            raise

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and remember the processes that load patches."""
        super().on_train_start()
        self._watch_workers()

    def _watch_workers(self) -> None:
        self._workers = {
            "labeled images": processes_of(self.dataloader_train),
            "validation images": processes_of(self.dataloader_val),
            "unlabeled images": processes_of(self.dataloader_unlabeled),
        }

    def on_train_end(self) -> None:
        """Stop the unlabeled workers as well, before the final validation."""
        super().on_train_end()
        if isinstance(self.dataloader_unlabeled, NonDetMultiThreadedAugmenter):
            self.dataloader_unlabeled._finish()
        self.dataloader_unlabeled = None
