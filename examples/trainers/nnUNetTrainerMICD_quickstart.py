"""A trainer variant of one's own: MICD for a run of minutes on a CPU.

nnU-Net finds it because this folder is the second one in ``nnUNet_extTrainer``. As everywhere in nnU-Net, a trainer is
chosen by the name of its class, and settings are changed in a subclass.
"""

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring

from nnunetv2_micd.micd import nnUNetTrainerMICD


class nnUNetTrainerMICD_quickstart(nnUNetTrainerNoMirroring, nnUNetTrainerMICD):
    """MICD in 300 steps: AdamW instead of SGD, no mirroring, channels-last memory format."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - the signature has to be nnU-Net's own
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 12
        self.num_iterations_per_epoch = 25
        self.num_val_iterations_per_epoch = 5
        self.initial_lr = 3e-3  # nnU-Net's SGD with 0.01 predicts only background after so few steps

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Return AdamW with nnU-Net's schedule; MICD adds the second network to it."""
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def initialize(self) -> None:
        """Store the weights of all networks channels-last, in which a CPU computes 3D convolutions faster."""
        super().initialize()
        for network in (*self.students.values(), *self.teachers.values()):
            network.to(memory_format=torch.channels_last_3d)
