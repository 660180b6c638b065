"""SPCL: meta-labels, views, the queue, what learns in which stage, and that it trains; the loss has its own tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer
from torch import distributed, multiprocessing

from nnunetv2_micd.losses.contrastive import NO_LABEL, self_paced_contrast
from nnunetv2_micd.methods.spcl import (
    WIDTH,
    Projectors,
    SPCLConfig,
    forward_with_pooled_bottleneck,
    meta_labels,
    nnUNetTrainerSPCL,
    nnUNetTrainerSPCL_pretrained,
)
from nnunetv2_micd.training.loader import Origin
from nnunetv2_micd.training.networks import forward_with_outputs


def start(dataset: TinyDataset, configuration: str = "2d", method: type = nnUNetTrainerSPCL) -> Any:
    trainer = make_trainer(method, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def test_meta_labels_are_the_part_of_the_image_and_the_image() -> None:
    positions = torch.tensor([[0.0, 0.9, 0.9], [0.34, 0.1, 0.1], [0.66, 0.5, 0.5], [1.0, 0.5, 0.5]])
    position, case = meta_labels(["a", "b", "a", "c"], positions, partitions=3)
    assert position.tolist() == [0, 1, 1, 2]
    assert case[0] == case[2]
    assert len(case.unique()) == 3
    assert (case >= 0).all()


def test_pooled_bottleneck_is_the_mean_of_the_last_stage(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    images = torch.randn(2, 1, 20, 24)
    _, features = forward_with_outputs(trainer.network, images)
    torch.testing.assert_close(forward_with_pooled_bottleneck(trainer.network, images), features[0].mean((2, 3)))


def test_projectors_standardize_features_that_hardly_differ() -> None:
    torch.manual_seed(0)
    projectors = Projectors(channels=16)
    features = 5 + 0.01 * torch.randn(8, 16)
    embeddings = projectors(features)
    assert embeddings.shape == (2, 8, WIDTH)
    torch.testing.assert_close(embeddings.norm(dim=2), torch.ones(2, 8))
    assert ((embeddings[0] @ embeddings[0].T).fill_diagonal_(0) < 0.9).all()
    torch.testing.assert_close(projectors.mean, features.mean(0))
    torch.testing.assert_close(projectors.variance, features.var(0, unbiased=False))
    projectors(features.fill_(torch.nan))
    assert projectors.mean.isfinite().all()
    assert projectors.variance.isfinite().all()


@pytest.mark.parametrize(("configuration", "axes"), [("2d", (2, 3)), ("3d_fullres", (3, 4))])
def test_second_view_is_mirrored_in_plane(configuration: str, axes: tuple, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    view = replace(trainer.config.view, jitter=0.0, blur=0.0, noise=0.0)
    trainer.config = replace(trainer.config, view=view)
    images = torch.randn(16, 1, *trainer.configuration_manager.patch_size)
    first, second = trainer._views(images, trainer.generator)
    torch.testing.assert_close(first, images)
    kinds = [(), axes[:1], axes[1:], axes]
    seen = {
        next(kind for kind in kinds if torch.allclose(one.flip([axis - 1 for axis in kind]), other, atol=1e-5))
        for one, other in zip(images, second, strict=True)
    }
    assert seen == set(kinds)
    trainer.inference_allowed_mirroring_axes = None  # as nnU-Net's trainers without mirroring
    assert torch.allclose(trainer._views(images, trainer.generator)[1], images, atol=1e-5)


def test_step_is_put_together_from_the_losses(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    for _ in range(2):  # so the queue holds the embeddings of the first
        trainer.train_step(next(trainer.dataloader_train))
    queue, queue_labels = trainer.queue.clone(), trainer.queue_labels.clone()
    assert (queue_labels != NO_LABEL).sum().item() == 2 * 2 * 4
    state, statistics = trainer.generator.get_state(), trainer.students["projectors"].state_dict()
    statistics = {name: tensor.clone() for name, tensor in statistics.items()}
    labeled, unlabeled = next(trainer.dataloader_train), trainer.next_unlabeled()
    _, on_unlabeled = trainer.compute_losses(labeled, unlabeled)
    trainer.generator.set_state(state)
    trainer.students["projectors"].load_state_dict(statistics)
    views = torch.cat(trainer._views(unlabeled, trainer.generator))
    embeddings = trainer.students["projectors"](forward_with_pooled_bottleneck(trainer.network, views))
    labels = meta_labels(*trainer.unlabeled_origin, 3).repeat(1, 2)
    for index, (name, begin, end, weight) in enumerate((("position", 5, 60, 1 / 1.1), ("case", 3.5, 50, 0.1 / 1.1))):
        gamma = begin + (end - begin) * (2 / 4) ** 0.5
        expected = self_paced_contrast(embeddings[index], labels[index], queue[index], queue_labels[index], gamma)
        torch.testing.assert_close(on_unlabeled.unsupervised[f"{name}_contrast"], weight * expected.loss)
        torch.testing.assert_close(trainer.queue[index, :4], embeddings[index].detach())
        assert torch.equal(trainer.queue[index, 4:], queue[index, :-4])
    assert trainer.unsupervised_weight == 0.1


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_contrast_reaches_encoder_and_projectors_only(configuration: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, configuration)
    unlabeled = trainer.next_unlabeled()
    trainer.unlabeled_origin = Origin(["image_0", "image_1"], torch.tensor([[0.1] * 3, [0.9] * 3]))
    _, group = trainer.compute_losses(next(trainer.dataloader_train), unlabeled)
    group.total(1.0).backward()
    decoder = {id(parameter) for parameter in trainer.network.decoder.parameters()}
    decoder -= {id(parameter) for parameter in trainer.network.encoder.parameters()}
    for parameter in trainer.network.parameters():
        assert (parameter.grad is None) == (id(parameter) in decoder)
    assert any(parameter.grad.any() for parameter in trainer.network.encoder.parameters())
    assert all(parameter.grad.any() for parameter in trainer.students["projectors"].parameters())


def test_patches_of_the_same_place_are_not_contrasted(dataset: TinyDataset) -> None:
    """As in 3D where they cover the whole image: then only the cases are."""
    trainer = start(dataset, "3d_fullres")
    unlabeled = trainer.next_unlabeled()
    trainer.unlabeled_origin = Origin(["image_0", "image_1"], torch.full((2, 3), 0.5))
    _, group = trainer.compute_losses(next(trainer.dataloader_train), unlabeled)
    assert group.unsupervised["position_contrast"] == trainer.metrics["position_usable"] == 0
    assert group.unsupervised["case_contrast"] > 0
    assert trainer.metrics["case_usable"] == 1


def test_embeddings_that_are_not_finite_do_not_stay_in_the_queue(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    embeddings = torch.ones(2, 4, WIDTH)
    embeddings[0, 1, 7] = torch.nan
    trainer._enqueue(embeddings, torch.zeros(2, 4, dtype=torch.int64))
    assert trainer.queue.isfinite().all()
    assert trainer.queue_labels[:, :4].tolist() == [[0, NO_LABEL, 0, 0], [0] * 4]
    assert trainer.queue.shape == (2, trainer.config.queue, WIDTH)


def test_pretraining_leaves_the_decoder_and_the_labels_alone(dataset: TinyDataset) -> None:
    trainer = start(dataset, method=nnUNetTrainerSPCL_pretrained)
    assert trainer.is_pretraining
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    records = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    assert all("supervised" not in record and np.isfinite(record["loss"]) for record in records)
    after = trainer.network.state_dict()
    encoder = [name for name in before if name.startswith("encoder")]
    decoder = [name for name in before if name.startswith("decoder") and "encoder" not in name]
    assert any(not torch.equal(before[name], after[name]) for name in encoder)
    assert decoder
    assert all(torch.equal(before[name], after[name]) for name in decoder)
    assert not trainer.is_pretraining  # half of four steps
    assert "supervised" in trainer.train_step(next(trainer.dataloader_train))


def test_pretraining_needs_unlabeled_images_in_each_step() -> None:
    with pytest.raises(ValueError, match="consistency_every is 2"):
        SPCLConfig(pretraining=0.5, consistency_every=2)


def test_without_unlabeled_images_there_is_no_pretraining(dataset: TinyDataset) -> None:
    method = type("Trainer", (nnUNetTrainerSPCL,), {"config": SPCLConfig(pretraining=0.5, ramp_peak=0.0)})
    trainer = start(dataset, method=method)
    assert not trainer.is_pretraining
    record = trainer.train_step(next(trainer.dataloader_train))
    assert "supervised" in record
    assert "case_contrast" not in record


def test_queue_and_statistics_are_in_the_checkpoint(dataset: TinyDataset, tmp_path: Path) -> None:
    trainer = start(dataset)
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = make_trainer(nnUNetTrainerSPCL, dataset, "2d")
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert torch.equal(resumed.queue, trainer.queue)
    assert torch.equal(resumed.queue_labels, trainer.queue_labels)
    state = resumed.students["projectors"].state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in trainer.students["projectors"].state_dict().items())


def run_process(rank: int, dataset: TinyDataset, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    trainer = make_trainer(nnUNetTrainerSPCL_pretrained, dataset, "2d")
    trainer.run_training()
    weights = {name: list(network.parameters()) for name, network in trainer.students.items()}
    torch.save({"weights": weights, "queue": trainer.queue}, folder / f"{rank}.pth")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_weights_but_not_the_queue(dataset: TinyDataset, tmp_path: Path) -> None:
    multiprocessing.spawn(run_process, (dataset, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=False) for rank in (0, 1))
    for name, parameters in first["weights"].items():
        assert all(map(torch.equal, parameters, second["weights"][name]))
    assert not torch.equal(first["queue"], second["queue"])


@pytest.mark.slow
def test_learns(dataset: TinyDataset) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    trainer = make_trainer(nnUNetTrainerSPCL, dataset, "2d")
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 8, 25, 5
    trainer.run_training()
    first, last = trainer.monitor.history[0], trainer.monitor.history[-1]
    assert last["supervised"] < first["supervised"] - 0.4
    assert last["mean_fg_dice"] > first["mean_fg_dice"] + 0.1
    similarities = trainer.queue[1] @ trainer.queue[1].T
    assert similarities.min() < 0.95  # the embeddings have not collapsed
