import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunetv2_micd.losses.semantic_augmentation import FeatureStatistics, augment_logits, augmented_cross_entropy


def positive(number: int, channels: int) -> torch.Tensor:
    roots = torch.randn(number, channels, channels)
    return roots @ roots.transpose(1, 2)


def test_augmented_logits_are_those_of_the_authors() -> None:
    """Their three products of matrices, voxel by voxel, restated with numpy."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4), torch.randint(0, 3, (2, 4))
    weight, shift, covariance, strength = torch.randn(3, 5), torch.randn(3, 5), positive(3, 5), 0.3
    augmented = augment_logits(logits, labels, weight, shift, covariance, strength)
    for sample in range(2):
        for voxel in range(4):
            y = int(labels[sample, voxel])
            for c in range(3):
                difference = (weight[c] - weight[y]).numpy()
                expected = logits[sample, c, voxel].item()
                expected += strength * difference @ shift[y].numpy()
                expected += strength / 2 * difference @ covariance[y].numpy() @ difference
                assert augmented[sample, c, voxel].item() == pytest.approx(expected, abs=1e-4)


def test_cross_entropy_bounds_that_of_drawn_features() -> None:
    torch.manual_seed(1)
    weight, shift, covariance, strength = torch.randn(3, 2), torch.randn(3, 2), positive(3, 2), 0.5
    feature, y = torch.randn(2), 1
    root = torch.linalg.cholesky(strength * covariance[y])
    drawn = feature + strength * shift[y] + torch.randn(20000, 2) @ root.T
    expected = F.cross_entropy(drawn @ weight.T, torch.full((20000,), y))
    logits, labels = (weight @ feature)[None, :, None], torch.tensor([[y]])
    bound = F.cross_entropy(augment_logits(logits, labels, weight, shift, covariance, strength), labels)
    assert expected - 0.02 < bound


def test_a_region_is_a_problem_of_two_classes() -> None:
    torch.manual_seed(2)
    weight, shift, covariance = torch.randn(1, 4), torch.randn(2, 4), positive(2, 4)
    logits, labels = torch.randn(1, 1, 6), torch.tensor([[[True, False, True, True, False, False]]])
    region = augment_logits(logits, labels, weight, shift, covariance, 0.4)
    two = torch.cat((torch.zeros_like(logits), logits), dim=1)
    both = augment_logits(two, labels[:, 0].long(), torch.cat((torch.zeros(1, 4), weight)), shift, covariance, 0.4)
    assert torch.allclose(region[:, 0], both[:, 1] - both[:, 0], atol=1e-5)


def test_statistics_of_two_batches_are_those_of_both_together() -> None:
    """With two batches of as many voxels, the first of which counts as much as the second."""
    torch.manual_seed(3)
    first, second = torch.randn(2, 2, 3, 40)
    labels = torch.tensor([[0, 1] * 20, [1, 0] * 20])
    statistics = FeatureStatistics(num_classes=3, channels=3)
    statistics.update(first, labels)
    statistics.update(second, labels)
    both = torch.cat((first, second)).movedim(1, -1).reshape(-1, 3).numpy()
    of_both = torch.cat((labels, labels)).flatten().numpy()
    for k in range(2):
        assert np.allclose(statistics.means[k], both[of_both == k].mean(0), atol=1e-5)
        assert np.allclose(statistics.covariances[k], np.cov(both[of_both == k].T, bias=True), atol=1e-4)
    assert statistics.updates.tolist() == [2, 2, 0]
    assert not statistics.means[2].any()


def test_statistics_of_regions_are_outside_then_inside() -> None:
    statistics = FeatureStatistics(num_classes=2, channels=1, regions=True)
    features = torch.tensor([[[1.0, 2.0, 3.0, 9.0]]])
    labels = torch.tensor([[[True, False, False, False], [True, True, False, True]]])
    statistics.update(features, labels, torch.tensor([[True, True, True, False]]))
    assert statistics.means.flatten().tolist() == [2.5, 3.0, 1.0, 1.5]


def test_loss_has_a_gradient_in_logits_and_weight_where_voxels_count() -> None:
    torch.manual_seed(4)
    source, target = FeatureStatistics(3, 2), FeatureStatistics(3, 2)
    labels = torch.tensor([[0, 1, 1, 2]])
    source.update(torch.randn(1, 2, 4), labels)
    target.update(torch.randn(1, 2, 4), labels)
    logits = torch.randn(1, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(3, 2, requires_grad=True)
    counted = torch.tensor([[True, False, True, False]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = augmented_cross_entropy(logits, labels, counted, weight, source, target, 0.25)
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad is not None
    assert weight.grad is not None
    assert logits.grad.any(1).tolist() == counted.tolist()
    assert weight.grad.any()


def test_without_statistics_or_strength_it_is_the_cross_entropy() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.randint(0, 3, (2, 5))
    counted = torch.ones(2, 5, dtype=torch.bool)
    empty, full = FeatureStatistics(3, 2), FeatureStatistics(3, 2)
    full.update(torch.randn(2, 2, 5), labels)
    expected = F.cross_entropy(logits, labels)
    for source, target, strength in ((empty, full, 1.0), (full, full, 0.0)):
        loss = augmented_cross_entropy(logits, labels, counted, torch.randn(3, 2), source, target, strength)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert augmented_cross_entropy(logits, labels, ~counted, torch.randn(3, 2), full, full, 1.0) == 0


def test_voxels_are_taken_from_all_over_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2_micd.losses.semantic_augmentation.MOST_VOXELS", 64)
    features = torch.arange(8.0).expand(2, 1, 8, 8, 8)  # the value is the column
    statistics = FeatureStatistics(num_classes=1, channels=1)
    vectors, members = statistics._sample(features, torch.zeros(2, 8, 8, 8, dtype=torch.int64), None)
    assert set(vectors.flatten().tolist()) == set(range(8))
    assert len(vectors) == len(members) <= 64


def test_features_that_are_not_finite_do_not_count() -> None:
    statistics = FeatureStatistics(num_classes=2, channels=2)
    features, labels = torch.randn(1, 2, 6), torch.tensor([[0, 1, 0, 1, 0, 1]])
    expected = FeatureStatistics(num_classes=2, channels=2)
    expected.update(features, labels, torch.tensor([[True] * 5 + [False]]))
    features[0, 1, 5] = torch.inf
    statistics.update(features, labels)
    assert torch.allclose(statistics.means, expected.means)
    assert torch.allclose(statistics.covariances, expected.covariances)
