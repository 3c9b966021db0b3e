"""Merges with and without an update, and images under other light."""

import pytest
import torch
from torch import Tensor

from fedgaze.federate.gate.light import under_other_light
from fedgaze.federate.gate.merges import LEAST, certainty_of, leave_one_out


def test_the_merges_are_means() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(4)},
        {"w": torch.tensor([5.0, 1.0]), "n": torch.tensor(5)},
    ]
    whole, rest = leave_one_out(states)
    assert whole["w"].tolist() == [3.0, 3.0]
    assert [each["w"].tolist() for each in rest] == [[4.0, 3.5], [3.0, 1.5], [2.0, 4.0]]
    assert whole["w"].dtype == torch.float32
    assert whole["n"] == rest[2]["n"] == 3


def test_certainty_is_the_logarithm_of_the_classes_probability() -> None:
    """A model that sees the first pixel's brightness as the probability of class 1."""

    def predict(images: Tensor) -> Tensor:
        bright = images[:, 0, 0, 0].clamp(1e-6, 1 - 1e-6)
        return torch.stack([1 - bright, bright], 1).log()

    images = torch.zeros(4, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.5, 0.25, 0.25, 0.0])
    found = certainty_of(predict, images, torch.tensor([1, 0, 0, 1]), light=True)
    assert found.plain.exp().tolist() == pytest.approx([0.5, 0.75, 0.75, LEAST])
    # Of the first and fourth: darker, gamma, raised; across and down add nothing in that corner.
    assert found.light is not None
    assert found.light.shape == (5, 2)
    factors = [0.6, 0.5**-0.5, 0.6 / 0.5, 1.0, 1.0]
    assert found.light[:, 0].exp().tolist() == pytest.approx(factors)
    plain = certainty_of(predict, images, torch.tensor([1, 0, 0, 1]), light=False)
    assert torch.equal(plain.plain, found.plain)
    assert plain.light is None
    assert found.light[2, 1].exp().item() == pytest.approx(0.2 / LEAST, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_other_light_changes_images_and_keeps_them_in_range(channels: int) -> None:
    images = torch.rand(2, channels, 5, 6, generator=torch.Generator().manual_seed(0))
    lit = under_other_light(images)
    assert lit.shape[1:] == images.shape
    assert lit.min() >= 0
    assert lit.max() <= 1
    for each in lit:
        assert (each - images).abs().mean() > 0.02


def test_a_hue_turns_and_turns_back() -> None:
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    turned, back, paler = under_other_light(red)[3:]
    assert turned[0, 1] == pytest.approx(0.9, abs=0.01), "54 degrees: nearly yellow"
    assert back[0, 2] == pytest.approx(0.9, abs=0.01)
    assert 0 < paler[0, 1] < 1
