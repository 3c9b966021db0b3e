"""Weights of channels and of single activations, and the maps that they make."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.baseline import random_map
from fedgaze.xai.methods.cam import (
    cam_weights,
    grad_cam,
    grad_cam_plus_plus,
    grad_cam_plus_plus_weights,
    grad_cam_weights,
    weighted,
    x_grad_cam_weights,
)
from fedgaze.xai.methods.elementwise import (
    elementwise_weights,
    hires_cam_weights,
    layer_cam_weights,
)

Array = NDArray[np.float64]
Weights = Callable[[Tensor, Tensor], Tensor]

ALL = [
    grad_cam_weights,
    grad_cam_plus_plus_weights,
    x_grad_cam_weights,
    hires_cam_weights,
    layer_cam_weights,
    elementwise_weights,
]
SHAPES = [(2, 5, 7), (2, 5, 4, 3), (1, 3, 2, 3, 4)]


def pair(seed: int, *shape: int, sparse: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(shape, generator=generator, dtype=torch.float64).relu()
    gradients = torch.randn(shape, generator=generator, dtype=torch.float64)
    if sparse:
        gradients *= torch.rand(shape, generator=generator) < 0.5
    return activations, gradients


# The papers' formulas, letter for letter, in float64 loops over images, channels and positions.


def loop(activations: Tensor, gradients: Tensor, channel: Callable[[Array, Array], Array]) -> Array:
    """Sum over channels what the formula makes of one of them, ``(P,)`` of A and of g."""
    a, g = activations.flatten(2).numpy(), gradients.flatten(2).numpy()
    maps = np.zeros((a.shape[0], a.shape[2]))
    for n in range(a.shape[0]):
        for k in range(a.shape[1]):
            maps[n] += channel(a[n, k], g[n, k])
    return maps.reshape(len(maps), *activations.shape[2:])


def paper_grad_cam(a: Array, g: Array) -> Array:
    mean = 0.0
    for value in g:
        mean += float(value) / len(g)
    return mean * a


def paper_x_grad_cam(a: Array, g: Array) -> Array:
    weight = 0.0
    for i in range(len(a)):
        weight += float(a[i]) / float(a.sum()) * float(g[i]) if a.sum() != 0 else 0.0
    return weight * a


def paper_hires_cam(a: Array, g: Array) -> Array:
    return np.array([float(g[i]) * float(a[i]) for i in range(len(a))])


def paper_layer_cam(a: Array, g: Array) -> Array:
    return np.array([max(float(g[i]), 0.0) * float(a[i]) for i in range(len(a))])


def paper_elementwise(a: Array, g: Array) -> Array:
    return np.array([max(float(g[i]) * float(a[i]), 0.0) for i in range(len(a))])


def paper_grad_cam_plus_plus(a: Array, g: Array, score: float = 0.0) -> Array:
    """Eq. 5, 10 and 19 with Y = exp(S), without the factor exp(S) that remains."""
    y = math.exp(score)
    weight = 0.0
    for gradient in g:
        first, second, third = y * gradient, y * gradient**2, y * gradient**3
        total = 0.0
        for activation in a:
            total += float(activation) * third
        alpha = second / (2 * second + total) if second != 0 else 0.0
        weight += alpha * max(first, 0.0)
    return weight / y * a


PAPERS = [
    (grad_cam_weights, paper_grad_cam),
    (grad_cam_plus_plus_weights, paper_grad_cam_plus_plus),
    (x_grad_cam_weights, paper_x_grad_cam),
    (hires_cam_weights, paper_hires_cam),
    (layer_cam_weights, paper_layer_cam),
    (elementwise_weights, paper_elementwise),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("weights", "paper"), PAPERS)
def test_weights_are_the_papers_formula(
    weights: Weights, paper: Callable[[Array, Array], Array], sparse: bool, shape: tuple[int, ...]
) -> None:
    activations, gradients = pair(0xA1, *shape, sparse=sparse)
    activations[:, 1] = 0  # a dead channel
    expected = loop(activations, gradients, paper)
    found = weighted(activations, weights(activations, gradients), relu=False)
    assert found.numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("score", [0.7, -1.3])
def test_grad_cam_plus_plus_does_not_depend_on_the_score(score: float) -> None:
    activations, gradients = pair(0xA1, 2, 5, 4, 3)
    expected = loop(activations, gradients, lambda a, g: paper_grad_cam_plus_plus(a, g, score))
    found = grad_cam_plus_plus(activations, gradients, relu=False)
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


def test_grad_cam_plus_plus_keeps_its_weights_where_gradients_are_tiny() -> None:
    # An epsilon beside g² would change these weights by orders of magnitude.
    activations, gradients = pair(0xA2, 1, 3, 4, 4)
    gradients *= 1e-7
    expected = np.maximum(loop(activations, gradients, paper_grad_cam_plus_plus), 0)
    found = grad_cam_plus_plus(activations, gradients)
    assert found.numpy() == pytest.approx(expected, rel=1e-9, abs=0)


def test_grad_cam_plus_plus_survives_a_denominator_of_zero() -> None:
    # 2 + g sum(A) = 2 + 1 * -2: the paper's fraction has no value there, and counts as zero.
    activations = torch.tensor([[[[-3.0, 1.0]]]], requires_grad=True)
    gradients = torch.tensor([[[[1.0, 0.5]]]], requires_grad=True)
    found = grad_cam_plus_plus(activations, gradients)
    assert found.tolist() == [[[0.0, 0.5]]]  # alpha = 1 / (2 - 1) at the second position
    for each in torch.autograd.grad(found.sum(), [activations, gradients]):
        assert each.isfinite().all()


def test_x_grad_cam_keeps_the_weights_of_faint_channels() -> None:
    # An epsilon of 1e-7 in the denominator would halve them.
    activations = torch.tensor([[[1e-7, 0.0, 0.0]]], dtype=torch.float64)
    gradients = torch.tensor([[[3.0, 1.0, -1.0]]], dtype=torch.float64)
    assert x_grad_cam_weights(activations, gradients).item() == pytest.approx(3.0)


def test_x_grad_cam_gives_channels_that_sum_to_zero_nothing() -> None:
    activations = torch.tensor([[[1.0, -1.0], [0.0, 0.0]]], requires_grad=True)
    weights = x_grad_cam_weights(activations, torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    assert weights.flatten().tolist() == [0.0, 0.0]
    (back,) = torch.autograd.grad(weights.sum(), activations)
    assert back.isfinite().all()


# By hand.


def test_grad_cam_by_hand() -> None:
    activations = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]], [[5.0, 0.0], [1.0, 0.0]]]])
    gradients = torch.tensor([[[[1.0, 1.0], [2.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]]]])
    # weights 1 and -1/4: 1 - 1.25 < 0 | 2 | -0.25 < 0 | 4
    assert grad_cam(activations, gradients).tolist() == [[[0.0, 2.0], [0.0, 4.0]]]
    signed = grad_cam(activations, gradients, relu=False)
    assert signed.tolist() == [[[-0.25, 2.0], [-0.25, 4.0]]]


def test_grad_cam_plus_plus_by_hand() -> None:
    # sum A = 3: g = 1 -> 1/5, g = 0 and g < 0 -> 0; the weight is 1/5.
    found = grad_cam_plus_plus(
        torch.tensor([[[[0.0, 1.0, 2.0]]]]), torch.tensor([[[[1.0, 0.0, -4.0]]]])
    )
    assert found.flatten().tolist() == pytest.approx([0.0, 0.2, 0.4])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # weights (4 - 1) / 3 = 1 and (1 + 1) / 1.5 = 4/3: 2 + 4/3 | 1 + 2/3
        (x_grad_cam_weights, [10 / 3, 5 / 3]),
        (hires_cam_weights, [5.0, 0.0]),  # 2 * 2 + 1 * 1 | 1 * -1 + 0.5 * 2
        (layer_cam_weights, [5.0, 1.0]),  # the -1 is gone
        (elementwise_weights, [5.0, 1.0]),
    ],
)
def test_the_others_by_hand(weights: Weights, expected: list[float]) -> None:
    activations = torch.tensor([[[2.0, 1.0], [1.0, 0.5]]])
    gradients = torch.tensor([[[2.0, -1.0], [1.0, 2.0]]])
    found = weighted(activations, weights(activations, gradients))
    assert found.flatten().tolist() == pytest.approx(expected)


def test_layer_cam_and_elementwise_differ_where_activations_are_negative() -> None:
    activations, gradients = torch.tensor([[[-1.0, -1.0]]]), torch.tensor([[[2.0, -3.0]]])
    of_layer = layer_cam_weights(activations, gradients)
    assert weighted(activations, of_layer, relu=False).tolist() == [[-2.0, 0.0]]
    of_elements = elementwise_weights(activations, gradients)
    assert weighted(activations, of_elements, relu=False).tolist() == [[0.0, 3.0]]


# What each method promises.


def test_hires_and_x_grad_cam_conserve_the_score() -> None:
    activations, gradients = pair(0xA4, 2, 5, 3, 4)
    total = (activations * gradients).sum((1, 2, 3))
    for weights in (hires_cam_weights, x_grad_cam_weights):
        maps = weighted(activations, weights(activations, gradients), relu=False)
        assert torch.allclose(maps.sum((1, 2)), total)


def test_cam_is_grad_cam_where_the_network_ends_in_pooling_and_a_linear_layer() -> None:
    activations, _ = pair(0xA5, 3, 4, 5, 6)
    activations.requires_grad_()
    linear = nn.Linear(4, 7).double()
    classes = torch.tensor([6, 0, 3])
    logits = linear(activations.mean((2, 3)))
    chosen = logits.gather(1, classes[:, None])[:, 0]
    (gradients,) = torch.autograd.grad(chosen.sum(), activations)
    weights = cam_weights(activations, linear.weight, classes)
    assert torch.allclose(weights, 30 * grad_cam_weights(activations, gradients))
    maps = weighted(activations, weights, relu=False)
    assert torch.allclose(maps.mean((1, 2)) + linear.bias[classes], chosen)


def test_cam_refuses_a_linear_layer_of_another_width() -> None:
    with pytest.raises(FedgazeError, match=r"\(7, 5\); allowed is \(classes, 4\)"):
        cam_weights(torch.zeros(1, 4, 2, 2), torch.zeros(7, 5), torch.tensor([0]))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), factor=st.floats(0.01, 100))
@pytest.mark.parametrize(
    "weights", [each for each in ALL if each is not grad_cam_plus_plus_weights]
)
def test_maps_are_linear_in_gradients_and_blind_to_the_order_of_channels(
    weights: Weights, seed: int, factor: float
) -> None:
    activations, gradients = pair(seed, 2, 4, 3, 5)
    raw = weighted(activations, weights(activations, gradients))
    scaled = weighted(activations, weights(activations, gradients * factor))
    assert torch.allclose(scaled, raw * factor)
    order = torch.randperm(4)
    shuffled = activations[:, order], gradients[:, order]
    assert torch.allclose(weighted(shuffled[0], weights(*shuffled)), raw)


# What holds for all of them.


@pytest.mark.parametrize("weights", ALL)
def test_methods_leave_their_arguments_as_they_were(weights: Weights) -> None:
    activations, gradients = pair(0xA3, 1, 3, 4, 4)
    before = activations.clone(), gradients.clone()
    weighted(activations, weights(activations, gradients))
    assert torch.equal(activations, before[0])
    assert torch.equal(gradients, before[1])


@pytest.mark.parametrize("weights", ALL)
def test_maps_can_be_differentiated_twice(weights: Weights) -> None:
    def smooth(activations: Tensor, gradients: Tensor) -> Tensor:
        return weighted(activations, weights(activations, gradients), relu=False)

    activations, gradients = (each + 0.1 for each in pair(0xA6, 2, 2, 2, 2))
    inputs = activations.requires_grad_(), gradients.requires_grad_()
    assert torch.autograd.gradcheck(smooth, inputs)
    assert torch.autograd.gradgradcheck(smooth, inputs)


@pytest.mark.parametrize("weights", ALL)
@pytest.mark.parametrize("value", [0.0, -1.0, 3.0])
@pytest.mark.parametrize("gradient", [0.0, -1.0, 1.0])
def test_flat_layers_are_never_nan(weights: Weights, value: float, gradient: float) -> None:
    activations = torch.full((2, 3, 4, 4), value, requires_grad=True)
    gradients = torch.full((2, 3, 4, 4), gradient, requires_grad=True)
    maps = weighted(activations, weights(activations, gradients))
    assert maps.isfinite().all()
    assert (maps >= 0).all()
    for each in torch.autograd.grad(maps.sum(), [activations, gradients], allow_unused=True):
        assert each is None or each.isfinite().all()


@pytest.mark.parametrize("weights", ALL)
def test_low_precision_is_summed_in_float32(weights: Weights) -> None:
    activations, gradients = (each.bfloat16() for each in pair(0xA7, 2, 300, 9, 9))
    expected = weighted(activations.double(), weights(activations.double(), gradients.double()))
    found = weighted(activations, weights(activations, gradients))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=1e-5 * float(expected.max()))


def test_activations_of_half_and_gradients_of_full_precision_go_together() -> None:
    activations, gradients = pair(0xA8, 1, 3, 4, 4)
    assert grad_cam(activations.half(), gradients.float()).dtype == torch.float32
    assert grad_cam(activations.float(), gradients).dtype == torch.float64


def test_a_map_of_one_position_is_no_special_case() -> None:
    activations, gradients = pair(0xA9, 2, 5, 1, 1)
    expected = (activations * gradients).sum(1).relu()
    for weights in (grad_cam_weights, hires_cam_weights):
        found = weighted(activations, weights(activations, gradients))
        assert torch.allclose(found, expected)


def test_random_maps_come_from_the_generator_alone() -> None:
    activations, _ = pair(0xAA, 3, 4, 5, 6)

    def draw(seed: int, **options: Any) -> Tensor:
        return random_map(activations, generator=torch.Generator().manual_seed(seed), **options)

    state = torch.get_rng_state()
    maps = draw(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draw(1), maps)
    assert not torch.equal(draw(2), maps)
    assert not torch.equal(maps[0], maps[1])
    assert maps.shape == (3, 5, 6)
    assert 0 <= maps.min() < 0.1
    assert 0.9 < maps.max() < 1
    drawn = torch.rand((3, 4), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = torch.einsum("nk,nkij->nij", 2 * drawn - 1, activations)
    assert torch.allclose(draw(7, over="channels"), expected)
    with pytest.raises(FedgazeError, match=r"'channel'; allowed are .*did you mean 'channels'"):
        draw(1, over="channel")


# Peers.


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0xAB)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 5),
    ).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0xAC))


def captured(net: nn.Sequential, images: Tensor, class_index: int) -> tuple[Tensor, Tensor]:
    activations = net[1](net[0](images))
    logits = net[2:](activations)
    (gradients,) = torch.autograd.grad(logits[:, class_index].sum(), activations)
    return activations.detach(), gradients


@pytest.mark.parametrize(
    ("peer", "weights"),
    [
        ("GradCAM", grad_cam_weights),
        ("XGradCAM", x_grad_cam_weights),
        ("HiResCAM", hires_cam_weights),
        ("LayerCAM", layer_cam_weights),
        ("GradCAMElementWise", elementwise_weights),
    ],
)
def test_maps_are_those_of_pytorch_grad_cam(
    peer: str, weights: Weights, net: nn.Sequential, images: Tensor
) -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    activations, gradients = captured(net, images, 2)
    method = getattr(peers, peer)(net, [net[1]])
    expected = method.get_cam_image(None, None, None, activations.numpy(), gradients.numpy(), False)
    found = weighted(activations, weights(activations, gradients), relu=False)
    peak = float(np.abs(expected).max())
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5 * peak)


@pytest.mark.parametrize(
    ("peer", "weights"),
    [
        ("GradCAM", grad_cam_weights),
        ("XGradCAM", x_grad_cam_weights),
        ("LayerCAM", layer_cam_weights),
    ],
)
def test_maps_are_those_of_torchcam(
    peer: str, weights: Weights, net: nn.Sequential, images: Tensor
) -> None:
    peers = pytest.importorskip("torchcam.methods")
    activations, gradients = captured(net, images, 2)
    with getattr(peers, peer)(net, net[1], (3, 8, 8)) as extractor:
        (expected,) = extractor(2, net(images), normalized=False)
    found = weighted(activations, weights(activations, gradients))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_cam_is_that_of_torchcam(images: Tensor) -> None:
    peers = pytest.importorskip("torchcam.methods")
    torch.manual_seed(0xAD)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    ).eval()
    with peers.CAM(net, net[0], net[3], (3, 8, 8)) as extractor:
        net(images)
        (expected,) = extractor(2, normalized=False)
    activations = net[0](images)
    weights = cam_weights(activations, net[3].weight, torch.tensor([2, 2]))
    found = weighted(activations, weights, relu=False)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
