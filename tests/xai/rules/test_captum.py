"""Captum's relevance propagation as oracle of the epsilon rule, where it knows the layers."""

from collections.abc import Callable

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn

from fedgaze.xai.rules import lrp_rules

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor")

Back = Callable[..., Tensor]


def network(dims: int, *, bias: bool) -> nn.Module:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    most = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1]
    mean = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    return nn.Sequential(
        *(conv(2, 6, 3, padding=1, bias=bias), nn.ReLU(), most(2), conv(6, 8, 3, bias=bias)),
        *(nn.ReLU(), mean(2), nn.Flatten(), nn.Linear(8 * 2**dims, 7, bias=bias), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(7, 4, bias=bias)),
    ).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_epsilon_agrees(dims: int, bias: bool, back: Back) -> None:
    torch.manual_seed(dims)
    model = network(dims, bias=bias).eval()
    images = 30 * torch.randn(3, 2, *[10] * dims, dtype=torch.float64)
    classes = torch.tensor([0, 3, 1])
    for layer in model:
        if isinstance(layer, (nn.Conv3d, nn.AdaptiveAvgPool3d, nn.Flatten)):
            layer.rule = EpsilonRule()  # as it gives others by itself
    # Captum's constant is 1e-9, and it begins with the score instead of a one.
    expected = LRP(model).attribute(images, target=classes)
    scores = model(images).gather(1, classes[:, None])[:, 0]
    found = back(model, images, lambda: lrp_rules("epsilon", epsilon=1e-9), classes)
    found = found * scores.view(-1, *[1] * (dims + 1))
    # The denominators of means get 1e-6 from us, which is why pixels are large here.
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    if not bias:
        assert torch.allclose(found.flatten(1).sum(1), scores, rtol=1e-3)
