"""What else is in networks: normalisation, residuals, gates, pooling, and what has no rule."""

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from fedgaze.errors import FedgazeError
from fedgaze.xai.rules import COMPOSITES, lrp_rules

Back = Callable[..., Tensor]

BOX = {"low": -3.0, "high": 3.0}


class Modern(nn.Module):
    """Residuals, squeeze and excitation, concatenation, a module used twice; no biases."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(8, 4, 1, bias=False)
        self.wide = nn.Conv2d(4, 8, 1, bias=False)
        self.fc = nn.Linear(16, 3, bias=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        out = self.twice(x).relu_()
        out = self.twice(out)
        out += x
        x = F.relu(out, inplace=True)
        gate = self.wide(F.silu(self.narrow(x.mean((2, 3), keepdim=True))))
        x = torch.cat([x * gate.sigmoid(), F.avg_pool2d(x, 3, 1, 1)], dim=1)
        return self.fc(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1))


def images_of(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-3, 3)


# With alpha 2 and beta 1, a neuron that nothing speaks against gives on twice what it has.
@pytest.mark.parametrize("composite", [name for name in COMPOSITES if "alpha" not in name])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_relevance_is_conserved_where_there_are_no_biases(composite: str, seed: int) -> None:
    model = Modern(seed)
    leaf = images_of(seed, 2, 2, 8, 8).requires_grad_()
    with lrp_rules(composite, epsilon=1e-12, **BOX):
        scores = model(leaf)
        # Scores near zero are small sums of what is far larger.
        score = scores.gather(1, scores.detach().abs().argmax(1, keepdim=True))
        (found,) = torch.autograd.grad(score, leaf, torch.ones_like(score))
    assert torch.equal(scores, model(leaf))
    assert found.sum((1, 2, 3)).tolist() == pytest.approx([1, 1], rel=2e-3)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus_flat"])
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1"])
def test_relevance_is_conserved_in_networks_of_others(name: str, composite: str) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=5).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.zero_()
    leaf = torch.rand(1, 3, 32, 32, requires_grad=True)
    with lrp_rules(composite, epsilon=1e-12):
        score = model(leaf).amax(1)
        (found,) = torch.autograd.grad(score, leaf, torch.ones_like(score))
    assert found.sum().item() == pytest.approx(1, abs=5e-3)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_epsilon_is_input_x_gradient_where_there_are_no_biases(seed: int) -> None:
    # Kindermans et al., "Investigating the influence of noise and distractors", 2016.
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(54, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)),
    ).double()
    leaf = images_of(seed, 1, 2, 8, 8).requires_grad_()
    score = model(leaf)[0, 0]
    (gradient,) = torch.autograd.grad(score, leaf)
    with lrp_rules("epsilon", epsilon=0):
        (found,) = torch.autograd.grad(model(leaf)[0, 0], leaf)
    assert torch.allclose(found * score, leaf * gradient, rtol=1e-6, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), factor=st.floats(-50, 50))
def test_it_is_linear_in_the_relevance_that_begins_and_blind_to_neighbours(
    seed: int, factor: float
) -> None:
    model = Modern(seed)
    leaf = images_of(seed, 3, 2, 6, 6).requires_grad_()
    with lrp_rules("epsilon_alpha2_beta1"):
        scores = model(leaf)[:, 1]
        seeds = torch.tensor([1.0, factor, 0.0], dtype=torch.float64)
        (found,) = torch.autograd.grad(scores, leaf, seeds)
    for n in range(3):
        alone = leaf.detach()[n : n + 1].clone().requires_grad_()
        with lrp_rules("epsilon_alpha2_beta1"):
            (expected,) = torch.autograd.grad(model(alone)[0, 1], alone)
        assert torch.allclose(found[n], expected[0] * seeds[n], rtol=1e-8, atol=1e-12)


def test_a_bias_keeps_its_share(back: Back) -> None:
    # 2 * 3 + 2 = 8, of which the weight explains 6; then relu, then 1 * 8 - 4: twice 3/4.
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    for parameter, value in zip(model.parameters(), (2.0, 2.0, 1.0, -4.0), strict=True):
        nn.init.constant_(parameter, value)
    found = back(model, torch.tensor([[3.0]]), lambda: lrp_rules("epsilon"))
    assert found.item() == pytest.approx(2 * 3 / 4, rel=1e-5)
    separate = back(
        lambda x: (torch.ones(1) * 0 + (x * 1) @ torch.tensor([[2.0]]) + 2).relu() - 4,
        torch.tensor([[3.0]]),
        lambda: lrp_rules("epsilon"),
    )
    assert separate.item() == pytest.approx(2 * 3 / 4, rel=1e-5)


def norm_of(scale: float, shift: float, mean: float, var: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(1, eps=0).eval()
    for tensor, value in (
        (norm.weight, scale), (norm.bias, shift), (norm.running_mean, mean), (norm.running_var, var)
    ):  # fmt: skip
        nn.init.constant_(tensor, value)
    return norm


def test_batch_norm_and_its_convolution_are_one_layer(back: Back) -> None:
    # w = (1, -1) and a scale of -2 / 2 make (-1, 1): now the second channel speaks for the score.
    conv = nn.Conv2d(2, 1, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    model = nn.Sequential(conv, norm_of(-2.0, 1.0, 3.0, 4.0), nn.Flatten())
    x = torch.tensor([5.0, 2.0]).view(1, 2, 1, 1)
    # Merged: -5 + 2 + (0 - 3) * -1 + 1 = 1; z+ = 2 + 4, of which the bias keeps 4.
    assert model(x).item() == 1
    found = back(model, x, lambda: lrp_rules("epsilon_plus"))
    assert found.flatten().tolist() == pytest.approx([0, 2 / 6], abs=1e-6)
    found = back(model, x, lambda: lrp_rules("epsilon"))
    assert found.flatten().tolist() == pytest.approx([-5, 2], rel=1e-5)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6), (2, 4, 6, 6)),
    "no bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), (2, 4, 6, 6)),
    "1-D": (lambda: nn.Conv1d(4, 6, 3), lambda: nn.BatchNorm1d(6), (2, 4, 6)),
    "3-D": (lambda: nn.Conv3d(4, 6, 2), lambda: nn.BatchNorm3d(6), (2, 4, 3, 3, 3)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
        lambda: nn.BatchNorm2d(6),
        (2, 4, 5, 5),
    ),
    "dense": (lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6), (2, 4)),
    "not affine": (lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6, affine=False), (2, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("norms", [1, 2])
def test_merging_is_fusing_by_hand(kind: str, norms: int, back: Back) -> None:
    make, make_norm, shape = LAYERS[kind]
    torch.manual_seed(3)
    layer, after = make().double(), [make_norm().double().eval() for _ in range(norms)]
    fused = copy.deepcopy(layer)
    bias = torch.zeros(6).double() if fused.bias is None else fused.bias.detach()
    weight = fused.weight.detach().clone()
    for norm in after:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        gain = torch.ones(6).double() if norm.weight is None else norm.weight.data.normal_()
        offset = torch.zeros(6).double() if norm.bias is None else norm.bias.data.normal_()
        gain = gain / (norm.running_var + norm.eps).sqrt()
        bias = (bias - norm.running_mean) * gain + offset
        for k in range(6):
            if kind == "transposed":
                group = slice(0, 2) if k < 3 else slice(2, 4)
                weight[group, k % 3] *= gain[k]
            else:
                weight[k] *= gain[k]
    fused.weight.data, fused.bias = weight, nn.Parameter(bias)
    images = images_of(5, *shape)
    once = nn.Sequential(layer, *after, nn.ReLU(), nn.Flatten())
    by_hand = nn.Sequential(fused, nn.ReLU(), nn.Flatten())
    assert torch.allclose(once(images), by_hand(images))
    for composite in ("epsilon", "epsilon_alpha2_beta1", "epsilon_gamma_box"):
        expected = back(by_hand, images, lambda c=composite: lrp_rules(c, **BOX), 2)
        found = back(once, images, lambda c=composite: lrp_rules(c, **BOX), 2)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_the_convolution_itself_may_be_used_beside_its_norm(back: Back) -> None:
    torch.manual_seed(4)
    conv, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3).eval()

    def model(x: Tensor) -> Tensor:
        z = conv(x)
        return (norm(z).relu() + z).mean((2, 3))

    found = back(model, images_of(1, 1, 2, 6, 6).float(), lambda: lrp_rules("epsilon"))
    again = copy.deepcopy(conv)
    twice = back(
        lambda x: (norm(conv(x)).relu() + again(x)).mean((2, 3)),
        images_of(1, 1, 2, 6, 6).float(),
        lambda: lrp_rules("epsilon"),
    )
    assert torch.allclose(found, twice, rtol=1e-4, atol=1e-6)


def test_a_norm_that_stands_alone_is_a_layer_whose_shift_keeps_its_share(back: Back) -> None:
    # y = (x - 0.1) 2 / 2 + 1 = x + 0.9, so that 0.3 gets a quarter of what 1.2 had, and 0 nothing.
    norm, fc = norm_of(2.0, 1.0, 0.1, 4.0), nn.Linear(2, 1, bias=False)
    fc.weight.data = torch.tensor([[1.0, 1.0]])
    x = torch.tensor([0.3, -5.0]).view(1, 1, 1, 2)
    found = back(
        lambda t: fc(norm((1.0 * F.conv2d(t, torch.ones(1, 1, 1, 1))).relu()).flatten(1)),
        x,
        lambda: lrp_rules("epsilon"),
    )
    assert found.flatten().tolist() == pytest.approx([0.25 * 1.2 / 2.1, 0], rel=1e-5)


def test_other_norms_and_those_before_the_first_layer_pass_relevance_on(back: Back) -> None:
    fc = nn.Linear(4, 1, bias=False)
    x = torch.rand(1, 1, 2, 2)
    for norm in (norm_of(2.0, 1.0, 0.1, 4.0), nn.LayerNorm([1, 2, 2]), nn.GroupNorm(1, 1)):
        found = back(lambda t, n=norm: fc(n(t).flatten(1)), x, lambda: lrp_rules("epsilon"))
        with torch.no_grad():
            inner = norm(x)
        expected = back(lambda t: fc(t.flatten(1)), inner, lambda: lrp_rules("epsilon"))
        assert torch.allclose(found, expected, rtol=1e-5)


def test_pixels_outside_the_box_are_refused_where_the_first_layer_gets_them(back: Back) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    images = torch.rand(2, 3, 6, 6)

    def rules() -> Any:
        return lrp_rules("epsilon_gamma_box", low=[0.0] * 3, high=1.0)

    expected = back(model, images, rules)
    assert torch.allclose(back(lambda x: model((x + 1) - 1), images, rules), expected, atol=1e-6)
    with pytest.raises(FedgazeError, match=r"first layer gets values from 0\..* to 2\..*; allowed"):
        back(lambda x: model(3 * x), images, rules)
    with pytest.raises(FedgazeError, match="low is 1 and high is 0; allowed is a low below high"):
        back(model, images, lambda: lrp_rules(first="box", low=1, high=0))


def test_sums_are_shared_by_contribution(back: Back) -> None:
    x = torch.tensor([[3.0, 1.0]])
    cases: list[tuple[Callable[[Tensor], Tensor], list[float]]] = [
        (lambda t: t[:, :1] + t[:, 1:], [3 / 4, 1 / 4]),
        (lambda t: t[:, :1] - t[:, 1:], [3 / 2, -1 / 2]),
        (lambda t: torch.sub(t[:, :1], t[:, 1:], alpha=2), [3.0, -2.0]),
        (lambda t: t[:, :1].clone().add_(t[:, 1:], alpha=3), [3 / 6, 3 / 6]),
        (lambda t: sum([t[:, :1], t[:, 1:]]), [3 / 4, 1 / 4]),
        (lambda t: t.sum(1, keepdim=True), [3 / 4, 1 / 4]),
        (lambda t: t.mean(1, keepdim=True), [3 / 4, 1 / 4]),
        (lambda t: torch.stack([t[:, :1], t[:, 1:]]).sum(0), [3 / 4, 1 / 4]),
        (lambda t: 5 - t[:, :1] * 1.0, [1.0, 0.0]),  # of pixels, units only
        (lambda t: t.amax(1, keepdim=True), [1.0, 0.0]),
        (lambda t: F.avg_pool1d(t[:, None], 2)[:, 0], [3 / 4, 1 / 4]),
        (lambda t: F.interpolate(t[:, None], 1, mode="linear")[:, 0], [3 / 4, 1 / 4]),
        (lambda t: -2 * t[:, :1] / 4, [1.0, 0.0]),
        (lambda t: t[:, :1] * torch.sigmoid(t[:, 1:]), [1.0, 0.0]),
        (lambda t: torch.sigmoid(t[:, 1:]) * t[:, :1], [1.0, 0.0]),
        (lambda t: F.hardsigmoid(t[:, 1:]) * F.relu6(t[:, :1]), [1.0, 0.0]),
        (lambda t: t[:, :1].clone().mul_((F.relu6(t[:, 1:] + 3) / 6).view(-1, 1)), [1.0, 0.0]),
    ]
    for function, expected in cases:
        found = back(function, x, lambda: lrp_rules("epsilon"))
        assert found[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_after_a_layer_constants_keep_their_share(back: Back) -> None:
    eye = torch.eye(1)
    cases: list[tuple[Callable[[Tensor], Tensor], float]] = [
        (lambda z: z + 1, 3 / 4),
        (lambda z: 1 + z, 3 / 4),
        (lambda z: z - 1, 3 / 2),
        (lambda z: 5 - z, -3 / 2),
        (lambda z: torch.rsub(z, 5), -3 / 2),
        (lambda z: z * 7 + torch.tensor([21.0]), 1 / 2),
    ]
    for function, expected in cases:
        found = back(
            lambda t, f=function: f(F.linear(t, eye)),
            torch.tensor([[3.0]]),
            lambda: lrp_rules("epsilon"),
        )
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_what_stands_before_the_first_layer_changes_nothing(back: Back) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    images = torch.rand(2, 3, 6, 6)
    mean, std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    for composite in ("epsilon_plus_flat", "epsilon_alpha2_beta1"):
        rules = lambda c=composite: lrp_rules(c)  # noqa: E731
        expected = back(model, (images - mean) / std, rules)
        found = back(
            lambda x: model(((x - mean) / std).contiguous().flip(0).flip(0)), images, rules
        )
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small", "efficientnet_b0",
                                  "shufflenet_v2_x1_0", "googlenet", "regnet_y_400mf",
                                  "convnext_tiny"])  # fmt: skip
def test_forward_is_the_models_own_and_all_of_torchvisions_cnns_have_rules(
    name: str, unsettle: Callable[..., nn.Module], back: Back
) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    model = unsettle(getattr(torchvision.models, name)(weights=None, num_classes=5, **options))
    images = torch.randn(1, 3, 64, 64)
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(model(x))
        return seen[-1]

    found = back(watched, images, lambda: lrp_rules("epsilon_plus_flat"), 2)
    with torch.no_grad():
        assert torch.equal(seen[0], model(images))
    assert found.isfinite().all()
    assert found.abs().sum() > 0
    # The flat rule gives all colours of a pixel the same.
    assert torch.allclose(found[:, :1].expand_as(found), found)


def test_what_has_no_rule_is_refused_by_name(back: Back) -> None:
    conv = nn.Conv2d(2, 2, 3)
    attention = nn.MultiheadAttention(2, 1, batch_first=True)
    cases: dict[str, Callable[[Tensor], Any]] = {
        "'exp'": lambda z: z.exp(),
        "'softmax'": lambda z: z.softmax(1),
        "'log_softmax'": lambda z: F.log_softmax(z, 1),
        "'pow'": lambda z: z**2,
        "'local_response_norm'|'div'": lambda z: F.local_response_norm(z, 3),
        "'matmul' with weights that depend": lambda z: z @ z.mT,
        "'mul' of two tensors that both depend .* neither a gate": lambda z: z * z,
        "'(div|__rdiv__|__rtruediv__)' by what depends": lambda z: 1 / z,
        "'div' of two tensors": lambda z: z / z.sigmoid(),
        "'conv2d' with weights that depend": lambda z: F.conv2d(z, z),
        "'batch_norm' with the statistics": nn.BatchNorm2d(2),
        "'clamp' with parameters that depend": lambda z: torch.zeros(()).clamp(min=z),
        "'layer_norm' with parameters": lambda z: F.layer_norm(z, z.shape[1:], weight=z[0]),
        "'multi_head_attention_forward'": lambda z: attention(*[z.flatten(2).mT] * 3)[0],
        "'einsum'": lambda z: torch.einsum("nchw,nchw->nc", z, z),
    }
    for message, function in cases.items():
        with pytest.raises(FedgazeError, match=rf"lrp has no rule for ({message})"):
            back(
                lambda x, f=function: f(conv(x)).flatten(1),
                torch.rand(2, 2, 6, 6),
                lrp_rules,
            )
    assert not _get_current_function_mode_stack()


def test_what_has_no_rule_may_run_beside_the_score(back: Back) -> None:
    conv = nn.Conv2d(2, 3, 3)
    images = torch.rand(2, 2, 6, 6)

    def model(x: Tensor) -> Tensor:
        z = conv(x).relu()
        assert bool((z.softmax(1) * z.abs()).isfinite().all())
        return z.mean((2, 3))

    expected = back(lambda x: conv(x).relu().mean((2, 3)), images, lrp_rules)
    assert torch.equal(back(model, images, lrp_rules), expected)


class Foreign(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.sinh()

    @staticmethod
    def backward(_: Any, up: Tensor) -> Tensor:
        return up


def test_what_runs_unseen_is_refused(back: Back) -> None:
    conv = nn.Conv2d(2, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten()))
    cases: dict[str, Callable[[Tensor], Tensor]] = {
        "ConvolutionBackward": scripted,
        "ForeignBackward": lambda x: Foreign.apply(conv(x)).flatten(1),
        "CheckpointFunctionBackward": lambda x: checkpoint(conv, x, use_reentrant=True).flatten(1),
    }
    for name, model in cases.items():
        with pytest.raises(FedgazeError, match=rf"no rule for {name}.*, which a scripted"):
            back(model, torch.rand(1, 2, 6, 6), lrp_rules)
    with pytest.raises(FedgazeError, match="switch its gradient checkpointing off"):
        back(
            lambda x: checkpoint(conv, x, use_reentrant=False).flatten(1),
            torch.rand(1, 2, 6, 6),
            lrp_rules,
        )


def test_hooks_of_the_models_own_are_no_obstacle(back: Back, unsettle: Back) -> None:
    torch.manual_seed(6)
    model = unsettle(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()))
    images = torch.rand(1, 2, 5, 5)
    expected = back(model, images, lrp_rules)
    calls: list[int] = []
    model[0].register_full_backward_hook(lambda *_: calls.append(1))
    model[2].register_full_backward_hook(lambda *_: calls.append(2))
    model[1].register_forward_hook(lambda *_: None)
    assert torch.equal(back(model, images, lrp_rules), expected)
    assert 2 in calls


def test_weights_may_be_computed_and_parameters_frozen(back: Back) -> None:
    torch.manual_seed(7)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    plain = nn.Conv2d(2, 3, 3)
    plain.weight.data, plain.bias.data = conv.weight.data.clone(), conv.bias.data.clone()
    tail = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    images = torch.rand(1, 2, 6, 6)
    expected = back(nn.Sequential(plain, tail), images, lrp_rules)
    model = nn.Sequential(conv, tail)
    assert torch.allclose(back(model, images, lrp_rules), expected, rtol=1e-5, atol=1e-8)
    model.requires_grad_(requires_grad=False)
    assert torch.allclose(back(model, images, lrp_rules), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("change", ["channels_last", "float64", "bfloat16", "autocast", "clones"])
def test_layouts_and_dtypes(change: str, back: Back) -> None:
    model = Modern(3).float()
    images = images_of(3, 2, 2, 8, 8).float()
    expected = back(model, images, lambda: lrp_rules("epsilon_plus"), 1)
    tolerance = 1e-4
    if change == "channels_last":
        found = back(
            model.to(memory_format=torch.channels_last),
            images.to(memory_format=torch.channels_last),
            lambda: lrp_rules("epsilon_plus"),
            1,
        )
    elif change == "float64":
        found = back(model.double(), images.double(), lambda: lrp_rules("epsilon_plus"), 1).float()
    elif change == "clones":
        found = back(lambda x: model(x.clone()).clone(), images, lrp_rules, 1)
    else:
        tolerance = 0.15
        with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
            run = model if change == "autocast" else model.bfloat16()
            given = images if change == "autocast" else images.bfloat16()
            found = back(run, given, lambda: lrp_rules("epsilon_plus"), 1).float()
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_arguments_are_judged() -> None:
    for options, message in (
        ({"composite": "epsilon_plu"}, "'epsilon_plu'; allowed are .* did you mean 'epsilon_plus'"),
        ({"composite": "epsilon_gamma_box"}, "needs low and high"),
        ({"epsilon": -1.0}, "epsilon is -1.0; allowed is 0 and more"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"first": "flatt"}, "first is 'flatt'; allowed are flat, .* did you mean 'flat'"),
        ({"first": "box"}, "needs low and high"),
    ):
        with pytest.raises(FedgazeError, match=message):
            lrp_rules(**options)


def test_the_model_is_as_before(back: Back) -> None:
    model = Modern(2)
    images = images_of(2, 1, 2, 6, 6)
    before = copy.deepcopy(model.state_dict())
    expected = back(model, images, torch.enable_grad)
    back(model, images, lrp_rules)
    with pytest.raises(FedgazeError, match="'exp'"):
        back(lambda x: model(x).exp(), images, lrp_rules)
    with pytest.raises(ZeroDivisionError), lrp_rules():
        _ = model(images.clone().requires_grad_()), 1 / 0
    assert not _get_current_function_mode_stack()
    assert torch.equal(back(model, images, torch.enable_grad), expected)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_nothing_outlives_a_call() -> None:
    model = Modern(4)
    gc.collect()
    gc.disable()  # what only the collector frees would stay
    try:
        images = images_of(4, 1, 2, 6, 6).requires_grad_()
        with lrp_rules("epsilon_gamma_box", **BOX):
            scores = model(images)
            (found,) = torch.autograd.grad(scores[0, 0], images)
        watched = [weakref.ref(each) for each in (images, scores, found, scores.grad_fn)]
        del images, scores, found
        assert [each() for each in watched] == [None] * 4
    finally:
        gc.enable()
