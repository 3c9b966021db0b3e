"""What has to hold for explanations whatever the network: axioms, over networks drawn at random.

Completeness, sensitivity and implementation invariance are those of Sundararajan, Taly and Yan,
"Axiomatic Attribution for Deep Networks", ICML 2017; randomised weights are the sanity check of
Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.xai import explain, list_methods
from fedgaze.xai.methods.paths import baseline_of
from fedgaze.xai.runner import Runner

SEEDS = st.integers(0, 2**31)
EXAMPLES = settings(deadline=None, max_examples=6)
# Where each of many methods has its own.
FEW = settings(deadline=None, max_examples=2)

AT_LAYER = (
    *("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "gradcam_elementwise"),
    *("eigencam", "eigengradcam", "kpcacam", "cam", "finercam", "shapleycam", "smooth_gradcam++"),
)
BY_GRADIENTS = (
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "smoothgrad",
    "vargrad",
)
BY_CHANGED_GRADIENTS = ("guided_backprop", "deconvnet", "lrp")
BY_CHANGED_IMAGES = ("scorecam", "iscam", "ablationcam")
OTHERS = ("fullgrad", "guided_gradcam")
ALL = (*AT_LAYER, *BY_GRADIENTS, *BY_CHANGED_GRADIENTS, *BY_CHANGED_IMAGES, *OTHERS)
# Few runs: what holds, holds for any number.
OPTIONS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 6},
    "smoothgrad": {"samples": 4},
    "vargrad": {"samples": 4},
    "smooth_gradcam++": {"samples": 4},
    "iscam": {"steps": 3},
}
SIZE = (8, 12)


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def network(
    seed: int, *, smooth: bool = False, ties: bool = True, symmetric: bool = False
) -> nn.Sequential:
    """Convolutions, BatchNorm, pooling and one linear layer, with all their numbers drawn.

    With rectifiers and a maximum, where two places may be equal (``ties``), or smooth.
    """
    activation = nn.SiLU if smooth else nn.ReLU
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        activation(),
        nn.MaxPool2d(2) if ties and not smooth else nn.AvgPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).double()
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            scale = 0.5 / max(parameter[0].numel(), 1) ** 0.5
            parameter.copy_(2 * scale * draw(seed + 1 + place, *parameter.shape))
        model[1].running_mean.copy_(0.3 * draw(seed + 21, 4))
        model[1].running_var.copy_(0.5 + draw(seed + 22, 4).square())
        if symmetric:
            for conv in (model[0], model[4]):
                w = conv.weight
                w.copy_((w + w.flip(-1) + w.flip(-2) + w.flip(-1, -2)) / 2)
    return model.eval()


def maps(model: nn.Module, images: Tensor, method: str, layer: str = "5") -> Tensor:
    layers = layer if next(m for m in list_methods() if m.name == method).layers else None
    return explain(model, images, method, 1, layers, relu=False, **OPTIONS.get(method, {})).raw


def far(first: Tensor, second: Tensor) -> float:
    """How far two maps are from one another, whatever their scales: 0 the same, 2 opposite."""
    return float(1 - F.cosine_similarity(first.flatten(), second.flatten(), dim=0))


# Completeness.


@EXAMPLES
@given(seed=SEEDS, smooth=st.booleans(), baseline=st.sampled_from([0.0, -0.7, "mean", "blur"]))
def test_integrated_gradients_add_up_to_the_difference_of_scores(
    seed: int, smooth: bool, baseline: float | str
) -> None:
    model, images = network(seed, smooth=smooth), draw(seed, 2, 3, *SIZE)
    # A rectifier's gradient jumps along the way, so that more steps are needed.
    options = {"steps": 50 if smooth else 300, "baseline": baseline}
    found = explain(model, images, "integrated_gradients", [2, 0], **options)
    with torch.no_grad():
        there = model(images) - model(baseline_of(images, baseline))
    expected = there[[0, 1], [2, 0]]
    scale = found.attributions.abs().flatten(1).sum(1).clamp(min=1)
    assert ((found.raw.flatten(1).sum(1) - expected).abs() <= 1e-3 * scale).all()


@EXAMPLES
@given(seed=SEEDS)
def test_hires_cam_and_the_bias_add_up_to_the_score(seed: int) -> None:
    model, images = network(seed), draw(seed, 2, 3, *SIZE)
    for method in ("hirescam", "gradcam", "xgradcam"):
        found = explain(model, images, method, [2, 0], "5", relu=False)
        total = found.raw.flatten(1).sum(1) + model[8].bias[[2, 0]].detach()
        torch.testing.assert_close(total, found.scores)


# Sensitivity.


@EXAMPLES
@given(seed=SEEDS, place=st.integers(0, 3 * 8 * 12 - 1))
def test_one_pixel_that_makes_the_difference_is_given_all_of_it(seed: int, place: int) -> None:
    model, baseline = network(seed, smooth=True), draw(seed, 3, *SIZE)
    image = baseline.clone()
    image.view(-1)[place] += 1.5
    found = explain(model, image, "integrated_gradients", 1, baseline=baseline).attributions[0]
    with torch.no_grad():
        expected = (model(image[None]) - model(baseline[None]))[0, 1]
    assert float(found.view(-1)[place]) == pytest.approx(float(expected), rel=1e-3, abs=1e-9)
    assert int((found != 0).sum()) == 1


def test_where_the_gradient_is_zero_the_path_sees_what_saliency_does_not() -> None:
    class Saturated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([1 - (1 - x).relu(), x], 1).flatten(1)[:, :2]

    image = torch.full((1, 1, 1, 1), 2.0)
    assert explain(Saturated(), image, "saliency", 0).raw.item() == 0
    found = explain(Saturated(), image, "integrated_gradients", 0, steps=100).raw.item()
    assert found == pytest.approx(1, abs=0.02)


class Cropped(nn.Module):
    """Sees the left half of the pictures."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x[..., : SIZE[1] // 2])


@pytest.mark.parametrize("method", [*BY_GRADIENTS, *BY_CHANGED_GRADIENTS])
@FEW
@given(seed=SEEDS)
def test_what_the_network_does_not_see_is_given_nothing(method: str, seed: int) -> None:
    found = maps(Cropped(network(seed)), draw(seed, 2, 3, *SIZE), method)
    assert not found[..., SIZE[1] // 2 :].any()
    assume(found.any())


# Implementation invariance.


class Rewritten(nn.Module):
    """The same function: BatchNorm folded, convolutions as products of matrices, no ReLU module."""

    def __init__(self, twin: nn.Sequential) -> None:
        super().__init__()
        first, norm, _, _, second, _, _, _, linear = twin
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.weights = [first.weight * scale[:, None, None, None], second.weight]
        shift = norm.bias + (first.bias - norm.running_mean) * scale
        self.biases = [shift, second.bias]
        self.features = nn.Identity()
        # A linear layer as a convolution of one position.
        self.head = nn.Conv2d(5, 3, 1).double()
        self.head.weight.data = linear.weight.data[:, :, None, None]
        self.head.bias.data = linear.bias.data

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolved(x, 0).clamp(min=0)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        x = self.features(self.convolved(x, 1) * (self.convolved(x, 1) > 0))
        return self.head(x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]))[:, :, 0, 0]

    def convolved(self, x: Tensor, index: int) -> Tensor:
        patches = F.unfold(x, 3, padding=1)
        made = self.weights[index].flatten(1) @ patches + self.biases[index][:, None]
        return made.unflatten(2, x.shape[2:])


@pytest.mark.parametrize("method", [*AT_LAYER, *BY_GRADIENTS, *BY_CHANGED_IMAGES])
@FEW
@given(seed=SEEDS)
def test_equal_networks_have_equal_maps(method: str, seed: int) -> None:
    model, images = network(seed), draw(seed, 2, 3, *SIZE)
    twin = Rewritten(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(images), model(images))
    found = maps(twin, images, method, "features")
    torch.testing.assert_close(found, maps(model, images, method), rtol=1e-6, atol=1e-9)


# Equivariance.


@pytest.mark.parametrize(
    "method",
    ALL,
)
@FEW
@given(seed=SEEDS, axis=st.sampled_from([(-1,), (-2,), (-1, -2)]))
def test_mirrored_images_have_mirrored_maps(method: str, seed: int, axis: tuple[int, ...]) -> None:
    # Deconvolution goes back through rectifiers that were off, where all of a window is zero: of
    # what is equal there, the first is the maximum, which in the mirror is another.
    model = network(seed, symmetric=True, ties=method != "deconvnet")
    images = draw(seed, 2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(images.flip(axis)), model(images))
    with pytest.MonkeyPatch.context() as patch:
        # Noise that is the same in the mirror, which chance never is.
        noise = draw(seed + 31, 4, 3, *SIZE)
        noise = noise + noise.flip(-1) + noise.flip(-2) + noise.flip(-1, -2)
        patch.setattr(Runner, "noise", lambda _runner, v, _shape=None: noise[v])
        expected = maps(model, images, method).flip(axis)
        found = maps(model, images.flip(axis), method)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# Randomised weights.

BLIND_TO_CLASSES = {"eigencam", "kpcacam"}


@pytest.mark.parametrize(
    "method",
    ALL,
)
def test_other_weights_have_other_maps(method: str) -> None:
    images = draw(0xA0, 1, 3, *SIZE)
    model, other = network(0xA1), network(0xA2)
    found = maps(model, images, method)
    assert found.any()
    assert far(maps(model, images, method), found) == pytest.approx(0, abs=1e-12)
    assert far(maps(other, images, method), found) > 0.05
    # The classifier alone: what looks at classes has to see it.
    with torch.no_grad():
        model[8].weight.copy_(other[8].weight)
    distance = far(maps(model, images, method), found)
    assert distance > 1e-5 if method not in BLIND_TO_CLASSES else distance < 1e-12


@pytest.mark.parametrize(
    "method", ["gradcam", "layercam", "cam", "saliency", "integrated_gradients", "smoothgrad"]
)
def test_a_trained_network_loses_its_maps_with_its_weights(method: str, real_data: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_1

    from fedgaze.models import IMAGENET

    model = squeezenet1_1()
    model.load_state_dict(load_file(real_data / "weights" / "squeezenet1_1_imagenet.safetensors"))
    file = real_data / "photos" / "imagenet" / "n01795545_black_grouse.JPEG"
    picture = IMAGENET.tensor(IMAGENET.view(Image.open(file).convert("RGB")))
    image = F.interpolate(picture[None], (128, 128), mode="bilinear", antialias=True)
    chosen = int(model.eval()(image).argmax())
    options = OPTIONS.get(method, {})
    found = explain(model, image, method, chosen, **options).heatmaps
    torch.manual_seed(0xA3)
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "features.12", "features.11")):
            nn.init.normal_(parameter, 0, float(parameter.detach().std()))
    changed = explain(model, image, method, chosen, **options).heatmaps
    ranks = torch.stack([each.flatten().argsort().argsort() for each in (found, changed)])
    assert float(torch.corrcoef(ranks.double())[0, 1]) < 0.7
