"""ERSR knows one class in 2D only, so it is not among the methods that are tested together."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import BOTH, IGNORE, TinyDataset, make_trainer, relabel, write_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from nnunetv2_micd.augmentation.ellipse import Ellipse, Reflection
from nnunetv2_micd.methods.ersr import (
    Refined,
    complete,
    nnUNetTrainerERSR,
    refine,
)
from nnunetv2_micd.methods.ersr_filter import irregularity, most_regular
from nnunetv2_micd.profiling.batches import make_batch
from nnunetv2_micd.profiling.passes import count_passes

ONE_CLASS = {"labels": {"background": 0, "first": 1}}
ONE_REGION = {"labels": {"background": 0, "both": [1, 2]}, "regions_class_order": [1]}
ONE_AND_IGNORE = {"labels": {"background": 0, "first": 1, "ignore": 2}}
UNSUPERVISED = {"refined", "augmented_left", "augmented_right", "mirror_left", "mirror_right"}
FIGURES = {*UNSUPERVISED, "supervised", "agreement", "foreground_teacher", "kept", "symmetric"}


# ----------------------------------------------------------------------------------------------------------- the score


def test_irregularity_by_hand() -> None:
    """A straight step: two columns with a Sobel of a half, and a single ridge of the distance."""
    step = torch.zeros(1, 1, 6, 12)
    step[..., :4] = 1
    assert irregularity(step) == pytest.approx((2 * 0.5 / 10 + 1 / 10) / 2)
    assert irregularity(0.8 * step) == pytest.approx((2 * 0.4 / 10 + 1 / 10) / 2)
    nothing, everything = torch.zeros(1, 1, 6, 12), torch.ones(1, 1, 6, 12)
    assert irregularity(torch.cat((nothing, everything))).tolist() == [float("inf"), 0]


def test_irregularity_is_the_authors_score_but_for_the_edge() -> None:
    """Their formula, in NumPy, on the inner voxels, with an exact distance."""
    probability = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    distance = distance_transform_edt(probability <= 0.5)
    inner, scores = (slice(1, -1), slice(1, -1)), []

    def shifted(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return np.roll(array, (-rows, -columns), (0, 1))

    smooth = [(-1, 1), (0, 2), (1, 1)]
    across = sum(w * (shifted(probability, r, -1) - shifted(probability, r, 1)) for r, w in smooth) / 8
    down = sum(w * (shifted(probability, -1, c) - shifted(probability, 1, c)) for c, w in smooth) / 8
    scores.append(np.sqrt(across**2 + down**2 + 1e-6)[inner].mean())
    neighbors = sum(shifted(distance, *place) for place in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    scores.append(np.abs(neighbors - 4 * distance)[inner].mean())
    assert irregularity(torch.from_numpy(probability)[None, None]) == pytest.approx(np.mean(scores), abs=1e-4)


def test_a_ragged_outline_is_less_regular_than_an_ellipse() -> None:
    smooth = ellipse((32, 32), (15, 22), 20).squared_distance((64, 64)) <= 1
    ragged = smooth ^ ((np.random.default_rng(1).random((64, 64)) < 0.2) & (distance_transform_edt(smooth) < 4))
    scores = irregularity(torch.from_numpy(np.stack((smooth, ragged)))[:, None].float())
    assert scores[0] < scores[1]


def test_irregularity_is_the_same_in_mixed_precision() -> None:
    """Far from the foreground the distance is large, and its Laplacian small."""
    distance = ellipse((60, 60), (15, 22), 20).squared_distance((256, 256))
    probability = torch.from_numpy(4 * (1 - distance)).sigmoid().float()[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        scores = irregularity(probability)
    assert torch.equal(scores, irregularity(probability))


@pytest.mark.parametrize(
    ("share", "at_least", "expected"),
    [
        (0.5, 1, [False, True, True, False]),  # at most 3 is good
        (0.5, 3, [True, True, True, False]),
        (0.1, 1, [False, True, False, False]),
        (1.0, 1, [True] * 4),
    ],
)
def test_most_regular_by_hand(share: float, at_least: int, expected: list[bool]) -> None:
    scores, seen = [6.0, 1.0, 3.0, float("inf")], [0.5, 1, 3, 4, 5, 6, float("inf")]
    assert most_regular(scores, seen, share, at_least) == expected


# ------------------------------------------------------------------------------------------------- ellipse and symmetry


def ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: float) -> Ellipse:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return Ellipse(np.array(center), np.array(radii), np.array([[cosine, sine], [-sine, cosine]]))


def test_refined_label_is_the_authors_one() -> None:
    """Their modulated probability, which they threshold again."""
    distance = ellipse((30, 34), (15, 22), 20).squared_distance((64, 64))
    generator = np.random.default_rng(0)
    probability = np.clip(1 / (1 + np.exp(4 * (distance - 1))) + generator.normal(0, 0.2, distance.shape), 0, 1)
    label, fitted = refine(probability, 0.6)
    distance = fitted.squared_distance(distance.shape)
    inside = np.maximum(probability, np.clip(0.6 + (1 - distance) ** 2, 0, 1))
    modulated = np.where(distance <= 1, inside, probability * np.exp(-0.5 * (distance - 1)))
    assert np.array_equal(label, modulated > 0.6)
    assert not np.array_equal(label, probability > 0.6)


def test_refinement_fills_holes_and_gaps_and_removes_what_is_far() -> None:
    truth = ellipse((32, 32), (15, 22), 30).squared_distance((64, 64)) <= 1
    damaged = truth.copy()
    damaged[28:34, 28:34] = False  # a hole
    damaged[:, 40:42] &= np.arange(64)[:, None] % 8 > 1  # gaps
    damaged[2:6, 2:6] = True  # a far component
    label, _ = refine(damaged * 0.9, 0.6)
    overlap = 2 * (label & truth).sum() / (label.sum() + truth.sum())
    assert overlap > 0.98 > 2 * (damaged & truth).sum() / (damaged.sum() + truth.sum())
    assert not label[2:6, 2:6].any()


def test_label_without_an_ellipse_is_the_teachers() -> None:
    probability = np.zeros((16, 16))
    assert refine(probability, 0.6)[1] is None
    probability[3, 2:12] = 0.9
    label, fitted = refine(probability, 0.6)
    assert fitted is None
    assert np.array_equal(label, probability > 0.6)


def test_only_a_center_in_the_image_counts_as_symmetric() -> None:
    nowhere = np.zeros((8, 8), bool)
    inside, outside = ellipse((7, 0), (2, 3), 0), ellipse((7.1, 0), (2, 3), 0)
    refined = Refined.of([nowhere] * 3, [inside, outside, None], "cpu")
    assert refined.is_symmetric.flatten().tolist() == [True, False, False]
    assert refined.labels.shape == (3, 1, 8, 8)


def test_completed_images_by_hand() -> None:
    images = torch.tensor([[[[10.0, 11, 12, 13, 14, 15, 16]]]])
    labels = torch.tensor([[[[False, False, True, True, True, True, False]]]])
    across_the_middle = Reflection(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 1.0]]), (1, 7))
    view, half, mirrored = complete(images, labels, across_the_middle, across_the_middle.side)
    # the axis itself belongs to the other half, and is its own mirror image; the gap shows the mirrored surroundings
    assert view.flatten().tolist() == [10, 11, 12, 13, 12, 11, 16]
    assert half.flatten().tolist() == [False, False, True, False, False, False, False]
    assert mirrored.flatten().tolist() == [False, False, False, False, True, False, False]
    view, half, mirrored = complete(images, labels, across_the_middle, ~across_the_middle.side)
    assert view.flatten().tolist() == [10, 15, 14, 13, 14, 15, 16]
    assert half.flatten().tolist() == [False, False, False, True, True, True, False]
    assert mirrored.flatten().tolist() == [False, True, True, False, False, False, False]


# ---------------------------------------------------------------------------------------------------------- the method


@pytest.fixture
def one_class(dataset: TinyDataset) -> TinyDataset:
    """Return the tiny dataset without its second class."""
    keep_first_class(dataset)
    relabel(dataset, ONE_CLASS)
    return dataset


def keep_first_class(dataset: TinyDataset) -> None:
    for path in (dataset.raw / "labelsTr").iterdir():
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        write_image(path, (labels == 1).astype(np.uint8))


def make(dataset: TinyDataset, method: type = nnUNetTrainerERSR, **changed: Any) -> Any:
    trainer = make_trainer(method, dataset, "2d")
    trainer.config = replace(trainer.config, **{"supervised": 0.0} | changed)
    return trainer


def start(dataset: TinyDataset, **changed: Any) -> Any:
    trainer = make(dataset, **changed)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def sees_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the teacher see a regular object in all patches but a second one, where it sees nothing."""

    def foreground(self: Any, logits: Tensor) -> Tensor:
        seen = own(self, logits)
        if torch.is_grad_enabled():
            return seen
        mask = torch.from_numpy(ellipse((9, 12), (5, 7), 20).squared_distance(seen.shape[2:]) <= 1)
        seen = torch.where(mask, 0.9, 0.1).expand_as(seen).clone()
        seen[1:2] = 0.1
        return seen

    own = nnUNetTrainerERSR._foreground
    monkeypatch.setattr(nnUNetTrainerERSR, "_foreground", foreground)


def losses(trainer: Any, labeled: dict[str, Any], unlabeled: Tensor | None) -> dict[str, Tensor]:
    return {name: loss for group in trainer.compute_losses(labeled, unlabeled) for name, loss in group.named.items()}


def batch(trainer: Any) -> tuple[dict[str, Any], Tensor]:
    return next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)["data"]


@pytest.mark.parametrize("description", [None, ONE_CLASS], ids=["two classes", "3D"])
def test_what_is_not_supported_is_refused_at_once(description: dict[str, Any] | None, dataset: TinyDataset) -> None:
    if description is not None:
        relabel(dataset, description)
    trainer = make_trainer(nnUNetTrainerERSR, dataset, "2d" if description is None else "3d_fullres")
    with pytest.raises(NotImplementedError, match="single foreground class" if description is None else "2d"):
        trainer.initialize()


@pytest.mark.parametrize("description", [BOTH, IGNORE], ids=["regions", "classes"])
def test_several_regions_or_classes_with_ignored_voxels_are_refused(
    description: dict[str, Any], dataset: TinyDataset
) -> None:
    relabel(dataset, description)
    with pytest.raises(NotImplementedError, match="single foreground class"):
        make_trainer(nnUNetTrainerERSR, dataset, "2d").initialize()


@pytest.mark.parametrize("description", [ONE_CLASS, ONE_REGION, ONE_AND_IGNORE], ids=["class", "region", "ignore"])
def test_trains_and_predicts(description: dict[str, Any], dataset: TinyDataset) -> None:
    if description is not ONE_REGION:
        keep_first_class(dataset)
    relabel(dataset, description)
    draws = description is ONE_CLASS  # which takes longer than the training
    trainer = make_trainer(nnUNetTrainerERSR, dataset, "2d", draws=draws)
    trainer.config = replace(trainer.config, supervised=0.5)  # one of the two epochs
    trainer.run_training()
    first, second = trainer.monitor.history
    assert not UNSUPERVISED & set(first)
    assert first["b"] == 0
    assert set(second) >= FIGURES
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    output = Path(trainer.output_folder)
    assert not draws or len(list((output / "unlabeled_patches").iterdir())) == 2

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(output.parent), use_folds=(0,))
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    assert predictor.predict_sliding_window_return_logits(image).isfinite().all()


def test_without_deep_supervision_and_batches_of_one(one_class: TinyDataset) -> None:
    trainer = make(one_class, type("Trainer", (nnUNetTrainerNoDeepSupervision, nnUNetTrainerERSR), {}))
    trainer.batch_size = trainer.configuration_manager.configuration["batch_size"] = 1
    trainer.run_training()
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())


@pytest.mark.parametrize("kept", ["all", "without the second"])
def test_losses_by_hand(kept: str, one_class: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas of the paper for one regular object, in a batch with an image without one."""
    sees_the_object(monkeypatch)
    trainer = start(one_class)
    labeled, unlabeled = batch(trainer)
    trainer.iteration = 4 if kept == "all" else 0
    state = trainer.generator.get_state()
    named = losses(trainer, labeled, unlabeled)
    assert trainer.metrics["kept"] == (1 if kept == "all" else 0.5)
    assert trainer.metrics["symmetric"] == 0.5

    trainer.generator.set_state(state)
    with torch.no_grad():
        teacher = trainer._foreground(torch.zeros(2, 2, *unlabeled.shape[2:]))
    refined = trainer._refine(teacher, unlabeled.device)
    network = trainer.students["a"]
    seen = trainer.logits(network, unlabeled).softmax(1)[:, 1:]
    errors = ((seen - refined.labels.float()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(named["refined"], errors.mean() if kept == "all" else errors[0])
    for name, side in (("left", refined.reflection.side), ("right", ~refined.reflection.side)):
        view = trainer._view(unlabeled, refined, side, trainer.generator)
        other = trainer.logits(network, view).softmax(1)[:1, 1:]
        mirror = refined.reflection
        target = torch.where(side, seen, mirror(seen))[:1]
        torch.testing.assert_close(named[f"augmented_{name}"], ((other - target) ** 2).mean() / 2)
        asymmetry = (other - mirror(other.expand(2, -1, -1, -1))[:1]) ** 2 * mirror.side[:1]
        torch.testing.assert_close(named[f"mirror_{name}"], asymmetry.mean() / 2)


def test_only_the_student_learns(one_class: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sees_the_object(monkeypatch)
    trainer = start(one_class)
    for name, loss in losses(trainer, *batch(trainer)).items():
        trainer.optimizer.zero_grad()
        loss.backward(retain_graph=True)  # two losses have the same passes
        assert any(p.grad is not None and p.grad.any() for p in trainer.network.parameters()), name
        assert loss >= 0 or name == "supervised"
    assert all(p.grad is None for p in trainer.teachers["a"].parameters())


def test_perturbations_stay_within_the_object(one_class: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start(one_class)
    certain = replace(trainer.config.view, jitter=1, blur=1, noise=1)
    trainer.config = replace(trainer.config, view=certain)
    image = torch.randn(1, 1, 20, 24)
    mask = torch.from_numpy(ellipse((9, 12), (5, 7), 20).squared_distance((20, 24)) <= 1)[None, None]
    refined = Refined.of([mask[0, 0].numpy()], [ellipse((9, 12), (5, 7), 20)], "cpu")
    side = refined.reflection.side
    completed, half, mirrored = complete(image, mask, refined.reflection, side)
    view = trainer._view(image, refined, side, trainer.generator)
    assert torch.equal(view != completed, half | mirrored)
    assert not (half & mirrored).any()
    trainer.configuration_manager.configuration["use_mask_for_norm"] = [True]
    image[..., :12] = 0
    view = trainer._view(image, refined, side, trainer.generator)
    assert not view[complete(image, mask, refined.reflection, side)[0] == 0].any()


def test_weight_and_share_grow_from_the_end_of_the_supervised_start(one_class: TinyDataset) -> None:
    trainer = make(one_class, supervised=0.5)
    trainer.initialize()
    weights = []
    for trainer.iteration in (0, 1, 2, 3, 4):
        weights.append(trainer.unsupervised_weight)
    assert weights == pytest.approx([0, 0, 2 * np.exp(-5), 2 * np.exp(-1.25), 2])


def test_nothing_unlabeled_is_read_without_weight(one_class: TinyDataset) -> None:
    trainer = make(one_class, ramp_peak=0.0)
    trainer.run_training()
    assert trainer.dataloader_unlabeled is None
    assert not UNSUPERVISED & set(trainer.monitor.history[-1])


@pytest.mark.parametrize("supervised", [0.0, 1.0], ids=["weight zero", "supervised start"])
def test_network_is_nnunets(supervised: float, one_class: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(trainer: Any) -> dict[str, Tensor]:
        trainer.run_training()
        return trainer.network.state_dict()

    def seeded(method: type) -> Any:
        torch.manual_seed(1)
        np.random.seed(1)
        return make_trainer(method, one_class, "2d")

    stock = train(seeded(nnUNetTrainer))
    if not supervised:
        monkeypatch.setattr(nnUNetTrainerERSR, "unsupervised_weight", 0.0)
    monkeypatch.setattr(nnUNetTrainerERSR, "config", replace(nnUNetTrainerERSR.config, supervised=supervised))
    trained = train(seeded(nnUNetTrainerERSR))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in stock.items())


def test_continued_equals_uninterrupted(one_class: TinyDataset, tmp_path: Path) -> None:
    class Keeping(nnUNetTrainerERSR):
        config = replace(nnUNetTrainerERSR.config, supervised=0.0, window=5)

        def save_checkpoint(self, filename: Any) -> None:
            super().save_checkpoint(filename)
            if self.current_epoch == 0 and str(filename).endswith("latest.pth"):
                shutil.copy(filename, tmp_path / "checkpoint.pth")

    def prepare(seed: int) -> Any:
        torch.manual_seed(seed)
        np.random.seed(seed)
        trainer = make_trainer(Keeping, one_class, "2d")
        trainer.num_epochs, trainer.save_every = 3, 1
        return trainer

    trainer, continued = prepare(1), prepare(2)
    torch.manual_seed(1)
    np.random.seed(1)
    trainer.run_training()
    continued.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert len(continued.scores) == 4
    continued.run_training()
    assert continued.monitor.history == trainer.monitor.history
    assert continued.scores == trainer.scores
    assert len(trainer.scores) == 5
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, continued.network.state_dict()[name])


def test_picture_does_not_disturb_the_training(one_class: TinyDataset) -> None:
    trainer = start(one_class)
    unlabeled = next(trainer.dataloader_unlabeled)["data"]
    states = trainer.generator.get_state(), torch.get_rng_state()
    panels = trainer.picture_panels(unlabeled)
    assert {panel.shape for panel in panels.values()} == {(2, 20, 24)}
    assert torch.equal(trainer.generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    assert not trainer.scores


def test_passes(one_class: TinyDataset) -> None:
    trainer = start(one_class)
    passes: Counter[tuple[bool, bool]] = Counter()
    for one in count_passes(trainer, make_batch(trainer)):
        passes[one.teacher, one.gradient] += one.times
    assert passes == {(False, True): 4, (True, False): 1}


def test_holds_one_graph_at_a_time(one_class: TinyDataset) -> None:
    trainer = start(one_class)
    graphs: list[ref[torch.UntypedStorage]] = []
    held = []

    def watch(module: Any, inputs: tuple, output: Any) -> None:
        if torch.is_grad_enabled():
            held.append(sum(graph() is not None for graph in graphs))
            graphs.append(ref(output[0].untyped_storage()))  # the next layer's backward pass needs it

    trainer.network.encoder.register_forward_hook(watch)
    trainer.train_step(next(trainer.dataloader_train))
    assert held == [0] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, one_class: TinyDataset) -> None:
    trainer = start(one_class)
    logits = torch.randn(2, 2, 20, 24, dtype=dtype)
    probability = trainer._foreground(logits)
    assert probability.dtype == torch.float32
    torch.testing.assert_close(probability, logits.float().softmax(1)[:, 1:])


@pytest.mark.slow
def test_learns(one_class: TinyDataset) -> None:
    """In some dozens of steps on both kinds of images."""
    torch.manual_seed(1)
    np.random.seed(1)
    trainer = make(one_class, supervised=0.25)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 8, 25
    trainer.run_training()
    history = trainer.monitor.history
    assert history[-1]["supervised"] < history[0]["supervised"] - 0.5
    assert max(row["mean_fg_dice"] for row in history[-3:]) > 0.8  # each of a single batch
    assert history[-1]["agreement"] > 0.95
    assert history[-1]["symmetric"] > 0.5
