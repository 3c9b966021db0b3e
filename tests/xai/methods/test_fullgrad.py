"""FullGrad: what it adds up is the score, and how that becomes a map."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain
from fedgaze.xai.classes import read_targets
from fedgaze.xai.inputs import read_inputs
from fedgaze.xai.memory import Budget
from fedgaze.xai.methods.fullgrad import full_gradients
from fedgaze.xai.runner import Runner
from fedgaze.xai.targets import Scorer

Array = NDArray[np.float64]
MakeCNN = Callable[..., nn.Module]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def total(term: Tensor) -> Tensor:
    return term.flatten(1).sum(1)


def parts(model: nn.Module, images: Tensor, targets: object) -> tuple[Tensor, Tensor, Tensor]:
    """The image's part of each score ``(N, S)``, that of all biases, and the scores."""
    inputs = read_inputs(model, images)
    scorer = Scorer(read_targets(targets, len(images)), torch.arange(len(images)))
    with Runner(model, inputs, scorer, {}, Budget()) as runner:
        gradients, biases = full_gradients(runner, total)
        products = gradients * runner.images[:, None]
        return products.flatten(2).sum(2), biases, runner.clean


# Completeness: the paper's Proposition 2, with the biases of Section 3.2.


class Everything(nn.Module):
    """Biases of each kind, once with a layer used twice, once called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.tokens = nn.Linear(3, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.plain(self.again(x)))
        x = x + self.relu(self.again(x))
        x = F.leaky_relu(self.up(F.max_pool2d(x, 2)), 0.1)
        x = F.conv2d(x, weight=torch.ones(3, 1, 1, 1).double(), bias=self.head.bias, groups=3)
        x = F.relu(self.tokens(x.flatten(2).transpose(1, 2)))
        return self.head(x.mean(1))


def everything() -> nn.Module:
    torch.manual_seed(0xF0)
    model = Everything().double()
    for norm in (model.norm, model.plain):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return model


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_parts_add_up_to_the_score(mode: str) -> None:
    model, images = everything().train(mode == "train"), draw(0xF1, 3, 2, 8, 6)
    of_image, of_biases, scores = parts(model, images, [[0, 2], [1, 0], [2, 1]])
    torch.testing.assert_close(of_image + of_biases, scores)
    # Neither is all of it.
    assert of_biases.abs().mean() > 0.1
    assert of_image.abs().mean() > 0.1


def test_without_batch_norms_bias_a_part_is_missing(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(1).double(), draw(0xF2, 2, 3, 8, 8)
    of_image, of_biases, scores = parts(model, images, [1, 2])
    torch.testing.assert_close(of_image + of_biases, scores)
    # What the statistics add is a part of it: beta alone would not do.
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.running_mean.zero_()
    changed_image, changed_biases, changed = parts(model, images, [1, 2])
    torch.testing.assert_close(changed_image + changed_biases, changed)
    assert (changed - scores).abs().min() > 1e-3


def test_a_network_without_biases_gives_all_to_the_image() -> None:
    torch.manual_seed(0xF3)
    layers = nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2, bias=False)
    of_image, of_biases, scores = parts(nn.Sequential(*layers).double(), draw(0xF4, 2, 2, 6, 6), 1)
    torch.testing.assert_close(of_image, scores)
    assert not of_biases.any()


def test_real_weights_add_up(real_data: Path) -> None:
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_1

    model = squeezenet1_1()
    model.load_state_dict(load_file(real_data / "weights" / "squeezenet1_1_imagenet.safetensors"))
    of_image, of_biases, scores = parts(model.double(), draw(0xF5, 2, 3, 96, 96), None)
    torch.testing.assert_close(of_image + of_biases, scores)


def test_saturated_activations_leave_a_part_out() -> None:
    # ReLU6 of 7 is 6, with no gradient: the docstring says that activations' own biases are out.
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU6(), nn.Flatten())
    nn.init.constant_(model[0].weight, 7.0)
    of_image, of_biases, scores = parts(model, torch.tensor([[[[1.0]]]]), 0)
    assert (of_image.item(), of_biases.item(), scores.item()) == (0.0, 0.0, 6.0)


# The map.


def by_hand() -> nn.Sequential:
    """``sum relu(2 x + (1, -1))``: two channels of which the second is off where x < 1/2."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.copy_(torch.tensor([1.0, -1.0]))
        model[3].weight.fill_(1.0)
        model[3].bias.fill_(5.0)
    return model


def test_a_case_worked_by_hand() -> None:
    image = torch.tensor([[[[0.0, 0.25], [1.0, 3.0]]]])
    # x dS/dx: 0, 0.5, 4, 12. Of the biases: 1 everywhere, which is flat and so becomes zero, and
    # 1 where the second channel is on. The bias of the linear layer has no place.
    scaled = np.array([[0.0, 0.5 / 12], [4 / 12, 1.0]]) + np.array([[0.0, 0.0], [1.0, 1.0]])
    found = explain(by_hand(), image, "fullgrad", 0).raw
    assert found[0].numpy() == pytest.approx(scaled, rel=1e-6)
    # Of the layer as a whole, the second channel's zeros are the least.
    layer = explain(by_hand(), image, "fullgrad", 0, rescale="layer").raw
    assert layer[0].numpy() == pytest.approx(scaled + 1, rel=1e-6)


def bilinear(map_: Array, size: tuple[int, int]) -> Array:
    """Upsampling with the centres of pixels half a pixel from the border."""
    out = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * map_.shape[0] / size[0] - 0.5, 0)
            x = max((j + 0.5) * map_.shape[1] / size[1] - 0.5, 0)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, map_.shape[0] - 1), min(x0 + 1, map_.shape[1] - 1)
            a, b = y - y0, x - x0
            above = (1 - b) * map_[y0, x0] + b * map_[y0, x1]
            below = (1 - b) * map_[y1, x0] + b * map_[y1, x1]
            out[i, j] = (1 - a) * above + a * below
    return out


def psi(term: Array, size: tuple[int, int], rescale: str) -> Array:
    """Of one image's ``(K, h, w)``."""
    term = np.abs(term)
    total = np.zeros(size)
    for channel in term:
        of = channel if rescale == "channel" else term
        spread = of.max() - of.min()
        total += bilinear((channel - of.min()) / (spread if spread > 0 else 1), size)
    return total


@pytest.mark.parametrize("rescale", ["channel", "layer"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_maps_are_the_papers_formula(
    rescale: str, batch_size: int | None, make_cnn: MakeCNN
) -> None:
    model, images, classes = make_cnn(2).double(), draw(0xF6, 2, 3, 8, 6), [3, 1]
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        output.retain_grad()
        kept[module] = output
        return output.clone()

    layers = [model.conv1, model.bn1, model.conv2, model.bn2]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    leaf = images.clone().requires_grad_()
    model(leaf)[[0, 1], classes].sum().backward()
    for handle in handles:
        handle.remove()
    found = explain(model, images, "fullgrad", classes, batch_size=batch_size, rescale=rescale).raw
    for row in range(2):
        expected = psi((leaf.grad * leaf)[row].detach().numpy(), (8, 6), rescale)
        for layer in layers:
            bias = layer.bias
            if isinstance(layer, nn.BatchNorm2d):
                scale = layer.weight / (layer.running_var + layer.eps).sqrt()
                bias = bias - layer.running_mean * scale
            term = kept[layer].grad[row] * bias[:, None, None]
            expected += psi(term.detach().numpy(), (8, 6), rescale)
        assert found[row].numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_maps_are_those_of_pytorch_grad_cam(make_cnn: MakeCNN) -> None:
    from pytorch_grad_cam import FullGrad
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images, classes = make_cnn(3), draw(0xF7, 2, 3, 16, 12).float(), [3, 1]
    # Their numbers are scaled by the maximum plus 1e-7: large ones, so that it does not count.
    with torch.no_grad():
        model.fc.weight.mul_(1000)
    theirs = FullGrad(model, [])
    expected = theirs(images, [ClassifierOutputTarget(each) for each in classes])
    raw = explain(model, images, "fullgrad", classes).raw.flatten(1)
    least = raw.amin(1, keepdim=True)
    found = ((raw - least) / (raw.amax(1, keepdim=True) - least)).view_as(torch.tensor(expected))
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_functions_count_where_pytorch_grad_cam_sees_modules_only() -> None:
    class AsFunctions(nn.Module):
        def __init__(self, twin: nn.Sequential) -> None:
            super().__init__()
            self.twin = [twin]

        def forward(self, x: Tensor) -> Tensor:
            conv, _, _, linear = self.twin[0]
            x = F.conv2d(x, conv.weight, bias=conv.bias).relu()
            return F.linear(x.flatten(1), linear.weight, linear.bias)

    image = draw(0xF8, 2, 1, 2, 2).float()
    expected = explain(by_hand(), image, "fullgrad", 0).raw
    assert torch.equal(explain(AsFunctions(by_hand()), image, "fullgrad", 0).raw, expected)


def test_volumes_are_explained_as_images_are() -> None:
    torch.manual_seed(0xF9)
    layers = nn.Conv3d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(360, 2)
    model, volumes = nn.Sequential(*layers).double(), draw(0xFA, 2, 2, 4, 5, 6)
    of_image, of_biases, scores = parts(model, volumes, 1)
    torch.testing.assert_close(of_image + of_biases, scores)
    found = explain(model, volumes, "fullgrad", 1).raw
    assert found.shape == (2, 4, 5, 6)
    assert (found.flatten(1).amax(1) > 0).all()


# What is asked for and what cannot be had.


def test_the_model_is_left_as_it_was(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(4).train(), draw(0xFB, 2, 3, 8, 8).float()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    explain(model, images, "fullgrad")
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_several_targets_are_those_one_by_one() -> None:
    model, images = everything(), draw(0xFC, 2, 2, 8, 6)
    several = explain(model, images, "fullgrad", [[0, 2], [1, 0]]).raw
    first = explain(model, images, "fullgrad", [0, 1]).raw
    second = explain(model, images, "fullgrad", [2, 0]).raw
    torch.testing.assert_close(several, torch.stack([first, second], 1).flatten(0, 1))


@pytest.mark.parametrize(
    ("option", "message"),
    [("chanel", "rescale is 'chanel'; allowed are channel, layer; did you mean 'channel'")],
)
def test_options_that_cannot_be_used(make_cnn: MakeCNN, option: str, message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(make_cnn(), torch.rand(1, 3, 8, 8), "fullgrad", rescale=option)


def test_batch_norm_of_the_batch_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(FedgazeError, match="fullgrad needs BatchNorm with statistics of its own"):
        explain(model, torch.rand(2, 3, 4, 4), "fullgrad", lambda out: out.flatten(1).sum(1))


def test_float16_is_refused(make_cnn: MakeCNN) -> None:
    with pytest.raises(FedgazeError, match="float16 are too small"):
        explain(make_cnn().half(), torch.rand(1, 3, 8, 8), "fullgrad")


def test_bfloat16_is_near(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(5), draw(0xFD, 2, 3, 16, 16).float()
    expected = explain(model, images, "fullgrad", 1).raw
    found = explain(model.bfloat16(), images, "fullgrad", 1).raw
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.1
