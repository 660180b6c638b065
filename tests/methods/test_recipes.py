"""What the recipes of the methods have in common with those of their authors, and with each other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import IGNORE, TinyDataset, make_trainer, relabel

from nnunetv2_micd.methods.bcp import nnUNetTrainerBCP
from nnunetv2_micd.methods.cad import nnUNetTrainerCAD
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.filter_match import nnUNetTrainerFilterMatch
from nnunetv2_micd.methods.mcf import nnUNetTrainerMCF
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.uamt import nnUNetTrainerUAMT
from nnunetv2_micd.methods.unimatch import nnUNetTrainerUniMatch
from nnunetv2_micd.training.step import Losses

Named = dict[str, torch.Tensor]

# The authors' loss, of nnU-Net's supervised loss S (cross entropy plus Dice), which most of them halve, and the others.
AUTHORS: dict[type, Callable[[Named], torch.Tensor]] = {
    nnUNetTrainerMeanTeacher: lambda loss: 0.5 * loss["supervised"] + 0.1 * loss["consistency"],
    nnUNetTrainerUAMT: lambda loss: 0.5 * loss["supervised"] + 0.1 * loss["consistency"],
    nnUNetTrainerCPS: lambda loss: (
        0.5 * (loss["supervised"] + loss["supervised_b"]) + 0.1 * (loss["cps_labeled"] + loss["cps_unlabeled"])
    ),
    # Of ABD, the parent of CAD, both of whose displaced images have one Dice, here the mean of two.
    nnUNetTrainerCAD: lambda loss: (
        0.5 * (loss["supervised"] + loss["supervised_b"])
        + 0.1
        * sum(loss[f"cps_{one}"] + loss[f"displaced_weak_{one}"] + loss[f"displaced_strong_{one}"] for one in "ab")
    ),
    # The weights of UniMatch's views, a half and twice a quarter, are in the losses, as is the one of MCF's review.
    nnUNetTrainerUniMatch: lambda loss: (
        0.5 * loss["supervised"] + loss["feature_dropout"] + loss["strong_1"] + loss["strong_2"]
    ),
    nnUNetTrainerMCF: lambda loss: (
        loss["supervised"] + loss["supervised_b"] + loss["review"] + 0.1 * loss["consistency"]
    ),
    nnUNetTrainerBCP: lambda loss: 0.5 * (loss["supervised"] + loss["copy_paste"]),
}


def start(method: type, dataset: TinyDataset) -> Any:
    trainer = make_trainer(method, dataset)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.iteration = trainer.num_epochs * trainer.num_iterations_per_epoch  # the weight is at its peak
    return trainer


@pytest.mark.parametrize("method", AUTHORS, ids=lambda method: method.__name__)
def test_losses_have_the_proportion_of_the_authors(method: type, dataset: TinyDataset) -> None:
    """The gradient of the sum is that of the authors' loss, up to a factor that the optimizer's learning rate has."""
    trainer = start(method, dataset)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    state = trainer.generator.get_state()
    parameters = [p for student in trainer.students.values() for p in student.parameters()]

    def gradient(loss_of: Callable[[Losses], torch.Tensor]) -> torch.Tensor:
        trainer.generator.set_state(state)
        together = Losses()
        for group in trainer.compute_losses(labeled, unlabeled):
            together |= group
        parts = torch.autograd.grad(loss_of(together), parameters, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    ours = gradient(lambda losses: losses.total(trainer.unsupervised_weight))
    theirs = gradient(lambda losses: AUTHORS[method](losses.named))
    factor = ours.norm() / theirs.norm()
    assert factor.item() == pytest.approx(1 if method is nnUNetTrainerMCF else 2, rel=1e-4)
    torch.testing.assert_close(ours, factor * theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        nnUNetTrainerMeanTeacher,
        nnUNetTrainerUAMT,
        nnUNetTrainerUniMatch,
        nnUNetTrainerCAD,
        nnUNetTrainerMCF,
        nnUNetTrainerMEDL,
        nnUNetTrainerFilterMatch,
        nnUNetTrainerMICD,
    ],
    ids=lambda method: method.__name__,
)
def test_unannotated_voxels_of_labeled_images_are_unlabeled_ones_for_all(method: type, dataset: TinyDataset) -> None:
    relabel(dataset, IGNORE, annotated_slices=6)
    trainer = start(method, dataset)
    trainer.current_epoch = 1
    if method is nnUNetTrainerMICD:
        trainer.config = replace(trainer.config, recompute_peer=False)
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]
    images = labeled["data"].requires_grad_()
    together = Losses()
    for group in trainer.compute_losses(labeled, unlabeled):
        together |= group
    assert torch.equal(trainer.consistency_images(labeled, unlabeled), torch.cat((images, unlabeled)))
    loss = torch.as_tensor(sum(together.unsupervised.values()))
    if loss.requires_grad and method in (
        nnUNetTrainerCAD,
        nnUNetTrainerMCF,
        nnUNetTrainerMEDL,
        nnUNetTrainerMICD,
        nnUNetTrainerFilterMatch,
    ):
        assert torch.autograd.grad(loss, images)[0].flatten(1).any(1).all()


@pytest.mark.parametrize("method", [nnUNetTrainerMeanTeacher, nnUNetTrainerUAMT], ids=lambda method: method.__name__)
def test_noise_spares_labels_of_a_first_stage_and_the_outside_of_masks(method: type, dataset: TinyDataset) -> None:
    trainer = start(method, dataset)
    images = torch.rand(2, 3, 8, 8, 8) + 0.5
    images[:, 1:] = images[:, 1:].round()
    images[:, 0, :4] = 0
    trainer.is_cascaded = True
    trainer.configuration_manager.configuration["use_mask_for_norm"] = [True]
    noisy = trainer._add_noise(images, trainer.generator)
    assert torch.equal(noisy[:, 1:], images[:, 1:])  # one channel for each of the two foreground labels
    assert not noisy[:, 0, :4].any()
    assert (noisy[:, 0, 4:] != images[:, 0, 4:]).all()
    trainer.configuration_manager.configuration["use_mask_for_norm"] = [False]
    assert trainer._add_noise(images, trainer.generator)[:, 0, :4].any()
