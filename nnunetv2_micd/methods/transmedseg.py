"""TransMedSeg: transferable semantic augmentation (Wang et al., 2025, https://arxiv.org/abs/2505.14753)."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from nnunetv2_micd.losses.semantic_augmentation import FeatureStatistics, augmented_cross_entropy
from nnunetv2_micd.methods.bcp import BCPConfig, Output, nnUNetTrainerBCP
from nnunetv2_micd.training.networks import full_resolution, output_layer
from nnunetv2_micd.utils.ranges import Between, Weight


@dataclass(frozen=True)
class TransMedSegConfig(BCPConfig):
    """Numbers of BCP, and of TransMedSeg as far as they are known: its paper has no code.

    Attributes:
        augmentation_weight: beta, weight of the augmented cross entropy. Chosen here: half, the weight of the cross
            entropy in BCP's own loss.
        strength: Strength of the augmentation at the end of the training, to which it grows linearly from zero. That of
            its parent TSA (BIT-DA/TSA, commit 1653a9fb).
        statistics_decay: Share of the past in the statistics of the features. Chosen here: that of the teacher.
    """

    augmentation_weight: Weight = 0.5
    strength: Weight = 0.25
    statistics_decay: Annotated[float, Between(0, 1, exclude="high")] = 0.99


class nnUNetTrainerTransMedSeg(nnUNetTrainerBCP):
    """Reconstruction of TransMedSeg: BCP that also learns from labeled features moved towards the unlabeled ones.

    ``L = L_BCP + beta CE(augment(z), y)`` on the labeled voxels of the mixed images, :func:`augment_logits` being the
    closed form of infinitely many features, drawn with the covariance of their class in the unlabeled images and moved
    by the difference of the class means. Features are those before the output layer: of the student on labeled voxels
    (source), of the teacher on unlabeled images under its pseudo-labels (target). There is no code, and the paper's
    equations were not at hand, so this is what the abstract and a summary say, in the form of the parent method TSA.
    Departures, whose direction is not known:

    - The abstract has features of the teacher augmented towards the student. Here it is the reverse, as in the summary
      and in TSA, whose source is what has labels.
    - The source is measured on mixed images, the target on unmixed ones. So their difference is also that of mixed and
      unmixed images, and of student and teacher.
    - At a strength of zero the augmented cross entropy is one half of BCP's on labeled voxels once more. So a gain over
      BCP does not show by itself that the augmentation helps.
    - The paper stands on GraphCL, which is BCP with a loss on a graph of features; here it stands on BCP alone.
    - Statistics are moving averages over the steps, instead of a memory of features.
    - TSA rewards mutual information between target images and their predicted classes as well, with weight 0.1. That is
      left out, as no summary of TransMedSeg names it.
    - Weight, strength and decay are not published.

    Passes of a step: 2 F + 2 backward, teacher 1 F, with an ignore label 2 F.
    """

    config: ClassVar[TransMedSegConfig] = TransMedSegConfig()

    def build_method(self) -> None:
        """Start without statistics."""
        manager, layer = self.label_manager, output_layer(self.students["a"])
        self.source, self.target = (
            FeatureStatistics(
                manager.num_segmentation_heads,
                layer.weight.shape[1],
                manager.has_regions,
                self.config.statistics_decay,
            ).to(self.device)
            for _ in range(2)
        )

    def run_teacher(self, unlabeled: Tensor) -> Tensor:
        """Keep the teacher's features of the unlabeled images."""
        logits, (*_, self.teacher_features) = self.forward_with_features(self.teachers["a"], unlabeled)
        return logits

    def run_student(self, mixed: Tensor) -> Output:
        """Keep the student's features and logits of the mixed images."""
        output, (*_, self.student_features) = self.forward_with_outputs(self.students["a"], mixed)
        self.student_logits = full_resolution(output)
        return output

    def further_losses(self, labels: Tensor, is_unlabeled: Tensor, pseudo: Tensor) -> dict[str, Tensor]:
        """The augmented cross entropy on labeled voxels."""
        is_labeled = ~is_unlabeled
        self.source.update(self.student_features, labels, is_labeled)
        self.target.update(self.teacher_features, pseudo)
        weight = output_layer(self.students["a"]).weight.flatten(1)
        strength = self.config.strength * self.iteration / (self.num_epochs * self.num_iterations_per_epoch)
        loss = augmented_cross_entropy(
            self.student_logits, labels, is_labeled, weight, self.source, self.target, strength
        )
        del self.student_features, self.student_logits, self.teacher_features  # they hold the graph of the step
        return {"augmented": self.config.augmentation_weight * loss}

    def method_state(self) -> dict[str, Any]:
        """Return the statistics."""
        return {"source": self.source.state_dict(), "target": self.target.state_dict()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.source.load_state_dict(state["source"])
        self.target.load_state_dict(state["target"])
