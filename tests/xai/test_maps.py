"""Fusing the maps of layers, against loops and numbers worked by hand."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedgaze.xai import explain
from fedgaze.xai.maps import fuse, layer_cam_scaled


def test_layer_cams_of_shallow_layers_are_scaled() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = [0.0, math.tanh(0.5), math.tanh(1.0), math.tanh(2.0), 0.0, 0.0, 0.0, 0.0]
    assert layer_cam_scaled(maps).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("mean", [[0.5, 0.25], [0.5, 0.75]]),
        ("max", [[1.0, 0.5], [0.5, 1.0]]),
        ("weighted", [[2 / 3, 1 / 3], [0.5, 2 / 3]]),
        # Twice as coarse as the images: shallow.
        ("layercam", [[math.tanh(2), math.tanh(1)], [math.tanh(1), math.tanh(2)]]),
    ],
)
def test_two_maps_worked_by_hand(fusion: str, expected: list[list[float]]) -> None:
    first = torch.tensor([[[0.0, 0.0], [2.0, 4.0]]])
    second = torch.tensor([[[8.0, 4.0], [4.0, 4.0]]])
    found = fuse([first, second], fusion, "bilinear", (4, 4))
    assert torch.allclose(found, torch.tensor([expected]))


class Stages(nn.Module):
    """Like VGG: positions halve after each of five stages."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 4, 5, 6, 7, 8]
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, stage in enumerate(self.stages):
            x = F.relu(stage(F.max_pool2d(x, 2) if number else x))
        return self.head(x.mean((2, 3)))


def test_layer_cam_of_several_layers_is_its_papers() -> None:
    """Stages 1 to 3 through the tanh, and of all the maximum, from maps of single layers."""
    torch.manual_seed(3)
    model, images = Stages().double(), torch.rand(2, 3, 32, 32).double()
    names = [f"stages.{number}" for number in range(5)]
    singles = [explain(model, images, "layercam", 1, name).raw for name in names]
    expected = torch.zeros(2, 32, 32).double()
    for stage, single in enumerate(singles):
        for n in range(2):
            peak = single[n].max()
            one = single[n] / peak if peak > 0 else single[n]
            one = torch.tanh(2 * one) if stage < 3 else one
            larger = F.interpolate(one[None, None], (32, 32), mode="bilinear")[0, 0]
            expected[n] = torch.maximum(expected[n], larger)
    found = explain(model, images, "layercam", 1, names)
    assert found.fusion == "layercam"
    assert expected.max() > 0
    assert torch.allclose(found.raw, expected, atol=1e-9)
    mean = explain(model, images, "layercam", 1, names, fusion="mean")
    assert not torch.allclose(mean.raw, found.raw)
