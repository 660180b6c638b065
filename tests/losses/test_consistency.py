import math

import pytest
import torch
from torch import Tensor

from nnunetv2_micd.losses.consistency import (
    cfc,
    cmd,
    cross_pseudo_supervision,
    masked_mean,
    mcpc,
    mean_teacher_consistency,
)
from nnunetv2_micd.losses.labels import pseudo_label

# Two voxels, two classes: softmax of (log 3, 0) is (3/4, 1/4), of (0, 0) it is (1/2, 1/2).
A = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
B = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])
CE_75, CE_25, CE_50 = -math.log(0.75), -math.log(0.25), -math.log(0.5)


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def all_losses(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> dict[str, Tensor]:
    """Every loss of four logits; a and b belong to students, c and d to peers and teachers."""
    weight = torch.linspace(0.5, 2, a.shape[1])
    return {
        "cps": cross_pseudo_supervision(a, b, pseudo_label(c), pseudo_label(d)),
        "cps of regions": cross_pseudo_supervision(a, b, pseudo_label(c, True), pseudo_label(d, True)),
        "weighted mcpc": mcpc(a, b, pseudo_label(c), pseudo_label(d), weight, weight.flip(0)),
        "cfc": cfc([a], [b], (0.8,)),
        "cmd": cmd(a, b, pseudo_label(c), pseudo_label(d)),
        "mean teacher": mean_teacher_consistency(a, c) + mean_teacher_consistency(b, d),
        "mean teacher of regions": mean_teacher_consistency(a, c, True) + mean_teacher_consistency(b, d, True),
    }


LOSSES = ["cps", "cps of regions", "weighted mcpc", "cfc", "cmd", "mean teacher", "mean teacher of regions"]


def test_cps_pairs_each_student_with_the_labels_of_the_other() -> None:
    # A on (1, 0): voxels 1/4 and 1/2; B on (0, 0): voxels 1/2 and 1/4
    loss = cross_pseudo_supervision(A, B, pseudo_a=torch.tensor([[0, 0]]), pseudo_b=torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx((CE_25 + CE_50) / 2 + (CE_50 + CE_25) / 2)
    swapped = cross_pseudo_supervision(A, B, pseudo_a=torch.tensor([[1, 0]]), pseudo_b=torch.tensor([[0, 0]]))
    assert swapped.item() == pytest.approx((CE_75 + CE_50) / 2 + (CE_50 + CE_25) / 2)


def test_cps_weights_belong_to_their_branch_and_their_scale_cancels() -> None:
    labels = {"pseudo_a": torch.tensor([[0, 1]]), "pseudo_b": torch.tensor([[1, 0]])}
    weight_a, weight_b = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])
    # A on (1, 0): 1/4 and 1/2 with weights 3 and 1; B on (0, 1): 1/2 and 3/4 with weights 0 and 2
    expected = (3 * CE_25 + CE_50) / 4 + CE_75
    loss = cross_pseudo_supervision(A, B, **labels, weight_a=weight_a, weight_b=weight_b)
    assert loss.item() == pytest.approx(expected)
    scaled = cross_pseudo_supervision(A, B, **labels, weight_a=5 * weight_a, weight_b=7 * weight_b)
    assert scaled.item() == pytest.approx(expected)


def test_cps_agrees_with_the_weighted_mean_of_dhc() -> None:
    # github.com/xmed-lab/DHC, b3dee972: torch's cross entropy with class weights and its default reduction
    a, b, weight = random_logits(2, 3, 4, 5), random_logits(2, 3, 4, 5, seed=1), torch.tensor([0.3, 1.0, 3.0])
    reference = torch.nn.CrossEntropyLoss(weight)
    expected = reference(a, pseudo_label(b).long()) + reference(b, pseudo_label(a).long())
    torch.testing.assert_close(
        cross_pseudo_supervision(a, b, pseudo_label(a), pseudo_label(b), weight, weight), expected
    )


def test_cps_is_zero_with_a_graph_where_all_weights_are_zero() -> None:
    logits, background = random_logits(1, 2, 4), torch.zeros(1, 4, dtype=torch.int64)
    weight = torch.tensor([0.0, 2.0])
    loss = cross_pseudo_supervision(logits, logits, background, background, weight, weight)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_mcpc_is_cross_pseudo_supervision_by_another_name() -> None:
    a, b, weight = random_logits(2, 3, 4, 5), random_logits(2, 3, 4, 5, seed=1), torch.tensor([0.3, 1.0, 3.0])
    arguments = (a, b, pseudo_label(a), pseudo_label(b), weight, weight.flip(0))
    assert torch.equal(mcpc(*arguments), cross_pseudo_supervision(*arguments))


def test_cfc_known_value_and_stage_weights() -> None:
    # Voxel 0: A (3/4, 1/4), B (1/2, 1/2); voxel 1 of these: A (1/2, 1/2), B (1/4, 3/4)
    divergence = 0.5 * 0.25 * math.log(3)  # 0.5 sum (a - b)(log a - log b) in either voxel
    assert cfc([A], [B], (1.0,)).item() == pytest.approx(divergence)
    assert cfc([A, A], [B, B], (0.2, 0.8)).item() == pytest.approx(divergence)
    assert cfc([A, A], [A, B], (0.2, 0.8)).item() == pytest.approx(0.8 * divergence)
    assert cfc([B], [A], (1.0,)).item() == pytest.approx(divergence)


def test_cfc_agrees_with_torch_kl_div() -> None:
    a, b = random_logits(2, 5, 3, 4).log_softmax(1), random_logits(2, 5, 3, 4, seed=1).log_softmax(1)
    kl = torch.nn.functional.kl_div
    both = kl(a, b, log_target=True, reduction="sum") + kl(b, a, log_target=True, reduction="sum")
    torch.testing.assert_close(cfc([a], [b], (1.0,)), 0.5 * both / (2 * 3 * 4))


@pytest.mark.parametrize(
    ("features_a", "features_b", "weights", "message"),
    [
        ([A], [B, B], (1.0,), "got 1, 2 and 1"),
        ([A], [B], (0.2, 0.8), "got 1, 1 and 2"),
        ([], [], (), "got 0, 0 and 0"),
        ([A, A], [B, B[..., :1]], (0.2, 0.8), r"stage 1 has \(1, 2, 2\) and \(1, 2, 1\)"),
    ],
)
def test_cfc_refuses_features_that_do_not_match(
    features_a: list[Tensor], features_b: list[Tensor], weights: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cfc(features_a, features_b, weights)


def test_cmd_follows_the_own_teacher() -> None:
    # A on the teacher's (1, 1): 1/4 and 1/2; B on the teacher's (0, 1): 1/2 and 3/4
    teacher_a, teacher_b = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    expected = (CE_25 + CE_50) / 2 + (CE_50 + CE_75) / 2
    assert cmd(A, B, pseudo_label(teacher_a), pseudo_label(teacher_b)).item() == pytest.approx(expected)


def test_mean_teacher_consistency_known_value() -> None:
    assert mean_teacher_consistency(A, B).item() == pytest.approx(0.25**2)
    assert mean_teacher_consistency(A, A).item() == 0


@pytest.mark.parametrize("spatial", [(6, 5), (2, 3, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_students_get_gradient_and_peers_and_teachers_none(name: str, spatial: tuple[int, ...]) -> None:
    a, b, c, d = (random_logits(2, 3, *spatial, seed=seed) for seed in range(4))
    loss = all_losses(a, b, c, d)[name]
    assert loss.shape == ()
    loss.backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0
    assert c.grad is None
    assert d.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_2d_is_3d_with_depth_one(name: str) -> None:
    logits = [random_logits(2, 3, 4, 5, seed=seed) for seed in range(4)]
    deep = [tensor[:, :, None] for tensor in logits]
    torch.testing.assert_close(all_losses(*logits)[name], all_losses(*deep)[name])


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_float16_logits_stay_finite(name: str) -> None:
    logits = [(random_logits(2, 3, 40, 40, seed=seed) * 1e4).half().detach().requires_grad_() for seed in range(4)]
    loss = all_losses(*logits)[name]
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(tensor.grad).all() for tensor in logits[:2])


# Two regions, which may overlap, on two voxels: the sigmoid of log 3 is 3/4.
REGIONS = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(3.0)]]])


def test_regions_are_compared_by_binary_cross_entropy() -> None:
    none, both = torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool)
    # A on everything: 3/4 and 1/2 in each region; B, the same logits, on nothing: 1/4 and 1/2
    loss = cross_pseudo_supervision(REGIONS, REGIONS, pseudo_a=none, pseudo_b=both)
    assert loss.item() == pytest.approx((CE_75 + CE_50) / 2 + (CE_25 + CE_50) / 2)
    assert cmd(REGIONS, REGIONS, both, none).item() == pytest.approx(loss.item())


def test_weights_of_regions_belong_to_their_region() -> None:
    first = torch.tensor([[[True, True], [False, False]]])
    # region 0 on everything: 3/4 and 1/2; region 1 on nothing: 1/2 and 1/4
    weight = torch.tensor([1.0, 3.0])
    expected = ((CE_75 + CE_50) / 2 + 3 * (CE_50 + CE_25) / 2) / 4
    loss = cross_pseudo_supervision(REGIONS, REGIONS, first, first, weight, weight)
    assert loss.item() == pytest.approx(2 * expected)


def test_mean_teacher_of_regions_compares_sigmoids() -> None:
    assert mean_teacher_consistency(REGIONS, torch.zeros_like(REGIONS), regions=True).item() == pytest.approx(1 / 32)


@pytest.mark.parametrize("spatial", [(2,), (1, 2)])
def test_masked_mean_counts_the_chosen_values_only(spatial: tuple[int, ...]) -> None:
    values = torch.tensor([1.0, 2.0, 3.0, math.nan]).reshape(1, 2, *spatial).requires_grad_()
    mask = torch.tensor([True, False, True, False]).reshape(1, 2, *spatial)
    loss = masked_mean(values, mask)
    loss.backward()
    assert loss.item() == 2
    assert values.grad.flatten().tolist() == [0.5, 0, 0.5, 0]
    voxels = torch.tensor([True, False]).reshape(1, 1, *spatial)
    assert masked_mean(values, voxels).item() == 2


def test_masked_mean_of_nothing_is_zero_with_a_graph() -> None:
    values = torch.ones(1, 2, 3, requires_grad=True)
    loss = masked_mean(values, torch.zeros(1, 1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not values.grad.any()
