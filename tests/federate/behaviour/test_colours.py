"""Bounded changes of colour, and which of them is taken."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgaze.federate.behaviour.colours import changes_of, disagreement, most_misleading
from fedgaze.federate.behaviour.triggers import generator


def test_disagreement_by_hand() -> None:
    one = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    other = torch.tensor([[[5.0, 0.0]], [[0.0, 2.0]], [[4.0, 3.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
    assert disagreement(one, other).tolist() == pytest.approx([0, 1, 1 - 24 / 25, 0, 1], abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_changes_are_bounded_and_all_different(channels: int) -> None:
    images = torch.rand(6, channels, 9, 7, generator=generator(1))
    given = images.clone()
    found = [change(images) for change in changes_of(channels)]
    assert torch.equal(images, given)
    for number, each in enumerate(found):
        assert each.shape == images.shape
        assert each.min() >= 0
        assert each.max() <= 1
        assert 0.01 < (each - images).abs().mean() < 0.25
        assert not any(torch.allclose(each, other, atol=1e-3) for other in found[:number])


def test_changes_of_grey_images_by_hand() -> None:
    image = torch.tensor([[0.0, 0.4, 1.0]]).expand(3, 3)[None, None]
    gain, brighter, darker, tint, right, left, down, up = (
        change(image)[0, 0] for change in changes_of(1)
    )
    assert gain[0].tolist() == pytest.approx([0, 0.3, 0.75])
    assert brighter[0].tolist() == pytest.approx([0, 0.4**0.6, 1])
    assert darker[0].tolist() == pytest.approx([0, 0.4**1.6, 1])
    assert tint[0].tolist() == pytest.approx([0.15, 0.49, 1])
    assert right[0].tolist() == pytest.approx([0, 0.1 + 0.9 * 0.4, 1])
    assert left[0].tolist() == pytest.approx([0.2, 0.1 + 0.9 * 0.4, 1])
    assert down[:, 0].tolist() == pytest.approx([0, 0.1, 0.2])
    assert up[:, 0].tolist() == pytest.approx([0.2, 0.1, 0])
    for ramp in (right, left, down, up):
        assert ramp[0, 2] == 1  # white stays white


def test_changes_of_coloured_images_by_hand() -> None:
    image = torch.tensor([0.8, 0.4, 0.4]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    hues = [change(image)[0, :, 0, 0] for change in changes_of(3)[:2]]
    for hue in hues:  # the value and the greyness stay, the hue turns by 36 degrees of 60 a channel
        assert sorted(hue.tolist()) == pytest.approx([0.4, 0.64, 0.8], abs=1e-4)
        assert hue[0].item() == pytest.approx(0.8, abs=1e-4)
    assert {int(hue[1:].argmax()) for hue in hues} == {0, 1}
    luma = 0.2989 * 0.8 + 0.587 * 0.4 + 0.114 * 0.4
    for change, by in zip(changes_of(3)[2:4], (0.5, 1.5), strict=True):
        expected = [luma + by * (value - luma) for value in (0.8, 0.4, 0.4)]
        assert change(image)[0, :, 0, 0].tolist() == pytest.approx(expected, abs=2e-3)
    warmer = changes_of(3)[4](image)[0, :, 0, 0]
    assert warmer.tolist() == pytest.approx([0.96, 0.4, 0.32])


class Sees:
    """Its maps are the images' own pixels, for class 1 those of the other half only."""

    def explain(self, images: Tensor, labels: Tensor) -> Any:
        maps = images[:, 0].clone()
        maps[labels == 1, :, :2] = 0
        return SimpleNamespace(raw=maps)


def test_the_change_that_misleads_most_is_taken() -> None:
    changes = (
        lambda x: x * 0.5,  # the same map but for its scale: cosine 1
        lambda x: x.flip(3),  # the halves change places
        lambda x: torch.cat([x[..., :2], x[..., 2:].flip(3)], 3),  # only within the right half
    )
    left = torch.tensor([1.0, 1.0, 0.0, 0.1]).expand(1, 4, 4)
    right = torch.tensor([0.5, 0.5, 1.0, 0.0]).expand(1, 4, 4)
    found = most_misleading(
        Sees(),  # type: ignore[arg-type]
        torch.stack([left, right]),
        torch.tensor([0, 1]),
        changes,
    )
    # Of the second image class 1 sees (1, 0): flipped as a whole it sees (0.5, 0.5), cosine 0.7;
    # flipped within, (0, 1), cosine 0.
    assert found.tolist() == [1, 2]
