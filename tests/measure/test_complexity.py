"""Complexity by hand, and against the definition of the Gini index by pairs."""

import pytest
import torch

from fedgaze import measure
from fedgaze.errors import FedgazeError


def test_gini_is_half_the_mean_difference_of_pairs_over_the_mean() -> None:
    maps = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)) - 0.3
    values = maps.abs().flatten(1)
    pairs = (values[:, :, None] - values[:, None]).abs().mean((1, 2))
    torch.testing.assert_close(measure.gini(maps), pairs / (2 * values.mean(1)))
    assert measure.gini(torch.zeros(1, 3, 3)).isnan().item()


def test_the_fewest_pixels_that_hold_the_mass() -> None:
    heat = torch.tensor([[[0.5, 0.3], [0.15, 0.05]]])
    shares = [0.5, 0.51, 0.8, 0.95, 1.0]
    found = [measure.effective_complexity(heat, share=each).item() for each in shares]
    assert found == [0.25, 0.5, 0.5, 0.75, 1.0]
    assert measure.effective_complexity(torch.zeros(1, 2, 2)).isnan().item()
    with pytest.raises(FedgazeError, match="share is 0; allowed is above 0"):
        measure.effective_complexity(heat, share=0)


def test_total_variation_of_a_step_and_of_a_plane() -> None:
    step = torch.tensor([[[0.0, 0.0, 1.0, 1.0]] * 3])
    # One step of 1 in each row of 3 pairs, none down; the mean is a half.
    assert measure.total_variation(step).item() == pytest.approx((1 / 3 + 0) / 0.5)
    assert measure.total_variation(torch.ones(1, 3, 3)).item() == 0
    assert measure.total_variation(7 * step).item() == pytest.approx(2 / 3)
    assert measure.total_variation(torch.zeros(1, 3, 3)).isnan().item()
