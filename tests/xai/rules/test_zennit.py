"""Zennit, with the canonizers that it needs, as oracle of the composites."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit import composites as theirs
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.rules import Epsilon, WSquare
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

from fedgaze.xai.rules import lrp_rules

Back = Callable[..., Tensor]
Make = Callable[..., Any]

COMPOSITES: dict[str, tuple[Make, dict[str, Any]]] = {
    "epsilon_plus": (theirs.EpsilonPlus, {}),
    "epsilon_plus_flat": (theirs.EpsilonPlusFlat, {}),
    "epsilon_alpha2_beta1": (theirs.EpsilonAlpha2Beta1, {}),
    "epsilon_alpha2_beta1_flat": (theirs.EpsilonAlpha2Beta1Flat, {}),
    "epsilon_gamma_box": (theirs.EpsilonGammaBox, {"low": -3.0, "high": 3.0}),
}


def vgg(*, norm: bool) -> nn.Module:
    plan = [16, "M", 24, "M", 32, 32, "M"]
    features = torchvision.models.vgg.make_layers(plan, batch_norm=norm)
    head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 6))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def resnet(block: Any, width: int, **options: int) -> nn.Module:
    """The first two stages of torchvision's, which write the residual as ``out += identity``."""
    model = torchvision.models.ResNet(block, [2, 1, 1, 1], **options)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(width, 6)
    return model


def squeezenet() -> nn.Module:
    # Concatenation, and a classifier that is a convolution, with its pooling behind.
    model = torchvision.models.squeezenet1_1(num_classes=6)
    model.features = model.features[:5]
    model.classifier[1] = nn.Conv2d(128, 6, 1)
    return model


def densenet() -> nn.Module:
    """Torchvision's, with what it calls as functions written as modules, which zennit can see."""
    model = torchvision.models.DenseNet(6, (2, 2), 8, num_classes=6)
    return nn.Sequential(
        model.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier
    )


def fused(model: nn.Module) -> nn.Module:
    """Without the norms right behind a convolution; zennit has no canonizer for DenseNet."""
    model = copy.deepcopy(model)
    features = model[0]
    pairs = [(features, "conv0", "norm0")]
    pairs += [
        (layer, "conv1", "norm2")
        for block in (features.denseblock1, features.denseblock2)
        for layer in block.values()
    ]
    for part, conv, norm in pairs:
        setattr(part, conv, fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
        setattr(part, norm, nn.Identity())
    return model


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=2)),
        *(nn.LeakyReLU(), nn.AvgPool2d(3, 2, 1), nn.ConvTranspose2d(12, 6, 3, stride=2), nn.SiLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 7 * 7, 9), nn.ReLU(), nn.Linear(9, 6)),
    )


blocks = torchvision.models.resnet
MODELS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "resnet": (lambda: resnet(blocks.BasicBlock, 128), [ResNetCanonizer]),
    "resnext": (
        lambda: resnet(blocks.Bottleneck, 512, groups=4, width_per_group=8),
        [ResNetCanonizer],
    ),
    "vgg": (lambda: vgg(norm=False), []),
    "vgg_bn": (lambda: vgg(norm=True), [VGGCanonizer]),
    "squeezenet": (squeezenet, []),
    "densenet": (densenet, []),
    "plain": (plain, []),
}


def by_zennit(model: nn.Module, images: Tensor, composite: Any, classes: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    with composite.context(model) as changed:
        scores = changed(leaf).gather(1, classes[:, None])[:, 0]
        return torch.autograd.grad(scores, leaf, torch.ones_like(scores))[0]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("composite", COMPOSITES)
def test_composites_agree(name: str, composite: str, back: Back, unsettle: Make) -> None:
    make, canonizers = MODELS[name]
    torch.manual_seed(0)
    # Zennit leaves the constant of a merged BatchNorm in it, which then divides by 1 + 1e-5.
    model = unsettle(make(), eps=1e-14).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    classes = torch.tensor([1, 4])
    kind, options = COMPOSITES[composite]
    images = images.clamp(-3, 3)
    # Norms that stand alone are linear layers for us, and pass relevance on in zennit.
    alone = [((nn.BatchNorm2d,), Epsilon())] if name == "densenet" else []
    oracle = kind(**options, layer_map=alone, canonizers=[each() for each in canonizers])
    their = fused(model) if name == "densenet" else model
    expected = by_zennit(their, images, oracle, classes)
    found = back(model, images, lambda: lrp_rules(composite, **options), classes)
    assert relative(found, expected) < 1e-9


def test_with_the_constant_they_agree_to_four_digits(back: Back, unsettle: Make) -> None:
    torch.manual_seed(0)
    model = unsettle(resnet(blocks.BasicBlock, 128))
    images, classes = torch.randn(2, 3, 48, 48), torch.tensor([1, 4])
    oracle = theirs.EpsilonPlusFlat(canonizers=[ResNetCanonizer()])
    expected = by_zennit(model, images, oracle, classes)
    found = back(model, images, lambda: lrp_rules("epsilon_plus_flat"), classes)
    assert relative(found, expected) < 1e-4


def test_epsilon_everywhere_agrees(back: Back) -> None:
    torch.manual_seed(0)
    model = plain().double().eval()
    images, classes = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 4])
    layers = [*layer_map_base(), ((nn.Conv2d, nn.ConvTranspose2d, nn.Linear), Epsilon(0.1))]
    expected = by_zennit(model, images, LayerMapComposite(layers), classes)
    found = back(model, images, lambda: lrp_rules("epsilon", epsilon=0.1), classes)
    assert relative(found, expected) < 1e-9


def test_squared_weights_agree_without_the_bias(back: Back) -> None:
    # In the paper's formula there is none; zennit adds its square.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).double()
    images, classes = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 2])
    first = ((nn.Conv2d,), WSquare(zero_params="bias"))
    oracle = LayerMapComposite([first, ((nn.Linear,), Epsilon())])
    expected = by_zennit(model, images, oracle, classes)
    found = back(model, images, lambda: lrp_rules("epsilon", first="w_square"), classes)
    assert relative(found, expected) < 1e-9
