"""MICD: masked image consistency and discrepancy learning (P. Zhou, L. Zhang, W. Li, arXiv 2503.14013).

Two students with different architectures, A and B, learn from labeled images x_l and unlabeled images x_u. ``p`` is a
softmax, ``y^`` a hard pseudo-label (argmax, no gradient), A' and B' are the teachers. The equations and where they are:

1. ``theta'_t = a theta'_{t-1} + (1 - a) theta_t``: the teachers, :mod:`training.ema`, after each step.
2. ``x^m = M(r, s) x``: masked images, :meth:`nnUNetTrainerMICD.sample_mask`.
3. ``MCPC = CE(p_A(x^m), y^_B(x^m)) + CE(p_B(x^m), y^_A(x^m))``: each student learns the other's hard labels.
   The printed equation also has class weights and can be read in two more ways, see :mod:`methods.micd_paper`.
4. ``CFC = sum_k l_k KL(d_A^k, d_B^k)``: the decoder features of both agree, k = 1 ... 4.
5. ``CMD = CE(p_A(x^m), y^_A'(x)) + CE(p_B(x^m), y^_B'(x))``: each follows its own teacher on the clean image.
6. ``L_sup``: nnU-Net's loss of A and of B on clean labeled images.
7. ``L = L_sup + b(t) (MCPC + CFC + CMD)``: the sum, with one Gaussian ramp-up b(t) for all three terms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from nnunetv2_micd.augmentation.masks import apply_mask, sample_mask
from nnunetv2_micd.losses.consistency import CFC_STAGE_WEIGHTS, cfc, cmd, mcpc
from nnunetv2_micd.methods.two_students import TwoStudents
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.step import Deferred, Losses
from nnunetv2_micd.utils.ranges import Between, Weight


@dataclass(frozen=True)
class MICDConfig(SemiSupervisedConfig):
    """Numbers of MICD, with the equation numbers of the paper.

    Attributes:
        mcpc_weight, cfc_weight, cmd_weight: Weights of eq. 3, 4 and 5 in eq. 7, where each has 1; at 0 a term is not
            computed. CFC is by far the largest term and has less here; the result was no worse (``docs/results``).
        labeled_consistency: Whether eq. 3, 4 and 5 see the labeled images as well, as in the paper. On the unlabeled
            ones alone a step takes about two thirds of the time and the result is no worse (``docs/results``). With
            an ignore label they always do: what is ignored there is unlabeled.
        mask_ratio: r of eq. 2, the share of blocks that is zeroed.
        mask_block: s of eq. 2, the edge of a block in voxels.
        recompute_peer: Whether only one network's graph is held at a time, see :class:`training.step.Deferred`: the
            same gradients with less memory, for one forward pass more.
    """

    mcpc_weight: Weight = 1.0
    cfc_weight: Weight = 0.1
    cmd_weight: Weight = 1.0
    labeled_consistency: bool = False
    mask_ratio: Annotated[float, Between(0, 1, exclude="high")] = 0.5
    mask_block: Annotated[int, Between(1)] = 3
    recompute_peer: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp_peak > 0 and not self.mcpc_weight + self.cfc_weight + self.cmd_weight:
            raise ValueError(
                "mcpc_weight, cfc_weight and cmd_weight are all 0; set ramp_peak to 0 to train on labeled images alone."
            )


class StudentOutput(NamedTuple):
    """Output of a student.

    Attributes:
        masked: Logits ``(B, K, *spatial)`` of the masked images.
        features: Features of the decoder stages that eq. 4 compares, ``(B, C_k, *spatial_k)``, deepest first.
        clean: Logits of the clean images, where eq. 3 is read that way.
    """

    masked: Tensor
    features: list[Tensor]
    clean: Tensor | None = None


class nnUNetTrainerMICD(TwoStudents):
    """MICD: two different networks learn from the labels, from each other and from their own past, on
    masked images.

    The printed method is :class:`~nnunetv2_micd.methods.micd_paper.nnUNetTrainerMICD_paper`. Here eq. 3 has no class
    weights and compares masked images only, CFC has a tenth of its weight, and all three terms see the unlabeled images
    only. Each was chosen by measurement on hippocampus volumes, see ``docs/results``.

    Passes of a step, forward F and backward, on a labeled and an unlabeled batch of equal size (stock nnU-Net:
    one F and one backward on a labeled batch): per network supervised 1 F + 1 backward, masked 1 F + 1 backward,
    teacher 1 F; with ``labeled_consistency`` masked 2 F + 2 backward, teacher 2 F. ``recompute_peer`` repeats the
    forward pass of B on masked images once.
    """

    config: ClassVar[MICDConfig] = MICDConfig()
    architecture_of_b = "other"

    # Eq. 1: the base class updates both teachers after each step.

    def sample_mask(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 2: draw the mask M(r, s), the same for both students and all channels."""
        ratio, block = self.config.mask_ratio, self.config.mask_block
        return sample_mask(len(images), images.shape[2:], ratio, block, generator, images.device)

    @property
    def uses_labeled_images(self) -> bool:
        """Whether eq. 3, 4 and 5 see the labeled images as well."""
        return self.config.labeled_consistency or super().uses_labeled_images

    def run_student(self, name: str, images: Tensor, masked: Tensor) -> StudentOutput:
        """Run a student on the masked images."""
        logits, features = self.forward_with_features(self.students[name], masked)
        return StudentOutput(logits, features[-len(CFC_STAGE_WEIGHTS) :] if self.config.cfc_weight else [])

    def pseudo_labels(self, a: StudentOutput, b: StudentOutput, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hard labels y^_A and y^_B of eq. 3; no gradient reaches them."""
        return self.pseudo_label(a.masked), self.pseudo_label(b.masked)

    def cross_consistency(self, a: StudentOutput, b: StudentOutput, pseudo_a: Tensor, pseudo_b: Tensor) -> Tensor:
        """Eq. 3: each student learns the hard labels of the other."""
        return mcpc(a.masked, b.masked, pseudo_a, pseudo_b)

    def consistency_losses(
        self, a: StudentOutput, b: StudentOutput, teachers: list[Tensor], unlabeled: Tensor
    ) -> dict[str, Tensor]:
        """Eq. 3, 4 and 5, with gradient for the students that were run with it.

        Args:
            a: Output of A.
            b: Output of B.
            teachers: Hard labels of A' and B' on the clean images; empty without eq. 5.
            unlabeled: The unlabeled images, which come last in the batch.
        """
        config, losses = self.config, {}
        pseudo_a, pseudo_b = self.pseudo_labels(a, b, unlabeled)
        self.observe(pseudo_a[-len(unlabeled) :], pseudo_b[-len(unlabeled) :])
        if config.mcpc_weight:
            losses["mcpc"] = config.mcpc_weight * self.cross_consistency(a, b, pseudo_a, pseudo_b)
        if config.cfc_weight:
            losses["cfc"] = config.cfc_weight * cfc(a.features, b.features, CFC_STAGE_WEIGHTS[-len(a.features) :])
        if config.cmd_weight:
            losses["cmd"] = config.cmd_weight * cmd(a.masked, b.masked, *teachers)
        return losses

    def learn_labels(self, labeled: dict[str, Any]) -> Iterator[Losses]:
        """Eq. 6: nnU-Net's loss of A, then of B, one graph at a time."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        yield Losses({"supervised_b": self.loss(self.students["b"](labeled["data"]), labeled["target"])})

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """Eq. 7: eq. 6 on the labeled images, then eq. 3, 4 and 5, which the base class weighs by b(t)."""
        yield from self.learn_labels(labeled)
        if unlabeled is None:
            return
        images = self.consistency_images(labeled, unlabeled)
        masked = apply_mask(images, self.sample_mask(images, self.generator))
        teachers: list[Tensor] = []
        if self.config.cmd_weight:
            with torch.no_grad():
                teachers = [self.pseudo_label(self.logits(self.teachers[name], images)) for name in "ab"]
        # A learns from the outputs of B, not from B's graph. So B is deferred until the graph of A is gone.
        passes = Deferred(lambda: self.run_student("b", images, masked)) if self.config.recompute_peer else None
        a = self.run_student("a", images, masked)
        b = passes.outputs[0] if passes else self.run_student("b", images, masked)
        yield Losses(unsupervised=self.consistency_losses(a, b, teachers, unlabeled))
        del a, b
        if passes:
            passes.backward()

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Draw the image, the masked image, the pseudo-labels of both students there and where they differ."""
        mask = self.sample_mask(unlabeled, torch.Generator().manual_seed(self.current_epoch))
        masked = apply_mask(unlabeled, mask)
        return {
            "image": self.image_panel(unlabeled),
            "masked image": self.image_panel(masked),
            **self.label_panels(masked),
        }
