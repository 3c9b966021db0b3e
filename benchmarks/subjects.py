"""The models that benchmarks measure on: of torchvision, with seeded random weights, in eval mode.

Peers explain the same layer: by default, that of the automatic choice.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common import DATA


class Subject(NamedTuple):
    """A model, the layer to explain, and how a peer has to lay out its tokens (or None)."""

    model: nn.Module
    layer: str
    grid: tuple[int, int] | None = None


# name: torchvision's function, layer, token grid
_SUBJECTS: dict[str, tuple[str, str, tuple[int, int] | None]] = {
    "ResNet-50": ("resnet50", "layer4", None),
    "ViT-B/16": ("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", (14, 14)),
    "SqueezeNet 1.1": ("squeezenet1_1", "features", None),
    "MobileNetV2": ("mobilenet_v2", "features.18", None),
    "ResNet-18": ("resnet18", "layer4", None),
}


def subject(name: str, seed: int = 0) -> Subject:
    """A model with random weights that depend on the seed only."""
    import torchvision.models

    function, layer, grid = _SUBJECTS[name]
    torch.manual_seed(seed)
    model: nn.Module = getattr(torchvision.models, function)(weights=None)
    if hasattr(model, "heads"):
        # torchvision sets the last layer of a ViT to zero: all gradients would vanish.
        nn.init.normal_(model.get_submodule("heads.head").get_parameter("weight"), std=0.02)
    return Subject(model.eval(), layer, grid)


def trained(name: str) -> nn.Module:
    """A model of torchvision with its real weights, from FEDGAZE_DATA."""
    from safetensors.torch import load_file
    from torchvision.models import get_model

    model: nn.Module = get_model(name, weights=None)
    (file,) = (DATA / "weights").glob(f"{name}_imagenet*.safetensors")
    weights = load_file(file)
    floats = {key: each.float() for key, each in weights.items() if each.is_floating_point()}
    model.load_state_dict(weights | floats)
    return model.eval()


def pictures(batch: int, seed: int = 0, side: int = 224) -> Tensor:
    """Random numbers of the size of prepared photographs: ``(batch, 3, side, side)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, side, side, generator=generator)


def forward(model: nn.Module, images: Tensor) -> Any:
    """What everything is compared with: one plain forward pass, ready to be called."""

    def plain() -> Tensor:
        with torch.no_grad():
            scores: Tensor = model(images)
            return scores

    return plain
