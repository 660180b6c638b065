"""nnFilterMatch (2025, https://arxiv.org/abs/2509.19746): online pseudo-labels in nnU-Net, and an entropy filter."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunetv2_micd.losses.labels import differing, foreground_share, label_map, probabilities
from nnunetv2_micd.training.config import SemiSupervisedConfig
from nnunetv2_micd.training.loader import build_unlabeled_loader
from nnunetv2_micd.training.networks import forward_to_logits, full_resolution
from nnunetv2_micd.training.predictors import predict_in_batches
from nnunetv2_micd.training.step import Losses, as_error
from nnunetv2_micd.training.trainer import SemiSupervisedTrainer
from nnunetv2_micd.utils.distributed import gather_over_processes, share_of_process
from nnunetv2_micd.utils.ranges import Between, Share

Output = Tensor | list[Tensor]

SLAB = 16
"""Slices of an image of which the entropy is computed at a time."""


@dataclass(frozen=True)
class FilterMatchConfig(SemiSupervisedConfig):
    """Numbers of nnFilterMatch (Ordi117/nnFilterMatch, commit 382b01d0), whose 300 epochs are taken as the whole.

    There is no teacher and no ramp-up.

    Attributes:
        supervised: Share of the training on labeled images alone. The authors have 20 epochs, and 5 with the fewest
            labels.
        flips_from: Share of the training after which strong views are mirrored as well.
        filter_every: Share of the training from one filtering of the unlabeled images to the next.
        filtered: Share of the images that each filtering takes out: those with the least entropy.
    """

    ema_decay: float = 0.0
    ramp_length: float = 0.0
    supervised: Share = 20 / 300
    flips_from: Share = 100 / 300
    filter_every: Annotated[float, Between(0, 1, exclude="low")] = 100 / 300
    filtered: Annotated[float, Between(0, 1, exclude="high")] = 0.15


class nnUNetTrainerFilterMatch(SemiSupervisedTrainer):
    """nnFilterMatch: the network learns its own hard labels of unlabeled images on turned images, in nnU-Net's loss.

    After a supervised start ``L = L_s(labeled) + b L_s(pseudo-labeled)``, both nnU-Net's loss with deep supervision. A
    pseudo-label is the most probable class of each of the network's outputs. The network learns it on the same image
    turned by 90, 180 or 270 degrees in the plane of the last two axes, later also mirrored. Twice in a training the
    images of which the network is most certain (least sum of entropy) are taken out of the unlabeled ones. Restated
    from the authors' trainer, a copy of nnU-Net's. Departures:

    - The authors compute one loss of labeled and pseudo-labeled images together. Here it is the sum of two, which has
      the same proportion and leaves nnU-Net's loss its weight. (With nnU-Net's batch Dice, theirs is of both together.)
    - Where the network's strides differ between the last two axes, images are turned by 180 degrees only.
    - Images are mirrored along those axes only along which nnU-Net mirrors, so never by a trainer without mirroring.
    - With regions a pseudo-label holds each region that is more probable than not.
    - The entropy of an image is predicted without mirroring, which takes an eighth of the time.
    - Length, learning rate, batch size and augmentation are nnU-Net's; their authors have 300 epochs, and half of the
      learning rate with the fewest labels.

    Passes of a step: supervised start 1 F + 1 backward; then 1 F + 1 backward on each of both batches, and 1 F.
    """

    config: ClassVar[FilterMatchConfig] = FilterMatchConfig()

    def build_method(self) -> None:
        """Start with all unlabeled images."""
        self.kept: list[str] | None = None  # the unlabeled images that are left; None for all of them
        self.filterings = 0

    @property
    def needs_unlabeled(self) -> bool:
        """Whether the current step is after the supervised start."""
        return self._has_reached(self.config.supervised)

    def _has_reached(self, share: float) -> bool:
        """Whether this share of the epochs is over."""
        return self.iteration // self.num_iterations_per_epoch >= round(share * self.num_epochs)

    def on_epoch_start(self) -> None:
        """Filter the unlabeled images when it is time."""
        super().on_epoch_start()  # first, so that filtering is part of the time of the epoch
        # The interval is not rounded, or there would be a third filtering in the last of 100 epochs.
        due = math.floor(self.current_epoch / (self.config.filter_every * self.num_epochs) + 1e-9)
        if self.config.ramp_peak and self.config.filtered and due > self.filterings:
            self.filterings = due
            self._filter()

    def _filter(self) -> None:
        assert self.unlabeled_images is not None  # found together with the labeled ones
        cases = self.kept or self.unlabeled_images.identifiers
        with self.deployed():
            self.set_deep_supervision_enabled(False)
            batch_size = self.configuration_manager.batch_size
            own = share_of_process(cases)
            predicted = predict_in_batches(self, self.network, self.unlabeled_images, own, batch_size)
            disable = True if self.local_rank else None  # None hides it where the output is no terminal
            bar = tqdm(predicted, "entropy filter", len(own), leave=False, unit="image", disable=disable)
            entropy = gather_over_processes({case: self._sum_entropy(logits) for case, logits in bar})
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.kept = most_uncertain({case: entropy[case] for case in cases}, self.config.filtered)
        self.print_to_log_file(f"The entropy filter keeps {len(self.kept)} of {len(cases)} unlabeled images.")
        self.restart_unlabeled_loader()

    def _sum_entropy(self, logits: Tensor) -> float:
        """Return the sum of the entropy of an image, ``(K, *spatial)``."""
        regions, total = self.label_manager.has_regions, 0.0
        for slab in logits.split(SLAB, dim=1):  # copies of a whole image with many classes may not fit into memory
            seen = probabilities(slab[None], regions)
            total += float(torch.special.entr(seen).sum())
            total += float(torch.special.entr(1 - seen).sum()) if regions else 0.0
        return total

    def build_unlabeled_loader(self) -> Any:
        """Build the loader of the unlabeled images that are left."""
        images = self.unlabeled_images
        assert images is not None
        return build_unlabeled_loader(self, images if self.kept is None else images.subset(self.kept))

    def compute_losses(self, labeled: dict[str, Any], unlabeled: Tensor | None) -> Iterator[Losses]:
        """nnU-Net's loss on the labeled images, then on turned unlabeled ones with the network's own labels."""
        yield Losses({"supervised": self.loss(self.network(labeled["data"]), labeled["target"])})
        if unlabeled is None or not self._has_reached(self.config.supervised):
            return
        images = self.consistency_images(labeled, unlabeled)
        with torch.no_grad():
            # With a decay of 0 the teacher is the network itself. Autocast of older PyTorch would keep the
            # half-precision weights of a pass of the student without their graph.
            targets = self._targets(self.teachers["a"](images))
        turn = self._draw_turn(self.generator)
        output = self.network(turn(images))
        targets = [turn(each) for each in targets] if isinstance(targets, list) else turn(targets)
        pseudo, _ = self.hard_target(full_resolution(targets))
        self.metrics["agreement"] = 1 - differing(self.pseudo_label(full_resolution(output)), pseudo).float().mean()
        self.metrics["foreground"] = foreground_share(pseudo)
        yield Losses(unsupervised={"pseudo_label": as_error(self.loss(output, targets))})

    @property
    def unsupervised_weight(self) -> float:
        """b, 0 during the supervised start."""
        return super().unsupervised_weight if self._has_reached(self.config.supervised) else 0.0

    def _targets(self, output: Output) -> Output:
        """Return the hard labels of each output as nnU-Net's target."""
        if isinstance(output, Tensor):
            return self.as_target(self.pseudo_label(output))
        return [self.as_target(self.pseudo_label(each)) for each in output]

    def _draw_turn(self, generator: torch.Generator) -> "Turn":
        strides = self.configuration_manager.network_arch_init_kwargs["strides"]
        # A turned patch has the edges of both axes exchanged, for which the network has to treat them alike.
        are_alike = all(isinstance(stride, int) or stride[-1] == stride[-2] for stride in strides)
        quarters = 1 + int(torch.randint(3, (), generator=generator)) if are_alike else 2
        if not self._has_reached(self.config.flips_from):
            return Turn(quarters, ())
        is_flipped = (torch.rand(2, generator=generator) > 0.5).tolist()
        num_axes = len(self.configuration_manager.patch_size)
        allowed = {axis - num_axes for axis in self.inference_allowed_mirroring_axes or ()}
        axes = (axis for axis, flips in zip((-1, -2), is_flipped, strict=True) if flips and axis in allowed)
        return Turn(quarters, tuple(axes))

    def method_state(self) -> dict[str, Any]:
        """Return which images are left."""
        return {"kept": self.kept, "filterings": self.filterings}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.kept, self.filterings = state["kept"], state["filterings"]

    def picture_panels(self, unlabeled: Tensor) -> dict[str, Tensor]:
        """Turned image, the network's labels of the image, turned as well, and those of the turned image."""
        network = self.students["a"]
        labels = self.pseudo_label(forward_to_logits(network, unlabeled))
        turn = self._draw_turn(torch.Generator().manual_seed(self.current_epoch))
        image, labels = turn(unlabeled), turn(labels)
        seen = self.pseudo_label(forward_to_logits(network, image))
        return {
            "turned image": self.image_panel(image),
            "its pseudo-label": label_map(labels),
            "network": label_map(seen),
            "they differ": differing(seen, labels),
        }


class Turn(NamedTuple):
    """A rotation in the plane of the last two axes, and mirrored axes.

    Attributes:
        quarters: Number of turns by 90 degrees.
        flips: Axes that are mirrored afterwards.

    Examples:
        >>> Turn(quarters=2, flips=(-1,))(torch.tensor([[[1, 2], [3, 4]]]))
        tensor([[[3, 4],
                 [1, 2]]])
    """

    quarters: int
    flips: tuple[int, ...]

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the turned batch ``(..., height, width)``."""
        # In the order of an image that is not turned: compiled networks are compiled anew for each order of the axes.
        return batch.rot90(self.quarters, (-2, -1)).flip(self.flips).contiguous()


def most_uncertain(entropy: Mapping[str, float], filtered: float) -> list[str]:
    """Return the images that are left when a share of them, those with the least entropy, is taken out.

    As in the authors' code, an image stays if its entropy is not below the quantile of all entropies. One whose entropy
    is not finite stays as well.

    Args:
        entropy: Sum of the entropy over the voxels, for each image.
        filtered: Share to take out.

    Examples:
        >>> most_uncertain({"a": 3.0, "b": 1.0, "c": 2.0}, filtered=0.3)
        ['a', 'c']
    """
    finite = [value for value in entropy.values() if math.isfinite(value)]
    threshold = np.quantile(finite, filtered) if finite else -math.inf
    return [case for case, value in entropy.items() if not value < threshold]
