"""Which layers are recommended, from the model alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze import (
    GradCAM,
    create_gradcam,
    get_recommended_layers,
)
from fedgaze.errors import FedgazeError


def on_meta(name: str, **options: Any) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("resnet50", "layer4"),
        ("wide_resnet50_2", "layer4"),
        ("densenet121", "features.norm5"),
        *((f"efficientnet_b{size}", "features.8") for size in range(8)),
        ("vgg16", "features.30"),
        ("mobilenet_v2", "features.18"),
    ],
)
def test_recommended_layers_of_known_families(name: str, layer: str) -> None:
    assert get_recommended_layers(on_meta(name)) == [layer]


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("inception_v3", {"init_weights": False}, "Mixed_7c"),
        ("squeezenet1_1", {}, "classifier.2"),
        ("shufflenet_v2_x0_5", {}, "conv5"),
    ],
)
def test_recommended_layers_of_others_by_role(
    name: str, options: dict[str, Any], layer: str
) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name, weights=None, **options).train()
    assert get_recommended_layers(model) == [layer]
    assert all(module.training for module in model.modules())


def test_recommended_layers_really_run() -> None:
    class Branched(nn.Module):
        """The convolution that is defined last runs in training only."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.body = nn.Conv2d(4, 4, 3)
            self.head = nn.LazyLinear(2)
            self.auxiliary = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(self.stem(x).relu())
            side = self.auxiliary(x).mean() if self.training else 0
            return self.head(x.mean((2, 3))) + side

    model = Branched()
    model(torch.randn(1, 3, 10, 12))
    assert get_recommended_layers(model) == ["body"]
    # Without settings they are those of the model, also under other names.
    assert list(GradCAM(model).target_layers) == ["body"]
    assert list(create_gradcam(nn.Sequential(model)).target_layers) == ["0.body"]


def test_sizes_are_tried_until_the_model_takes_one() -> None:
    digits = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10))
    assert get_recommended_layers(digits) == ["1"]
    volumes = nn.Sequential(
        nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    assert get_recommended_layers(volumes) == ["1"]
    odd = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 7, 2))
    with pytest.raises(
        FedgazeError, match=r"could not find a target layer in Sequential.*name one"
    ):
        get_recommended_layers(odd)
    assert get_recommended_layers(odd, torch.zeros(1, 1, 5, 7)) == ["1"]
    with pytest.raises(FedgazeError, match="could not find a target layer in Linear"):
        create_gradcam(nn.Linear(3, 2))
