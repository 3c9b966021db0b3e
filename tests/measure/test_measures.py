"""Measures against values worked by hand, and against SciPy."""

import math

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from scipy.stats import spearmanr
from torch import Tensor, nn

from fedgaze import measure


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(5, 6, 9, generator=torch.Generator().manual_seed(0))


def test_mass_on_a_mask_by_hand() -> None:
    heatmap = torch.tensor([[[0.0, 0.5], [0.25, 0.25]]])
    right = torch.tensor([[[False, True], [False, True]]])
    assert measure.mass_on(heatmap, right).item() == 0.75
    assert measure.mass_on(heatmap, ~right).item() == 0.25


def test_border_of_an_even_map_is_the_borders_area() -> None:
    even = torch.ones(1, 16, 24)
    assert measure.border_mass(even).item() == pytest.approx(1 - (12 * 18) / (16 * 24))
    centre = torch.zeros(1, 16, 24)
    centre[0, 8, 12] = 1
    assert measure.border_mass(centre).item() == 0
    assert measure.border_mass(1 - centre).item() < 1


def test_border_is_at_least_one_pixel() -> None:
    corner = torch.zeros(1, 3, 3)
    corner[0, 0, 0] = 2.0
    assert measure.border_mass(corner, width=0.01).item() == 1


def test_entropy_equals_scipys(maps: Tensor) -> None:
    expected = [scipy_entropy(each.flatten().numpy()) / math.log(54) for each in maps]
    torch.testing.assert_close(measure.entropy(maps), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_entropy_of_one_hot_is_zero() -> None:
    assert measure.entropy(torch.eye(4)[None, :1]).item() == 0


def test_spearman_equals_scipys_also_with_ties(maps: Tensor) -> None:
    other = (maps.flip(2) * 4).round()  # many ties
    expected = [
        spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic
        for a, b in zip(maps, other, strict=True)
    ]
    torch.testing.assert_close(
        measure.spearman(maps, other), torch.tensor(expected, dtype=torch.float64)
    )
    torch.testing.assert_close(measure.spearman(maps, -maps), -torch.ones(5, dtype=torch.float64))


def test_mass_overlap_is_one_minus_total_variation(maps: Tensor) -> None:
    other = maps.roll(1, 0)
    q, r = (each.flatten(1) / each.flatten(1).sum(1, keepdim=True) for each in (maps, other))
    expected = 1 - (q - r).abs().sum(1) / 2
    torch.testing.assert_close(measure.mass_overlap(maps, other), expected)
    torch.testing.assert_close(measure.mass_overlap(maps, 7 * maps), torch.ones(5))


def test_overlap_of_what_is_apart_is_zero() -> None:
    left = torch.zeros(1, 2, 2)
    left[:, :, 0] = 1
    assert measure.mass_overlap(left, left.flip(2)).item() == 0


def test_zero_maps_are_undefined_and_nothing_else_is(maps: Tensor) -> None:
    maps[3] = 0
    one = torch.ones_like(maps, dtype=torch.bool)
    for values in (
        measure.mass_on(maps, one),
        measure.border_mass(maps),
        measure.entropy(maps),
        measure.mass_overlap(maps, maps),
        measure.spearman(maps, maps),
    ):
        assert values.isnan().tolist() == [False, False, False, True, False]


def test_causal_drop_by_hand_and_never_negative() -> None:
    log = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    without = torch.tensor([[0.3, 0.7], [0.6, 0.4]]).log()
    drop = measure.causal_drop(log, without, torch.tensor([0, 0]))
    torch.testing.assert_close(drop, torch.tensor([0.6, 0.0]))


def test_fill_uses_the_mean_of_the_rest() -> None:
    images = torch.tensor([[[[1.0, 3.0], [5.0, 100.0]]], [[[1.0, 2.0], [3.0, 6.0]]]])
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 1, 1] = True
    mask[1] = True
    filled = measure.fill(images, mask)
    assert filled[0, 0].tolist() == [[1.0, 3.0], [5.0, 3.0]]
    assert filled[1, 0].unique().tolist() == [3.0]


class LeftPixel(nn.Module):
    """Class 0 exactly as far as the left pixel is bright."""

    def forward(self, images: Tensor) -> Tensor:
        left = images[:, 0, 0, 0]
        return torch.stack([left, 1 - left], 1).clamp(1e-6).log()


def test_region_drop_sees_what_the_model_needs() -> None:
    images = torch.tensor([[[[0.9, 0.2, 0.2]]]]).repeat(3, 1, 1, 1)
    mask = torch.zeros(3, 1, 3, dtype=torch.bool)
    mask[0, 0, 0] = True  # what it needs
    mask[1, 0, 2] = True  # what it does not need
    model, targets = LeftPixel(), torch.zeros(3, dtype=torch.long)
    drop = measure.region_drop(model, images, mask, targets, model(images))
    torch.testing.assert_close(drop[:2], torch.tensor([0.7, 0.0]))
    assert drop[2].isnan()  # an empty region


def test_strongest_takes_the_part_asked_for_and_no_cold_pixel() -> None:
    heatmap = torch.arange(100.0).view(1, 10, 10)
    assert measure.strongest(heatmap, 0.1)[0].nonzero().tolist() == [[9, c] for c in range(10)]
    assert not measure.strongest(torch.zeros(1, 4, 4)).any()
    sparse = torch.zeros(1, 10, 10)
    sparse[0, 2, 3] = 1
    assert measure.strongest(sparse, 0.5).sum() == 1
