import math

import pytest
import torch

from nnunetv2_micd.losses.features import absolute_distance, cosine_distance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distances_by_hand(dtype: torch.dtype) -> None:
    features = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]]], dtype=dtype, requires_grad=True)
    others = torch.tensor([[[0.0, 2.0]], [[2.0, 2.0]]], dtype=dtype)
    cosine, absolute = cosine_distance(features, others), absolute_distance(features, others)
    assert cosine.item() == pytest.approx((1 + 0) / 2, abs=1e-6)  # a right angle, and the same direction
    assert absolute.item() == pytest.approx((3 + 2 + 1 + 1) / 4)
    assert cosine.dtype == absolute.dtype == torch.float32
    (cosine + absolute).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_cosine_takes_all_channels_and_voxels_as_one_vector() -> None:
    features, others = torch.randn(2, 1, 3, 4, 5).unbind()
    expected = (features * others).sum() / math.sqrt((features**2).sum() * (others**2).sum())
    assert cosine_distance(features[None], others[None]).item() == pytest.approx(1 - expected.item(), abs=1e-6)
