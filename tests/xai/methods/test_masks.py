"""Masks, and images of which only a part is kept."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

from fedgaze.xai.methods.channels import first_of, scattered, weighted_by
from fedgaze.xai.methods.masks import blurred, enlarged, masked, mixed, unit
from fedgaze.xai.methods.rise import RandomMasks

Grow = Callable[..., NDArray[np.float64]]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_enlarging_is_bilinear_between_the_middles_of_pixels(grown: Grow) -> None:
    maps = draw(1, 2, 3, 4)
    found = enlarged(maps, (7, 10))
    for each, small in zip(found.numpy(), maps.numpy(), strict=True):
        assert each == pytest.approx(grown(small, (7, 10)), rel=1e-12)


@pytest.mark.parametrize("size", [(9,), (3, 6, 5)])
def test_rows_and_volumes_are_enlarged_too(size: tuple[int, ...]) -> None:
    small = [max(1, each // 3) for each in size]
    ramp = torch.ones(1, *small)
    assert torch.equal(enlarged(ramp, size), torch.ones(1, *size))


def test_maps_in_half_precision_are_enlarged_in_single() -> None:
    assert enlarged(torch.rand(1, 2, 2).bfloat16(), (4, 4)).dtype == torch.float32


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_unit_maps_reach_from_0_to_1_whatever_the_scale(
    seed: int, scale: float, shift: float
) -> None:
    maps = draw(seed, 3, 4, 5)
    found = unit(maps)
    assert found.amin((1, 2)).tolist() == [0, 0, 0]
    assert found.amax((1, 2)).tolist() == [1, 1, 1]
    assert torch.allclose(unit(maps * scale + shift), found, atol=1e-6)


def test_a_constant_map_is_no_mask_and_not_nan() -> None:
    maps = torch.stack([torch.full((2, 2), 3.0), torch.zeros(2, 2)])
    before = maps.clone()
    assert not unit(maps).any()
    assert torch.equal(maps, before)


def test_masked_images_are_products_and_leave_the_images_alone() -> None:
    images, masks = draw(2, 2, 3, 4, 5), draw(3, 3, 4, 5)
    before, n = images.clone(), torch.tensor([1, 0, 1])
    found = masked(images, n, masks)
    for row, image in enumerate((1, 0, 1)):
        assert torch.equal(found[row], images[image] * masks[row])
    assert torch.equal(images, before)


def test_masked_images_keep_the_order_in_memory() -> None:
    images = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    found = masked(images, torch.tensor([0, 0, 1]), torch.rand(3, 4, 5))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_mixed_images_are_one_where_the_mask_is_1_and_the_other_where_it_is_0() -> None:
    images, others = draw(4, 1, 2, 2, 2), draw(5, 1, 2, 2, 2)
    mask = torch.tensor([[[1.0, 0.0], [0.25, 1.0]]], dtype=torch.float64)
    found = mixed(images, others, torch.tensor([0]), mask)[0]
    assert torch.allclose(found, images[0] * mask + others[0] * (1 - mask))


def test_the_blur_is_the_gaussian_sum_over_mirrored_neighbours() -> None:
    image = draw(6, 1, 1, 5, 6)
    found = blurred(image, 3, 0.8)[0, 0].numpy()
    padded = np.pad(image[0, 0].numpy(), 1, mode="reflect")
    bell = np.exp(-0.5 * (np.arange(-1, 2) / 0.8) ** 2)
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    for i in range(5):
        for j in range(6):
            assert found[i, j] == pytest.approx((padded[i : i + 3, j : j + 3] * kernel).sum())


def test_a_blur_wider_than_the_image_mirrors_again_and_again() -> None:
    image = draw(7, 1, 1, 1, 4)
    found = blurred(image, 21, 5.0)[0, 0, 0].numpy()
    padded = np.pad(image[0, 0, 0].numpy(), 10, mode="reflect")
    bell = np.exp(-0.5 * (np.arange(-10, 11) / 5.0) ** 2)
    expected = [(padded[j : j + 21] * bell).sum() / bell.sum() for j in range(4)]
    assert found == pytest.approx(expected)


def test_live_channels_come_first_and_each_image_has_as_many() -> None:
    live = torch.tensor([[False, True, False, True], [False, False, False, True]])
    index = first_of(live)
    assert index.tolist() == [[1, 3], [3, 0]]
    assert first_of(torch.zeros(2, 3, dtype=torch.bool)).shape == (2, 1)
    found = scattered(torch.tensor([[[5.0, 6.0]], [[7.0, 8.0]]]), index, live, rest=-1)
    assert found.tolist() == [[[-1, 5, -1, 6]], [[-1, -1, -1, 7]]]


def test_weighted_channels_are_added_up() -> None:
    activations, weights = draw(8, 2, 3, 4, 5), draw(9, 2, 4, 3)
    found = weighted_by(activations, weights)
    for n in range(2):
        for s in range(4):
            expected = sum(weights[n, s, k] * activations[n, k] for k in range(3))
            assert torch.allclose(found[n, s], torch.as_tensor(expected))


# The random masks of RISE.


def test_a_random_mask_is_its_cells_enlarged_and_cut_where_it_was_drawn(grown: Grow) -> None:
    cells, size, count = 3, (10, 7), 6
    made = RandomMasks(count, cells, 0.4, size, torch.Generator().manual_seed(11))
    # The same draws, in the order in which they are made.
    generator = torch.Generator().manual_seed(11)
    kept = (torch.rand(count, cells, cells, generator=generator) < 0.4).double()
    high, wide = 4, 3  # of a cell: 10 / 3 and 7 / 3, up
    rows = torch.randint(high, (count,), generator=generator)
    columns = torch.randint(wide, (count,), generator=generator)
    found = made(torch.arange(count))
    for v in range(count):
        large = grown(kept[v].numpy(), ((cells + 1) * high, (cells + 1) * wide))
        top, left = int(rows[v]), int(columns[v])
        cut = large[top : top + 10, left : left + 7]
        assert found[v].numpy() == pytest.approx(cut, abs=1e-6)


def test_masks_of_volumes_are_cut_from_enlarged_cubes() -> None:
    made = RandomMasks(4, 2, 0.5, (4, 6, 5), torch.Generator().manual_seed(12))
    generator = torch.Generator().manual_seed(12)
    kept = (torch.rand(4, 2, 2, 2, generator=generator) < 0.5).float()
    cuts = [torch.randint(cell, (4,), generator=generator) for cell in (2, 3, 3)]
    large = F.interpolate(kept[:, None], (6, 9, 9), mode="trilinear")[:, 0]
    for v in range(4):
        z, y, x = (int(each[v]) for each in cuts)
        cut = large[v, z : z + 4, y : y + 6, x : x + 5]
        assert torch.allclose(made(torch.tensor([v]))[0], cut, atol=1e-6)


def test_each_pixel_is_kept_with_the_probability_of_a_cell() -> None:
    made = RandomMasks(4000, 4, 0.3, (8, 8), torch.Generator().manual_seed(13))
    mean = made(torch.arange(4000)).mean(0)
    # The standard error of a cell's mean is 0.0072.
    assert float((mean - 0.3).abs().max()) < 0.03


def test_a_mask_does_not_depend_on_which_others_are_asked_for() -> None:
    made = RandomMasks(9, 3, 0.5, (6, 6), torch.Generator().manual_seed(14))
    together = made(torch.arange(9))
    assert torch.equal(made(torch.tensor([7, 2])), together[[7, 2]])
