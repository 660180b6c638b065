"""What the methods with two students share: network B, the supervised losses of both, what is logged and drawn."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nnunetv2_micd.losses.labels import differing, foreground_share, label_map
from nnunetv2_micd.training.networks import build_peer, forward_to_logits
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer


class TwoStudents(SemiSupervisedTrainer):
    """Base of the methods that train a network B beside A, the network of the plans.

    Attributes:
        architecture_of_b: ``"same"``: the architecture of the plans with other initial weights; ``"other"``: another
            architecture from the same plans, see :func:`networks.peer_architecture`.

    Examples:
        :class:`~nnunetv2_micd.methods.cps.nnUNetTrainerCPS` is the shortest method of this kind.
    """

    architecture_of_b: ClassVar[Literal["same", "other"]] = "same"

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Build network B; the global random state stays as it was."""
        sizes = self.num_input_channels, self.label_manager.num_segmentation_heads, self.enable_deep_supervision
        if self.architecture_of_b == "other":
            return {"b": build_peer(self.configuration_manager, *sizes)}
        with torch.random.fork_rng(devices=[]):  # B's weights are drawn after A's, so they differ
            return {"b": self.build_network_architecture(self.plans_manager, self.configuration_manager, *sizes)}

    def supervised_losses(self, output_a: Any, output_b: Any, target: Any) -> dict[str, Tensor]:
        """Return nnU-Net's loss of both networks on labeled images."""
        return {"supervised": self.loss(output_a, target), "supervised_b": self.loss(output_b, target)}

    def observe(self, pseudo_a: Tensor, pseudo_b: Tensor) -> None:
        """Log how often the hard labels of both networks agree on unlabeled images, and how much foreground they see.

        Args:
            pseudo_a: Hard labels of A, see ``losses.pseudo_label``.
            pseudo_b: Hard labels of B, the same shape.
        """
        self.metrics["agreement"] = 1 - differing(pseudo_a, pseudo_b).float().mean()
        self.metrics["foreground_a"] = foreground_share(pseudo_a)
        self.metrics["foreground_b"] = foreground_share(pseudo_b)

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Draw the image, the labels of both networks and where they differ."""
        return {"image": self.image_panel(unlabeled), **self.label_panels(unlabeled)}

    def label_panels(self, images: Tensor) -> dict[str, Tensor]:
        """Return the hard labels of both networks for a picture, and where they differ."""
        # Not compiled: a picture has another batch size now and then, for which compiling costs more than it saves.
        label_a, label_b = (self.pseudo_label(forward_to_logits(self.students[name], images)) for name in "ab")
        return {
            "label of A": label_map(label_a),
            "label of B": label_map(label_b),
            "A and B differ": differing(label_a, label_b),
        }
