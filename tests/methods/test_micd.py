"""MICD: its terms, what it holds in memory and its picture; and as printed: the readings and class weights of eq. 3."""

import copy
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import TinyDataset, make_trainer
from torch.nn.functional import cross_entropy

from nnunetv2_micd.augmentation.masks import apply_mask, sample_mask
from nnunetv2_micd.losses.consistency import cmd
from nnunetv2_micd.losses.labels import pseudo_label
from nnunetv2_micd.methods.micd import MICDConfig, nnUNetTrainerMICD
from nnunetv2_micd.methods.micd_paper import MICDPaperConfig, nnUNetTrainerMICD_paper
from nnunetv2_micd.training.label_counts import count_labels
from nnunetv2_micd.training.networks import forward_with_features

READINGS = ("peer_masked", "both_masked", "peer_clean")


def start(dataset: TinyDataset, method: type = nnUNetTrainerMICD, **fields: object) -> Any:
    trainer_class = type("Trainer", (method,), {"config": replace(method.config, **fields)})
    trainer = make_trainer(trainer_class, dataset)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def draw(trainer: nnUNetTrainerMICD) -> tuple[dict[str, Any], torch.Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


def backpropagate(
    trainer: nnUNetTrainerMICD, labeled: dict[str, Any], unlabeled: torch.Tensor, *terms: str
) -> dict[str, torch.Tensor]:
    """Backpropagate the chosen terms, without any all of them; return all."""
    losses: dict[str, torch.Tensor] = {}
    trainer.optimizer.zero_grad(set_to_none=True)
    for group in trainer.compute_losses(labeled, unlabeled):
        if chosen := [loss for name, loss in group.named.items() if name in terms or not terms]:
            sum(chosen).backward()
        losses |= {name: loss.detach() for name, loss in group.named.items()}
    return losses


@pytest.mark.parametrize("reading", READINGS)
def test_each_reading_trains_both_students_and_no_teacher(reading: str, dataset: TinyDataset) -> None:
    trainer = start(dataset, nnUNetTrainerMICD_paper, mcpc_reading=reading, cfc_weight=0.0, cmd_weight=0.0)
    losses = backpropagate(trainer, *draw(trainer), "mcpc")
    assert set(losses) == {"supervised", "supervised_b", "mcpc"}
    for student in trainer.students.values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    for teacher in trainer.teachers.values():
        assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("term", ["mcpc", "cfc", "cmd"])
def test_each_term_reaches_encoder_and_decoder(term: str, dataset: TinyDataset) -> None:
    trainer = start(dataset)
    backpropagate(trainer, *draw(trainer), term)
    for student in trainer.students.values():
        assert next(iter(student.encoder.parameters())).grad.abs().sum() > 0
        assert student.decoder.stages[-1].convs[0].conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("stages", "weights"),
    [(1, (0.8,)), (3, (0.4, 0.6, 0.8)), (4, (0.2, 0.4, 0.6, 0.8)), (6, (0.0, 0.0, 0.2, 0.4, 0.6, 0.8))],
)
def test_cfc_weighs_the_four_stages_of_highest_resolution(
    stages: int, weights: tuple[float, ...], dataset: TinyDataset
) -> None:
    """Eq. 4 by hand: a softmax of (1/2, 1/2) and one of (3/4, 1/4) at a single stage, equal features at the others."""
    trainer = start(dataset, cfc_weight=1.0, mcpc_weight=0.0, cmd_weight=0.0)
    images, even = torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 2, 4, 4, 4)
    uneven = even.clone()
    uneven[:, 0] = math.log(3)
    divergence = (0.5 * math.log(4 / 3) + 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)) / 2
    for different, weight in enumerate(weights):
        features = {"a": [even] * stages, "b": [uneven if stage == different else even for stage in range(stages)]}
        outputs = []
        for name in "ab":
            trainer.forward_with_features = lambda *_, found=features[name]: (torch.zeros(1, 3, 8, 8, 8), found)
            outputs.append(trainer.run_student(name, images, images))
        losses = trainer.consistency_losses(*outputs, [], images)
        assert losses["cfc"].item() == pytest.approx(weight * divergence, abs=1e-6)


@pytest.mark.parametrize("labeled_consistency", [False, True])
def test_cmd_compares_the_masked_student_with_its_clean_teacher(
    labeled_consistency: bool, dataset: TinyDataset
) -> None:
    """Eq. 5 put together by hand from the networks, on unlabeled images and, if wanted, labeled ones."""
    trainer = start(dataset, labeled_consistency=labeled_consistency, cmd_weight=0.5)
    labeled, unlabeled = draw(trainer)
    images = torch.cat((labeled["data"], unlabeled)) if labeled_consistency else unlabeled
    state = trainer.generator.get_state()
    unsupervised = backpropagate(trainer, labeled, unlabeled)
    trainer.generator.set_state(state)
    masked = apply_mask(images, sample_mask(len(images), images.shape[2:], 0.5, 3, trainer.generator))
    logits = [forward_with_features(trainer.students[name], masked)[0] for name in "ab"]
    targets = [pseudo_label(forward_with_features(trainer.teachers[name], images)[0]) for name in "ab"]
    assert torch.equal(unsupervised["cmd"], 0.5 * cmd(*logits, *targets))


def watch(trainer: nnUNetTrainerMICD) -> list[tuple[str, bool, torch.Tensor]]:
    """Collect the student, whether with gradient, and the images of each pass without the supervised ones."""
    names = {id(network): name for name, network in trainer.students.items()}
    seen = []

    def forward(network: Any, images: torch.Tensor) -> Any:
        if id(network) in names:
            seen.append((names[id(network)], torch.is_grad_enabled(), images))
        return forward_with_features(network, images)

    trainer.forward_with_features = forward
    return seen


def test_voxels_without_a_label_in_labeled_images_are_always_learned_from(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(dataset)
    seen = watch(trainer)
    backpropagate(trainer, *draw(trainer))
    unlabeled = {len(images) for _, _, images in seen}
    seen.clear()
    monkeypatch.setattr(type(trainer.label_manager), "has_ignore_label", True)
    backpropagate(trainer, *draw(trainer))
    assert {len(images) for _, _, images in seen} == {2 * number for number in unlabeled}


def test_both_students_see_the_same_mask(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    seen = watch(trainer)
    backpropagate(trainer, *draw(trainer))
    assert [each[:2] for each in seen] == [("b", False), ("a", True), ("b", True)]
    assert all(images is seen[0][2] for _, _, images in seen)
    assert (seen[0][2] == 0).float().mean() > 0.4


def test_nothing_of_the_first_pass_is_held_when_the_peer_runs_again(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    first: list[weakref.ref[torch.UntypedStorage]] = []
    held = []

    def forward(network: Any, images: torch.Tensor) -> Any:
        if network is trainer.students["b"]:
            held.extend(reference() for reference in first)
        logits, features = forward_with_features(network, images)
        if network is not trainer.teachers["a"] and network is not trainer.teachers["b"]:
            first.extend(weakref.ref(tensor.untyped_storage()) for tensor in (logits, *features))
        return logits, features

    trainer.forward_with_features = forward
    trainer.train_step(next(trainer.dataloader_train))
    assert held == [None] * len(held)
    assert len(held) >= 4  # of both students


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("labeled_consistency", [False, True])
def test_one_graph_at_a_time_gives_the_gradients_of_both(
    reading: str, labeled_consistency: bool, dataset: TinyDataset
) -> None:
    trainer = start(
        dataset, nnUNetTrainerMICD_paper, mcpc_reading=reading, labeled_consistency=labeled_consistency, dist_floor=0.3
    )
    labeled, unlabeled = draw(trainer)
    state, weights = trainer.generator.get_state(), copy.deepcopy(trainer.method_state())
    found = []
    for recompute in (False, True):
        trainer.config = replace(trainer.config, recompute_peer=recompute)
        trainer.generator.set_state(state)
        trainer.load_method_state(weights)
        losses = backpropagate(trainer, labeled, unlabeled)
        gradients = [weight.grad for student in trainer.students.values() for weight in student.parameters()]
        found.append((losses, gradients))
    (losses, gradients), (others, other_gradients) = found
    assert losses == others
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


def test_distribution_weights_start_from_the_labels(dataset: TinyDataset) -> None:
    trainer = start(dataset, nnUNetTrainerMICD_paper)
    counts, _ = count_labels(trainer.labeled_cases, trainer.label_manager)
    assert counts.sum() == sum(
        trainer.labeled_cases.load_case(case)[1][:].size for case in trainer.labeled_cases.identifiers
    )
    weights = trainer.distribution.weights
    assert weights[0] == 0  # the background is the most frequent class
    assert weights.max() == 3


def test_class_weights_move_and_are_saved(dataset: TinyDataset) -> None:
    trainer = start(dataset, nnUNetTrainerMICD_paper, dist_floor=0.3)
    before = trainer.distribution.weights.clone()
    trainer.train_step(next(trainer.dataloader_train))
    assert not torch.equal(trainer.distribution.weights, before)
    assert len(trainer.difficulty.weights.unique()) > 1
    other = start(dataset, nnUNetTrainerMICD_paper)
    other.load_method_state(trainer.method_state())
    assert torch.equal(other.distribution.weights, trainer.distribution.weights)
    assert torch.equal(other.difficulty.weights, trainer.difficulty.weights)


def test_mcpc_of_the_printed_reading_by_hand(dataset: TinyDataset) -> None:
    """Eq. 3: the student on the clean image learns the other's labels of the masked one, weighted by class."""
    trainer = start(dataset, nnUNetTrainerMICD_paper, labeled_consistency=False, dist_floor=0.3)
    labeled, unlabeled = draw(trainer)
    state = trainer.generator.get_state()
    losses = backpropagate(trainer, labeled, unlabeled)
    trainer.generator.set_state(state)
    masked = apply_mask(unlabeled, sample_mask(len(unlabeled), unlabeled.shape[2:], 0.5, 3, trainer.generator))
    clean = [forward_with_features(trainer.students[name], unlabeled)[0] for name in "ab"]
    pseudo_a, pseudo_b = (pseudo_label(forward_with_features(trainer.students[name], masked)[0]) for name in "ab")
    expected = cross_entropy(clean[0], pseudo_b.long(), trainer.difficulty.weights)
    expected = expected + cross_entropy(clean[1], pseudo_a.long(), trainer.distribution.weights)
    torch.testing.assert_close(losses["mcpc"], expected.detach())


def test_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match=r"mcpc_reading is 'clean', but must be one of .*'peer_clean'"):
        MICDPaperConfig(mcpc_reading="clean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="are all 0; set ramp_peak to 0"):
        MICDConfig(mcpc_weight=0, cfc_weight=0, cmd_weight=0)


def test_picture_shows_where_the_branches_differ(dataset: TinyDataset) -> None:
    trainer = start(dataset)
    panels = trainer.picture_panels(next(trainer.dataloader_unlabeled)["data"])
    assert torch.equal(panels["A and B differ"], panels["label of A"] != panels["label of B"])
