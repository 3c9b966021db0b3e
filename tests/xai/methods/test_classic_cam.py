"""The original CAM through `explain`: where it is found, what it is, and where it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import contrast, explain

MakeCNN = Callable[..., nn.Module]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def lively(model: nn.Module) -> nn.Module:
    """In double precision, with biases and statistics that are not those of a new model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
        if isinstance(module, nn.BatchNorm2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.3)
    return model.double().eval()


def build(name: str) -> nn.Module:
    from torchvision.models import get_model

    torch.manual_seed(0xCA)
    return lively(get_model(name, weights=None, num_classes=7))


# What is pooled, and the classifier, by model.
HEADS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "resnet18": (lambda m, x: nn.Sequential(*list(m.children())[:-2])(x), "fc"),
    "mobilenet_v2": (lambda m, x: m.features(x), "classifier.1"),
    "densenet121": (lambda m, x: m.features(x).relu(), "classifier"),
    "shufflenet_v2_x0_5": (lambda m, x: nn.Sequential(*list(m.children())[:-1])(x), "fc"),
    "efficientnet_b0": (lambda m, x: m.features(x), "classifier.1"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_found_and_maps_are_the_papers_equation(name: str) -> None:
    model, images = build(name), draw(0xC0, 2, 3, 64, 96)
    found = explain(model, images, "cam", [4, 2])
    pooled, head = HEADS[name]
    with torch.no_grad():
        features = pooled(model, images).numpy()
    linear = model.get_submodule(head)
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    for row, chosen in enumerate([4, 2]):
        expected = np.zeros(features.shape[2:])
        for k in range(features.shape[1]):
            expected += weight[chosen, k] * features[row, k]
        peak = np.abs(expected).max()
        assert found.raw[row].numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9 * peak)
        # Global average pooling and the linear layer change places: the mean is the logit.
        assert expected.mean() + bias[chosen] == pytest.approx(float(found.scores[row]), rel=1e-6)


def test_where_maps_of_classes_are_pooled_they_are_the_maps() -> None:
    model, images = build("squeezenet1_1"), draw(0xC1, 2, 3, 64, 64)
    found = explain(model, images, "cam", [4, 2])
    with torch.no_grad():
        maps = model.classifier[:3](model.features(images))
    torch.testing.assert_close(found.raw, maps[[0, 1], [4, 2]])
    logits = F.adaptive_avg_pool2d(maps, 1)[[0, 1], [4, 2], 0, 0]
    torch.testing.assert_close(found.raw.mean((1, 2)), logits)


def test_a_case_worked_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
        model[3].weight.copy_(torch.tensor([[3.0, 1.0], [0.5, 0.0]]))
    image = torch.tensor([[[[1.0, 0.0], [2.0, -1.0]]]])
    # Of the first class 3 x - 2 x = x, of the second x / 2.
    assert explain(model, image, "cam", 0, layers="0").raw.tolist() == [[[1, 0], [2, -1]]]
    assert explain(model, image, "cam", 1, layers="0").raw.tolist() == [[[0.5, 0], [1, -0.5]]]


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_grad_cam_and_hires_cam_are_the_same_map_there(name: str, method: str) -> None:
    model, images = build(name), draw(0xC2, 2, 3, 64, 96)
    found = explain(model, images, "cam", [4, 2])
    other = explain(model, images, method, [4, 2], layers=found.layers, relu=False).raw
    # Their gradients are w / Z.
    torch.testing.assert_close(other * found.raw[0].numel(), found.raw)


def test_real_weights_on_real_photographs_are_those_of_torchcam(real_data: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file
    from torchcam.methods import CAM
    from torchvision.models import mobilenet_v2

    from fedgaze.models import IMAGENET

    model = mobilenet_v2()
    # Half precision in the file; the model's own parameters stay float32.
    model.load_state_dict(
        load_file(real_data / "weights" / "mobilenet_v2_imagenet_fp16.safetensors")
    )
    model.eval()
    files = sorted((real_data / "photos" / "imagenet").glob("*.JPEG"))[:2]
    images = torch.stack(
        [IMAGENET.tensor(IMAGENET.view(Image.open(file).convert("RGB"))) for file in files]
    )
    found = explain(model, images, "cam")
    with CAM(model, target_layer="features", fc_layer="classifier.1") as extractor:
        scores = model(images)
        (expected,) = extractor(found.targets.tolist(), scores, normalized=False)
    torch.testing.assert_close(found.raw, expected, rtol=1e-4, atol=1e-4)


# What it finds out.


class TwoHeads(nn.Module):
    """A classifier beside another of the same shape, which is not what answers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.auxiliary = nn.Linear(6, 4)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def two_heads() -> nn.Module:
    torch.manual_seed(0xC3)
    return TwoHeads().double()


def test_the_head_is_the_one_that_makes_the_logits(two_heads: nn.Module) -> None:
    images = draw(0xC4, 2, 3, 5, 6)
    found = explain(two_heads, images, "cam", [3, 1])
    features = two_heads.features(images)
    expected = torch.einsum("nk,nkhw->nhw", two_heads.head.weight[[3, 1]], features)
    torch.testing.assert_close(found.raw, expected.detach())


@pytest.mark.parametrize("size", [(7, 6, 5), (9, 8)])
def test_a_convolution_of_one_position_is_a_linear_layer(size: tuple[int, ...]) -> None:
    torch.manual_seed(0xC5)
    conv, pool = (
        (nn.Conv3d, nn.AdaptiveAvgPool3d) if len(size) == 3 else (nn.Conv2d, nn.AdaptiveAvgPool2d)
    )
    model = nn.Sequential(conv(2, 6, 3), nn.ReLU(), pool(1), conv(6, 4, 1), nn.Flatten()).double()
    images = draw(0xC6, 2, 2, *size)
    found = explain(model, images, "cam", [3, 1], layers="1")
    features = model[:2](images)
    expected = torch.einsum("nk,nk...->n...", model[3].weight[[3, 1]].flatten(1), features)
    torch.testing.assert_close(found.raw, expected.detach())


def test_contrasts_and_several_targets_are_sums_of_maps(two_heads: nn.Module) -> None:
    images = draw(0xC7, 2, 3, 5, 6)
    maps = [explain(two_heads, images, "cam", each).raw for each in range(3)]
    between = explain(two_heads, images, "cam", contrast(2, 0)).raw
    torch.testing.assert_close(between, maps[2] - maps[0])
    several = explain(two_heads, images, "cam", [[0, 1], [2, 0]]).raw
    expected = torch.stack([maps[0][0], maps[1][0], maps[2][1], maps[0][1]])
    torch.testing.assert_close(several, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_change_nothing(make_cnn: MakeCNN, batch_size: int) -> None:
    model, images = make_cnn(1), draw(0xC8, 5, 3, 12, 12).float()
    expected = explain(model, images, "cam", layers="relu")
    found = explain(model, images, "cam", layers="relu", batch_size=batch_size)
    torch.testing.assert_close(found.raw, expected.raw)


def test_maps_can_be_trained_with(two_heads: nn.Module) -> None:
    images = draw(0xC9, 2, 3, 5, 6)
    raw = explain(two_heads, images, "cam", 1, differentiable=True).raw
    raw.square().sum().backward()
    features = two_heads.features(images)
    maps = torch.einsum("k,nkhw->nhw", two_heads.head.weight[1], features)
    expected = torch.autograd.grad(maps.square().sum(), two_heads.features[0].weight)[0]
    torch.testing.assert_close(two_heads.features[0].weight.grad, expected)
    assert two_heads.head.weight.grad is not None


# What it refuses, and why.


class Head(nn.Module):
    def __init__(self, head: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.parts = nn.ModuleList(parts)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def refused() -> dict[str, nn.Module]:
    torch.manual_seed(0xCB)
    one, other = nn.Linear(6, 6), nn.Linear(6, 6)
    wide = nn.Linear(6 * 36, 6)
    return {
        "two layers": Head(lambda x: other(one(x.mean((2, 3))).relu()), one, other),
        "maximum": Head(lambda x: one(x.amax((2, 3))), one),
        "flattened": Head(lambda x: wide(x.flatten(1)), wide),
        "curved": Head(lambda x: one(F.gelu(x.mean((2, 3)))), one),
        "squared": Head(lambda x: one(x.mean((2, 3))) ** 2, one),
    }


@pytest.mark.parametrize("name", refused())
def test_other_networks_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(FedgazeError) as caught:
        explain(refused()[name], draw(0xCC, 2, 3, 8, 8).float(), "cam", layers="features")
    assert str(caught.value) == (
        "cam needs a network that ends in global average pooling and one linear layer: none in "
        "Head makes the logits of the means of the 6 channels of 'features'; use gradcam, or "
        "another layer"
    )


def test_a_layer_that_is_not_the_last_is_refused(make_cnn: MakeCNN) -> None:
    with pytest.raises(FedgazeError, match="of the 6 channels of 'conv1'"):
        explain(make_cnn(), torch.rand(1, 3, 8, 8), "cam", layers="conv1")
    # Of the last convolution, what BatchNorm makes is pooled, not what it gives itself.
    with pytest.raises(FedgazeError, match="of the 8 channels of 'conv2'"):
        explain(make_cnn(), torch.rand(1, 3, 8, 8), "cam", layers="conv2")


@pytest.mark.parametrize(
    "target",
    [
        lambda logits: logits.softmax(1)[:, 1],
        lambda logits: logits[:, 1] ** 2,
        lambda logits: logits.detach()[:, 1],
    ],
)
def test_scores_that_are_no_sums_of_logits_are_refused(two_heads: nn.Module, target: Any) -> None:
    with pytest.raises(FedgazeError, match="cam explains logits of classes, and weighted sums"):
        explain(two_heads, draw(0xCD, 2, 3, 5, 6), "cam", target)
