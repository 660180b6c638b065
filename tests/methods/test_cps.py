"""Cross pseudo supervision: its loss put together by hand, its second network, and that it trains."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import BOTH, TinyDataset, make_trainer, relabel
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_micd.methods.cps import nnUNetTrainerCPS, nnUNetTrainerCPS_VOC
from nnunetv2_micd.training.networks import forward_with_features


def start(dataset: TinyDataset, configuration: str = "3d_fullres") -> Any:
    trainer = make_trainer(nnUNetTrainerCPS, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def batches(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


def logits_of(trainer: Any, name: str, labeled: dict[str, Any], unlabeled: torch.Tensor) -> torch.Tensor:
    images = torch.cat((labeled["data"], unlabeled))
    return forward_with_features(trainer.students[name], images)[0]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_loss_is_the_cross_entropy_with_the_labels_of_the_other(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    labeled, unlabeled = batches(trainer)
    on_labeled, on_unlabeled = (losses.named for losses in trainer.compute_losses(labeled, unlabeled[:1]))
    assert set(on_labeled) == {"supervised", "supervised_b", "cps_labeled"}
    assert set(on_unlabeled) == {"cps_unlabeled"}
    a, b = (logits_of(trainer, name, labeled, unlabeled[:1]) for name in "ab")
    expected = F.cross_entropy(a, b.argmax(1)) + F.cross_entropy(b, a.argmax(1))
    torch.testing.assert_close(on_labeled["cps_labeled"] + on_unlabeled["cps_unlabeled"], expected)
    same = (a.argmax(1) == b.argmax(1))[-1]
    assert trainer.metrics["agreement"] == pytest.approx(same.float().mean().item())


def test_each_network_gets_the_gradient_of_its_own_term_only(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    labeled, unlabeled = batches(trainer)
    for group in trainer.compute_losses(labeled, unlabeled):
        sum(loss for name, loss in group.named.items() if name.startswith("cps")).backward()
    a, b = (logits_of(trainer, name, labeled, unlabeled) for name in "ab")
    weights = [
        trainer.students["a"].encoder.stages[0][0].convs[0].conv.weight,
        trainer.students["b"].decoder.seg_layers[-1].weight,
    ]
    own_terms = F.cross_entropy(a, b.argmax(1).detach()), F.cross_entropy(b, a.argmax(1).detach())
    for weight, term in zip(weights, own_terms, strict=True):
        (gradient,) = torch.autograd.grad(term, weight)
        assert gradient.any()
        torch.testing.assert_close(weight.grad, gradient)
    assert all(p.grad is None for teacher in trainer.teachers.values() for p in teacher.parameters())


def test_regions_and_ignore_label(dataset: TinyDataset) -> None:
    relabel(dataset, BOTH, annotated_slices=6)
    trainer = start(dataset)
    labeled, unlabeled = batches(trainer)
    on_labeled, on_unlabeled = (losses.named for losses in trainer.compute_losses(labeled, unlabeled))
    a, b = (logits_of(trainer, name, labeled, unlabeled) for name in "ab")
    bce = F.binary_cross_entropy_with_logits
    expected = bce(a, (b > 0).float()) + bce(b, (a > 0).float())
    torch.testing.assert_close(on_labeled["cps_labeled"] + on_unlabeled["cps_unlabeled"], expected)
    trainer.train_step(labeled)


def test_networks_differ_in_their_initial_weights_only(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerCPS, dataset)
    torch.manual_seed(1)
    trainer.initialize()
    state = torch.get_rng_state()
    a, b = (trainer.students[name].state_dict() for name in "ab")
    assert {name: tensor.shape for name, tensor in a.items()} == {name: tensor.shape for name, tensor in b.items()}
    assert all(not torch.equal(a[name], b[name]) for name in a if name.endswith("conv.weight"))

    stock = make_trainer(nnUNetTrainer, dataset)
    torch.manual_seed(1)
    stock.initialize()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, a[name]) for name, tensor in stock.network.state_dict().items())


def test_the_deployed_network_is_the_student(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    for _ in range(2):
        before = [parameter.clone() for parameter in trainer.students["a"].parameters()]
        trainer.train_step(next(trainer.dataloader_train))
        assert not all(map(torch.equal, before, trainer.students["a"].parameters()))
        for name, teacher in trainer.teachers.items():
            assert all(map(torch.equal, teacher.parameters(), trainer.students[name].parameters()))


def test_weights_of_the_medical_port_and_of_the_authors(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerCPS, dataset)
    assert trainer.unsupervised_weight == pytest.approx(0.2 * math.exp(-5))
    trainer.iteration = 4
    assert trainer.unsupervised_weight == 0.2
    assert make_trainer(nnUNetTrainerCPS_VOC, dataset).unsupervised_weight == 1.5
