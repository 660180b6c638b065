"""Example of custom trainers: every method with a recipe that trains a small network on one CPU core in minutes.

nnU-Net finds these trainers because ``nnUNet_extTrainer`` also lists this folder. As everywhere in nnU-Net, you choose
a trainer by its class name and change settings in a subclass. Each trainer ``X`` becomes ``X_small`` here, with 300
steps, ``X_small_800steps`` and ``X_small_3200steps``.

nnU-Net's own recipe needs thousands of steps. This recipe is the same for all methods, so the comparison is fair, but
its scores are not the ones that nnU-Net's recipe would reach.
"""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from torch import nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as methods
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer

CAPABILITIES = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch cannot tell
COMPUTES_BFLOAT16 = CAPABILITIES.get("amx_bf16", False) or CAPABILITIES.get("avx512_bf16", False)
"""Whether this CPU has instructions for products in bfloat16. On other CPUs bfloat16 may be slower than float32."""


class GroupInstanceNorm(_InstanceNorm):
    """Instance normalization, computed as group normalization with a group for each channel.

    The result is the same. In 2D and float32, a pass through the small network and back takes two thirds of the time.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalize each channel of each case. ``features`` has shape (batch, channel, [z,] y, x)."""
        return functional.group_norm(features, self.num_features, self.weight, self.bias, self.eps)


def speed_up(network: nn.Module) -> None:
    """Choose the memory format and the normalization that take the least time on this CPU."""
    is_3d = any(isinstance(module, nn.Conv3d) for module in network.modules())
    if is_3d or COMPUTES_BFLOAT16:
        network.to(memory_format=torch.channels_last_3d if is_3d else torch.channels_last)
        return
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.__class__ = GroupInstanceNorm


class SmallRecipe(nnUNetTrainerNoMirroring):
    """300 steps, AdamW instead of SGD, no mirroring, and bfloat16 on a CPU that computes it fast."""

    small_epochs = 12

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - the signature has to be nnU-Net's own
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.small_epochs
        self.num_iterations_per_epoch = 25
        self.num_val_iterations_per_epoch = 2
        self.initial_lr = 3e-3  # for AdamW; nnU-Net's SGD with 0.01 would predict only background after so few steps

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Return AdamW with nnU-Net's schedule. Methods with more networks add them to the optimizer."""
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def initialize(self) -> None:
        """Prepare all networks for fast steps on a CPU."""
        super().initialize()
        students, teachers = getattr(self, "students", {"a": self.network}), getattr(self, "teachers", {})
        for network in (*students.values(), *teachers.values()):
            if not hasattr(network, "decoder"):  # a projector, or a 2D network beside a 3D one
                continue
            speed_up(network)
            for layer in network.decoder.seg_layers:  # so that losses are computed in float32
                layer.register_forward_hook(lambda module, inputs, output: output.float())

    def mixed_precision(self) -> torch.autocast:
        """Return the context of mixed precision on a CPU. nnU-Net itself uses mixed precision on CUDA only.

        Do not update weights and then run a forward pass inside the same context: autocast caches weights in bfloat16
        until it ends, so the pass would use the old ones.
        """
        return torch.autocast("cpu", torch.bfloat16, enabled=self.device.type == "cpu" and COMPUTES_BFLOAT16)

    def autocast(self) -> AbstractContextManager:
        """Let semi-supervised trainers compute their losses in mixed precision."""
        return self.mixed_precision() if self.device.type == "cpu" else super().autocast()

    def train_step(self, batch: dict) -> dict:
        """Take a step in mixed precision."""
        if isinstance(self, SemiSupervisedTrainer):
            return super().train_step(batch)
        with self.mixed_precision():
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """Validate a batch in mixed precision."""
        with self.mixed_precision():
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict in mixed precision."""
        with self.mixed_precision():
            super().perform_actual_validation(save_probabilities)


BASES = [nnUNetTrainer, *(getattr(methods, name) for name in methods.__all__)]
for base in BASES:
    name = f"{base.__name__}_small"
    content = {"__doc__": base.__doc__, "__module__": __name__}
    if issubclass(base, methods.nnUNetTrainerMICD):  # faster, and main memory is large enough for both graphs
        content["config"] = replace(base.config, recompute_peer=False)
    globals()[name] = type(name, (SmallRecipe, base), content)
    for epochs, longer in ((32, f"{name}_800steps"), (128, f"{name}_3200steps")):
        globals()[longer] = type(longer, (globals()[name],), {**content, "small_epochs": epochs})
