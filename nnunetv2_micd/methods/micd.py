"""MICD: masked image consistency and discrepancy learning (P. Zhou, L. Zhang, W. Li, arXiv 2503.14013)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from nnunetv2_micd.augmentation.masks import apply_mask, sample_mask
from nnunetv2_micd.losses.class_weights import DifficultyWeights, DistributionWeights, count_labels, hard_dice
from nnunetv2_micd.losses.consistency import cfc, cfc_stage_weights, cmd, mcpc
from nnunetv2_micd.losses.labels import differing, foreground_share, label_map
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.networks import build_peer, forward_with_features, full_resolution
from nnunetv2_micd.training.passes import Pass
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer

Reading = Literal["peer_masked", "both_masked", "peer_clean"]


@dataclass(frozen=True)
class MICDConfig(SemiSupervisedConfig):
    """The numbers of MICD; equations are those of the paper.

    Attributes:
        mcpc_weight, cfc_weight, cmd_weight: of eq. 3, 4 and 5 in eq. 7, where each has 1; at 0 a term is not computed.
            CFC, by far the largest term, has less, which was no worse (``docs/results``).
        labeled_consistency: whether eq. 3, 4 and 5 see the labeled images as well, as in the paper. On the unlabeled
            ones alone a step takes three quarters of the time and the result is no worse (``docs/results``). With
            an ignore label they always do: what is ignored there is unlabeled.
        mcpc_reading: which passes eq. 3 compares, see :func:`nnunetv2_micd.losses.consistency.mcpc`.
        mask_ratio: r of eq. 2, the share of blocks that is zeroed.
        mask_block: s of eq. 2, the edge of a block in voxels.
        difficulty_weights, distribution_weights: whether DHC's W_diff weighs A's part of eq. 3, W_dist that of B. Off
            by measurement, where classes are few and balanced (``docs/results``); made for many of very different size.
        dist_floor: least weight of a class in W_dist before the multiplication by the number of classes; literally 0,
            which takes the most frequent class, the background, out of the loss of B.
        difficulty_tau: tau of W_diff, in steps.
        recompute_peer: whether only one network's graph is held at a time: the same gradients with less memory, for one
            forward pass more. (Of networks without dropout and batch normalization, as nnU-Net plans them.)
    """

    mcpc_weight: float = 1.0
    cfc_weight: float = 0.1
    cmd_weight: float = 1.0
    labeled_consistency: bool = False
    mcpc_reading: Reading = "both_masked"
    mask_ratio: float = 0.5
    mask_block: int = 3
    difficulty_weights: bool = False
    distribution_weights: bool = False
    dist_floor: float = 0.3
    difficulty_tau: int = 50
    recompute_peer: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mcpc_weight", "cfc_weight", "cmd_weight"):
            if (weight := getattr(self, name)) < 0:
                raise ValueError(f"{name} is {weight}, it has to be 0 or more.")
        if self.ramp_peak > 0 and not self.mcpc_weight + self.cfc_weight + self.cmd_weight:
            raise ValueError(
                "mcpc_weight, cfc_weight and cmd_weight are all 0; set ramp_peak to 0 to train on labeled images alone."
            )
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio}, it has to be at least 0 and below 1.")
        if self.mask_block < 1:
            raise ValueError(f"mask_block is {self.mask_block}, it has to be 1 voxel or more.")
        if not 0 <= self.dist_floor <= 1:
            raise ValueError(f"dist_floor is {self.dist_floor}, it has to be between 0 and 1.")
        if self.difficulty_tau < 1:
            raise ValueError(f"difficulty_tau is {self.difficulty_tau}, it has to be 1 step or more.")
        if self.mcpc_reading not in get_args(Reading):
            raise ValueError(f"mcpc_reading is '{self.mcpc_reading}', it has to be one of {get_args(Reading)}.")


class _Output(NamedTuple):
    """What a student puts out.

    Attributes:
        masked: logits ``(B, K, *spatial)`` of the masked images.
        features: those of the decoder stages that eq. 4 compares, ``(B, C_k, *spatial_k)``, deepest first.
        clean: logits of the clean images, where these are what learns from the pseudo-labels of eq. 3.
    """

    masked: Tensor
    features: list[Tensor]
    clean: Tensor | None

    @property
    def student(self) -> Tensor:
        """The logits that learn from the pseudo-labels of eq. 3."""
        return self.masked if self.clean is None else self.clean

    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        return [self.masked, *self.features, *([] if self.clean is None else [self.clean])]


class nnUNetTrainerMICD(SemiSupervisedTrainer):
    """MICD: two different networks learn from the labels, from each other and from their own past, on masked images.

    Passes of a step, forward F and backward, on a labeled and an unlabeled batch of equal size (stock nnU-Net:
    one F and one backward on a labeled batch): per network supervised 1 F + 1 backward, masked 1 F + 1 backward,
    teacher 1 F; ``peer_clean`` adds 1 F, ``peer_masked`` 1 F + 1 backward. With ``labeled_consistency`` masked 2 F +
    2 backward, teacher 2 F; ``peer_clean`` adds 1 F, ``peer_masked`` 2 F + 2 backward. ``recompute_peer`` repeats the
    forward passes of B on masked images (and the clean ones of ``peer_masked``) once.
    """

    config: ClassVar[MICDConfig] = MICDConfig()

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Network B, another architecture from the same plans; and the class weights, which checkpoints load into."""
        peer = build_peer(
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )
        classes = self.label_manager.num_segmentation_heads
        self._difficulty = DifficultyWeights(classes, self.config.difficulty_tau).to(self.device)
        self._distribution = DistributionWeights(torch.ones(classes), self.config.dist_floor).to(self.device)
        return {"b": peer}

    def prepare_method(self) -> None:
        """W_dist starts from the label counts of the labeled training cases."""
        if self.config.mcpc_weight and self.config.distribution_weights and self.config.ramp_peak > 0:
            counts = count_labels(self.labeled_cases, self.label_manager)
            self._distribution = DistributionWeights(counts, self.config.dist_floor).to(self.device)

    def unsupervised_passes(self) -> list[Pass]:
        """Return those of eq. 3, 4 and 5; without the one that :attr:`MICDConfig.recompute_peer` repeats."""
        images: tuple[Literal["labeled", "unlabeled"], ...] = ("unlabeled",)
        if self._labeled_consistency:
            images = ("labeled", "unlabeled")
        passes = [Pass(name, which) for name in "ab" for which in images]
        if self.config.cmd_weight:
            passes += [Pass(name, which, gradient=False, teacher=True) for name in "ab" for which in images]
        if self._trains_on_clean_images:
            passes += [Pass(name, which) for name in "ab" for which in images]
        if self._pseudo_labels_are_clean:
            passes += [Pass(name, "unlabeled", gradient=False) for name in "ab"]
        return passes

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Eq. 6 on the labeled images; then eq. 3, 4 and 5 on the unlabeled, or all, images (eq. 7 weighs them)."""
        images, target = labeled["data"], labeled["target"]
        predicted: dict[str, Tensor] = {}
        for name, network, loss_name in (("a", self.network, "supervised"), ("b", self.students["b"], "supervised_b")):
            output = network(images)
            if unlabeled is not None and self._needs_predicted:
                predicted[name] = self.pseudo_label(full_resolution(output))
            loss = self.loss(output, target)
            del output  # of its graph the loss keeps what the backward pass needs
            yield {loss_name: loss}
        if unlabeled is None:
            return

        weights = self._class_weights(predicted, full_resolution(target))
        images = torch.cat((images, unlabeled)) if self._labeled_consistency else unlabeled
        masked = apply_mask(images, self._sample_mask(images, self.generator))
        teachers: list[Tensor] = []
        if self.config.cmd_weight:
            with torch.no_grad():
                teachers = [self.pseudo_label(self.logits(self.teachers[name], images)) for name in "ab"]
        if not self.config.recompute_peer:
            a, b = self._run("a", images, masked), self._run("b", images, masked)
            yield self._consistency(a, b, self._pseudo_labels(a, b, unlabeled, predicted), teachers, weights)
            return
        # What a student learns depends on what its peer puts out, not on the peer's graph. So B first runs without one;
        # what the losses say to B is kept until A's graph is gone and B's is built.
        with torch.no_grad():
            b = self._run("b", images, masked)
        leaves = [tensor.requires_grad_() for tensor in b.tensors()]
        a = self._run("a", images, masked)
        yield self._consistency(a, b, self._pseudo_labels(a, b, unlabeled, predicted), teachers, weights)
        gradients = [leaf.grad for leaf in leaves]
        del a, b, leaves
        self.backpropagate(self._run("b", images, masked).tensors(), gradients)

    @property
    def _labeled_consistency(self) -> bool:
        return self.config.labeled_consistency or self.label_manager.has_ignore_label

    @property
    def _needs_predicted(self) -> bool:
        """Whether what the students see in the clean labeled images is needed after the supervised passes."""
        return self.config.difficulty_weights or (self._labeled_consistency and self._pseudo_labels_are_clean)

    @property
    def _pseudo_labels_are_clean(self) -> bool:
        return self.config.mcpc_reading == "peer_clean" and self.config.mcpc_weight > 0

    @property
    def _trains_on_clean_images(self) -> bool:
        return self.config.mcpc_reading == "peer_masked" and self.config.mcpc_weight > 0

    def _sample_mask(self, images: Tensor, generator: torch.Generator) -> Tensor:
        ratio, block = self.config.mask_ratio, self.config.mask_block
        return sample_mask(len(images), images.shape[2:], ratio, block, generator, images.device)

    def _run(self, name: str, images: Tensor, masked: Tensor) -> _Output:
        """Run a student on the masked images, and on the clean ones where the reading of eq. 3 asks for it."""
        logits, features = self.forward_with_features(self.students[name], masked)
        weights = cfc_stage_weights(len(features)) if self.config.cfc_weight else ()
        clean = self.logits(self.students[name], images) if self._trains_on_clean_images else None
        return _Output(logits, features[len(features) - len(weights) :], clean)

    def _pseudo_labels(
        self, a: _Output, b: _Output, unlabeled: Tensor, predicted: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the pseudo-labels of A and B for the configured reading of eq. 3, and look at them."""
        if self._pseudo_labels_are_clean:
            with torch.no_grad():  # the labeled half is known from the supervised pass
                clean = {name: self.pseudo_label(self.logits(self.students[name], unlabeled)) for name in "ab"}
            if self._labeled_consistency:
                clean = {name: torch.cat((predicted[name], labels)) for name, labels in clean.items()}
            pseudo_a, pseudo_b = clean["a"], clean["b"]
        else:
            pseudo_a, pseudo_b = self.pseudo_label(a.masked), self.pseudo_label(b.masked)
        self._observe(pseudo_a[-len(unlabeled) :], pseudo_b[-len(unlabeled) :])
        return pseudo_a, pseudo_b

    def _class_weights(self, predicted: dict[str, Tensor], target: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """W_diff for A, from its Dice on this labeled batch, and W_dist for B, as it stands."""
        weight_a = weight_b = None
        if self.config.difficulty_weights and self.config.mcpc_weight:
            truth, ignored = self.hard_target(target)
            dice = hard_dice(predicted["a"], truth, self.label_manager.num_segmentation_heads, ignored)
            weight_a = self._difficulty.update(dice)
        if self.config.distribution_weights and self.config.mcpc_weight:
            weight_b = self._distribution.weights
        return weight_a, weight_b

    def _consistency(
        self,
        a: _Output,
        b: _Output,
        pseudo: tuple[Tensor, Tensor],
        teachers: list[Tensor],
        weights: tuple[Tensor | None, Tensor | None],
    ) -> dict[str, Tensor]:
        """Eq. 3, 4 and 5, with gradient for those students that were run with it."""
        config, losses = self.config, {}
        if config.mcpc_weight:
            losses["mcpc"] = config.mcpc_weight * mcpc(a.student, b.student, *pseudo, *weights)
        if config.cfc_weight:
            losses["cfc"] = config.cfc_weight * cfc(a.features, b.features, cfc_stage_weights(len(a.features)))
        if config.cmd_weight:
            losses["cmd"] = config.cmd_weight * cmd(a.masked, b.masked, *teachers)
        return losses

    def _observe(self, pseudo_a: Tensor, pseudo_b: Tensor) -> None:
        """Let W_dist see B's pseudo-labels of the unlabeled half, and log what both branches say of it.

        The pseudo-labels are those of eq. 3, so it depends on the reading whether they are of masked images.
        """
        if self.config.mcpc_weight and self.config.distribution_weights:
            self._distribution.update(pseudo_b)
        self.metrics["agreement"] = 1 - differing(pseudo_a, pseudo_b).float().mean()
        self.metrics["foreground_a"] = foreground_share(pseudo_a)
        self.metrics["foreground_b"] = foreground_share(pseudo_b)

    def method_state(self) -> dict[str, Any]:
        """Return the state of the class weights."""
        return {
            "difficulty": self._difficulty.state_dict(),
            "distribution": self._distribution.state_dict(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._difficulty.load_state_dict(state["difficulty"])
        self._distribution.load_state_dict(state["distribution"])

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Image, masked image, both pseudo-labels and where they differ."""
        mask = self._sample_mask(unlabeled, torch.Generator().manual_seed(self.current_epoch))
        masked = apply_mask(unlabeled, mask)
        # The images on which the configured reading makes its pseudo-labels.
        source = unlabeled if self.config.mcpc_reading == "peer_clean" else masked
        # Not compiled: for another batch size, now and then, that would cost more than it brings.
        label_a, label_b = (self.pseudo_label(forward_with_features(self.students[n], source)[0]) for n in "ab")
        return {
            "image": unlabeled[:, 0],
            "masked image": masked[:, 0],
            "pseudo-label of A": label_map(label_a),
            "pseudo-label of B": label_map(label_b),
            "A and B differ": differing(label_a, label_b),
        }
