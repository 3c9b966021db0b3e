import copy
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import Deconvolution, GuidedBackprop
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from fedgaze.errors import FedgazeError
from fedgaze.xai.rules import deconvnet, guided

Back = Callable[..., Tensor]
Array = NDArray[np.float64]

RULES = {"guided": guided, "deconvnet": deconvnet}
ORACLES = {"guided": GuidedBackprop, "deconvnet": Deconvolution}


def papers_back(weights: list[Array], x: Array, rule: str, target: int) -> Array:
    """Fig. 1c of Springenberg et al., in float64 loops, for dense layers with ReLU between them."""
    layers = [x]
    for index, w in enumerate(weights):
        out = np.zeros(len(w))
        for j in range(len(w)):
            for i in range(w.shape[1]):
                out[j] += w[j, i] * layers[-1][i]
        layers.append(np.maximum(out, 0) if index < len(weights) - 1 else out)
    up = np.zeros(len(layers[-1]))
    up[target] = 1.0
    for index in range(len(weights) - 1, -1, -1):
        if index < len(weights) - 1:
            f = layers[index + 1]
            for j in range(len(up)):
                forward = f[j] > 0 or rule == "deconvnet"
                up[j] = up[j] if forward and up[j] > 0 else 0.0
        below = np.zeros(weights[index].shape[1])
        for j in range(len(up)):
            for i in range(len(below)):
                below[i] += weights[index][j, i] * up[j]
        up = below
    return up


class Written(nn.Module):
    """A small network, with its ReLUs written in one of the ways that people have."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0xA)
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)
        self.relu = relu
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv1(x)))
        x = F.max_pool2d(x, 2)
        return self.fc(self.relu(self.conv2(x) + x).mean((2, 3)))


def ignore_result(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "functional": F.relu,
    "functional in place": lambda x: F.relu(x, inplace=True),
    "in place, result ignored": ignore_result,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": Tensor.relu,
    "method in place": Tensor.relu_,
    "module in place": nn.ReLU(inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "threshold": nn.Threshold(0.0, 0.0),
    "with a keyword": lambda x: torch.relu(input=x),
    "aten": torch.ops.aten.relu,
    "of a part": lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:].relu()], 1),
    "of a view in place": lambda x: (x[:, 1:].relu_(), x[:, :1].relu_(), x)[2],
    "checkpointed": lambda x: checkpoint(torch.relu, x, use_reentrant=False),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_papers_rule(rule: str, seed: int, back: Back) -> None:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape) for shape in ((12, 5), (14, 12), (3, 14))]
    x = rng.normal(size=5)

    def model(images: Tensor) -> Tensor:
        for w in weights[:-1]:
            images = F.relu(images @ torch.from_numpy(w).T)
        return images @ torch.from_numpy(weights[-1]).T

    found = back(model, torch.from_numpy(x)[None], RULES[rule], 1)
    expected = papers_back(weights, x, rule, 1)
    assert np.abs(expected).max() > 0.1
    assert found[0].numpy() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_by_hand() -> None:
    # Three ReLUs that saw 1, 2 and -3 get 2, -1 and 5 back.
    x = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    up = torch.tensor([2.0, -1.0, 5.0])
    for within, expected in ((guided, [2.0, 0.0, 0.0]), (deconvnet, [2.0, 0.0, 5.0])):
        with within():
            (found,) = torch.autograd.grad(x.relu(), x, up)
        assert found.tolist() == expected


def test_a_ceiling_keeps_its_own_gradient(back: Back) -> None:
    x = torch.tensor([[-1.0, 3.0, 7.0, 3.0]])
    weights = torch.tensor([2.0, 2.0, 2.0, -2.0])
    for act in (nn.ReLU6(), F.relu6, lambda t: t.clamp(0, 6)):
        found = back(lambda t, act=act: (act(t) * weights).sum(1, keepdim=True), x, guided)
        assert found.tolist() == [[0.0, 2.0, 0.0, 0.0]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WRITTEN)
def test_every_way_to_write_a_relu_is_the_same(rule: str, way: str, back: Back) -> None:
    images = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ORACLES[rule](Written(nn.ReLU())).attribute(images, target=1)
    plain = back(Written(nn.ReLU()), images, torch.enable_grad, 1)
    found = back(Written(WRITTEN[way]), images, RULES[rule], 1)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(found, plain, rtol=1e-2)


@pytest.mark.parametrize("rule", RULES)
def test_captum_agrees_on_modules(rule: str, back: Back, unsettle: Back) -> None:
    torch.manual_seed(0)
    model = unsettle(torchvision.models.resnet18(weights=None, num_classes=7))
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    images, classes = torch.randn(2, 3, 64, 64), torch.tensor([1, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ORACLES[rule](model).attribute(images, target=classes)
    found = back(model, images, RULES[rule], classes)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_pytorch_grad_cam_agrees_on_modules(back: Back, unsettle: Back) -> None:
    torch.manual_seed(2)
    model = unsettle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                                   nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
                                   nn.Linear(8 * 64, 5)))  # fmt: skip
    image = torch.randn(1, 3, 12, 12)
    found = back(model, image, guided, 4)[0].movedim(0, 2)
    theirs = GuidedBackpropReLUModel(copy.deepcopy(model), "cpu")
    assert torch.allclose(found, torch.from_numpy(theirs(image, 4)), rtol=1e-4, atol=1e-7)


def test_captum_misses_functional_relus_and_we_do_not(back: Back) -> None:
    torch.manual_seed(1)
    model = torchvision.models.densenet121(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    images = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = GuidedBackprop(model).attribute(images, target=3)
        # With its last ReLU as a module Captum sees all of them.
        rewritten = nn.Sequential(
            model.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier
        )
        expected = GuidedBackprop(rewritten).attribute(images, target=3)
    found = back(model, images, guided, 3)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (found - theirs).abs().max() > 1e-2 * expected.abs().max()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_neighbours_do_not_matter_and_the_forward_pass_is_the_models(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = Written(F.relu).double()
    images = torch.rand(3, 2, 6, 6, generator=generator, dtype=torch.float64)
    leaf = images.clone().requires_grad_()
    with guided():
        scores = model(leaf)
        (together,) = torch.autograd.grad(scores[torch.arange(3), torch.arange(3)].sum(), leaf)
    assert torch.equal(scores, model(images))
    for n in range(3):
        alone = images[n : n + 1].clone().requires_grad_()
        with guided():
            (found,) = torch.autograd.grad(model(alone)[0, n], alone)
        assert torch.allclose(found[0], together[n], rtol=1e-10, atol=1e-14)


def test_maps_can_be_differentiated() -> None:
    w = torch.tensor([2.0, -1.0], requires_grad=True)
    x = torch.tensor([1.0, 1.0], requires_grad=True)
    with guided():
        (found,) = torch.autograd.grad((x.relu() * w * w).sum(), x, create_graph=True)
        found.sum().backward()
    assert w.grad.tolist() == [4.0, -2.0]


@pytest.mark.parametrize("rule", RULES)
def test_models_without_relu_are_refused_by_what_they_have(rule: str, back: Back) -> None:
    images = torch.randn(1, 3, 8, 8)
    for act, name in ((nn.GELU(), "gelu"), (nn.SiLU(inplace=True), "silu"), (nn.Tanh(), "tanh")):
        model = nn.Sequential(nn.Conv2d(3, 2, 3), act, nn.Flatten(), nn.Linear(72, 2))
        with pytest.raises(FedgazeError, match=rf"ReLUs, .* are: {name}; allowed are .* saliency"):
            back(model, images, RULES[rule])


def test_smooth_activations_beside_relus_are_pointed_out(back: Back) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Hardswish(), nn.Flatten())
    with pytest.warns(UserWarning, match="hardswish keep their plain gradient"):
        back(model, torch.randn(1, 3, 8, 8), guided)


@pytest.mark.parametrize("rule", RULES)
def test_relus_that_cannot_be_reached_are_refused(rule: str, back: Back) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()))
    for hidden in (
        scripted,
        lambda x: checkpoint(lambda t: t.relu().flatten(1), x, use_reentrant=True),
    ):
        with pytest.raises(FedgazeError, match="cannot reach a ReLU in a scripted or checkpointed"):
            back(
                lambda x, hidden=hidden: hidden(x.relu()) * 2, torch.randn(1, 3, 8, 8), RULES[rule]
            )


def test_nothing_is_left_behind_after_an_exception() -> None:
    model = Written(nn.ReLU(inplace=True))
    images = torch.rand(1, 2, 8, 8)
    before = copy.deepcopy(model.state_dict())
    plain = images.clone().requires_grad_()
    expected = torch.autograd.grad(model(plain)[0, 0], plain)[0]
    with pytest.raises(ZeroDivisionError), guided():
        _ = model(images.clone().requires_grad_()), 1 / 0
    assert not _get_current_function_mode_stack()
    again = images.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(model(again)[0, 0], again)[0], expected)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_other_threads_do_not_notice() -> None:
    found: list[Tensor] = []

    def elsewhere() -> None:
        x = torch.tensor([1.0, 1.0], requires_grad=True)
        found.extend(torch.autograd.grad(x.relu(), x, torch.tensor([-1.0, 1.0])))

    with guided():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        torch.ones(1, requires_grad=True).relu()
    assert found[0].tolist() == [-1.0, 1.0]
