import math

import pytest
import torch

from nnunetv2_micd.augmentation.masks import apply_mask, box_mask, sample_box, sample_mask, sample_starts


def draw(
    spatial: tuple[int, ...] = (20, 24, 28), ratio: float = 0.5, block_size: int = 3, seed: int = 0, batch_size: int = 2
) -> torch.Tensor:
    return sample_mask(batch_size, spatial, ratio, block_size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spatial", [(20, 24, 28), (20, 28)])
@pytest.mark.parametrize(("ratio", "block_size"), [(0.0, 3), (0.5, 3), (0.7, 8), (0.25, 1), (0.5, 64)])
def test_exact_share_of_whole_blocks(spatial: tuple[int, ...], ratio: float, block_size: int) -> None:
    mask = draw(spatial, ratio, block_size)
    assert mask.shape == (2, 1, *spatial)
    assert mask.dtype == torch.bool
    corners = mask[(..., *(slice(None, None, block_size) for _ in spatial))]
    blocks = math.prod(math.ceil(size / block_size) for size in spatial)
    assert corners[0].numel() == blocks
    assert corners.sum(dim=tuple(range(1, corners.ndim))).tolist() == [round(ratio * blocks)] * 2
    voxels = torch.meshgrid(*(torch.arange(size) // block_size for size in spatial), indexing="ij")
    assert torch.equal(mask, corners[(..., *voxels)])  # constant inside each block


def test_blocks_may_have_another_edge_along_each_axis() -> None:
    mask = sample_mask(2, (5, 6), 0.5, (2, 3), torch.Generator())[:, 0]
    for sample in mask:
        blocks = [sample[i : i + 2, j : j + 3] for i in (0, 2, 4) for j in (0, 3)]
        assert all(block.all() or not block.any() for block in blocks)
        assert sum(bool(block.all()) for block in blocks) == 3


def test_generator_decides_and_samples_differ() -> None:
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    mask = draw(seed=1)
    assert not torch.equal(mask[0], mask[1])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("ratio", [-0.1, 1.0, math.nan])
def test_ratio_outside_the_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"got {ratio}"):
        draw(ratio=ratio)


def test_empty_block_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        draw(block_size=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_apply_mask_zeros_all_channels_of_a_copy(dtype: torch.dtype) -> None:
    image = torch.tensor([[[1.0, 2.0], [3.0, math.inf]]], dtype=dtype)
    original = image.clone()
    masked = apply_mask(image, torch.tensor([[[False, True]]]))
    assert masked.tolist() == [[[1, 0], [3, 0]]]
    assert masked.dtype == dtype
    assert torch.equal(image, original)


def test_apply_mask_passes_gradient_where_visible() -> None:
    image, mask = torch.ones(2, 3, 20, 24, 28, requires_grad=True), draw()
    apply_mask(image, mask).sum().backward()
    assert torch.equal(image.grad, (~mask).float().expand_as(image))


def test_empty_mask_keeps_image_and_graph() -> None:
    image = torch.ones(2, 1, 4, 4, requires_grad=True)
    masked = apply_mask(image, draw((4, 4), ratio=0.0))
    assert torch.equal(masked, image)
    assert masked.requires_grad


def test_box_mask_by_hand() -> None:
    mask = box_mask(torch.tensor([[1, 0], [0, 0]]), torch.tensor([[1, 2], [0, 3]]), (2, 3))
    assert mask[:, 0].int().tolist() == [[[0, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_boxes_start_everywhere_they_fit() -> None:
    starts = sample_starts(torch.tensor([[2, 3]] * 500), (4, 3), torch.Generator().manual_seed(0))
    assert starts[:, 0].unique().tolist() == [0, 1, 2]
    assert starts[:, 1].unique().tolist() == [0]


@pytest.mark.parametrize("spatial", [(20, 24), (16, 20, 24)])
def test_box_is_the_share_of_each_axis(spatial: tuple[int, ...]) -> None:
    generator, places = torch.Generator().manual_seed(0), []
    for _ in range(20):
        box = sample_box(spatial, 2 / 3, generator)
        assert box.shape == (1, 1, *spatial)
        edges = [int(box[0, 0].movedim(axis, 0).flatten(1).any(1).sum()) for axis in range(len(spatial))]
        assert edges == [size * 2 // 3 for size in spatial]
        assert box.sum() == math.prod(edges)
        places.append(int(box.flatten().int().argmax()))
    assert len(set(places)) > 5
