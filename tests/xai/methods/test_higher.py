"""Methods of second order, of noisy runs and of several classes."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import grad_cam_plus_plus_weights, grad_cam_weights, weighted
from fedgaze.xai.methods.higher import (
    exp_derivatives,
    hessian_product,
    shapley_weights,
    smooth_grad_cam_plus_plus_weights,
)
from fedgaze.xai.methods.scores import finer_scores, rest_scores, similar_classes

Array = NDArray[np.float64]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0xD1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)
    ).eval()


@pytest.fixture
def images() -> Tensor:
    return draw(0xD2, 2, 3, 8, 8).float()


# ShapleyCAM.


def first_and_second(
    utility: Callable[[Tensor], Tensor], activations: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients, and the Hessian's product with the activations."""
    a = activations.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(utility(a).sum(), a, create_graph=True)
    return gradients.detach(), hessian_product(a, gradients)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_weights_times_activations_are_the_shapley_values_of_a_quadratic_utility(
    seed: int,
) -> None:
    players = 6
    linear, square, a = (
        draw(seed, players),
        draw(seed + 1, players, players),
        draw(seed + 2, players),
    )

    def utility(x: Tensor) -> Tensor:
        flat = x.flatten()
        return linear @ flat + flat @ square @ flat

    # The definition: the mean over all orders in which players come of what each then adds.
    expected = np.zeros(players)
    for order in itertools.permutations(range(players)):
        present = torch.zeros(players, dtype=torch.float64)
        for player in order:
            before = utility(present)
            present[player] = a[player]
            expected[player] += float(utility(present) - before) / math.factorial(players)
    layer = a.reshape(1, 2, 3)
    weights = shapley_weights(layer, *first_and_second(utility, layer), average=False)
    values = (weights * layer).flatten()
    assert values.numpy() == pytest.approx(expected, rel=1e-8, abs=1e-8)
    # What comes out is what goes in.
    assert float(values.sum()) == pytest.approx(float(utility(a)), rel=1e-8, abs=1e-8)


def test_shapley_weights_are_the_papers_formula() -> None:
    a, g, h = draw(0xD3, 2, 3, 4, 5), draw(0xD4, 2, 3, 4, 5), draw(0xD5, 2, 3, 4, 5)
    expected = np.zeros((2, 4, 5))
    for n in range(2):
        for k in range(3):
            weight = 0.0
            for i in range(4):
                for j in range(5):
                    weight += float(g[n, k, i, j] - 0.5 * h[n, k, i, j]) / 20
            expected[n] += weight * a[n, k].numpy()
    found = weighted(a, shapley_weights(a, g, h), relu=False)
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


def test_shapley_cam_of_a_logit_is_grad_cam_where_the_network_is_piecewise_linear() -> None:
    layer, linear = draw(0xD6, 2, 4, 3, 3), nn.Linear(36, 3).double()
    gradients, product = first_and_second(lambda a: linear(a.flatten(1).relu())[:, 1], layer)
    assert not product.any()
    weights = shapley_weights(layer, gradients, product)
    assert torch.equal(weights, grad_cam_weights(layer, gradients))


def test_the_hessian_product_is_the_hessian_times_the_activations() -> None:
    layer, linear = draw(0xD7, 2, 2, 3), nn.Linear(6, 4).double()
    classes = torch.tensor([3, 0])

    def utility(a: Tensor) -> Tensor:
        return rest_scores(linear(a.flatten(1)), classes)

    _, product = first_and_second(utility, layer)
    for n in range(2):
        hessian = torch.autograd.functional.hessian(
            lambda flat, n=n: rest_scores(linear(flat[None]), classes[n : n + 1])[0],
            layer[n].flatten(),
        )
        assert torch.allclose(product[n].flatten(), hessian @ layer[n].flatten())


def test_the_hessian_product_is_zero_without_a_graph() -> None:
    assert not hessian_product(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).any()


def test_the_hessian_product_can_be_differentiated() -> None:
    a = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    (gradients,) = torch.autograd.grad((a**3).sum(), a, create_graph=True)
    product = hessian_product(
        a, gradients, graph=True
    )  # 6 a², for a held fixed where it multiplies
    assert product.requires_grad
    assert not hessian_product(a, gradients).requires_grad


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(FedgazeError, match=r"\(1, 2, 3\), \(1, 2, 3\) and \(1, 2, 4\)"):
        shapley_weights(torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 2, 4))


def test_shapley_cam_is_that_of_pytorch_grad_cam(net: nn.Sequential, images: Tensor) -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST

    classes = torch.tensor([1, 4])
    theirs = peers.ShapleyCAM(net, [net[1]])
    targets = [ClassifierOutputReST(int(each)) for each in classes]
    raw: list[Array] = []
    keep = theirs.get_cam_image

    def spy(*args: object) -> Array:
        raw.append(keep(*args))
        return raw[-1]

    theirs.get_cam_image = spy
    theirs(images, targets)
    theirs.activations_and_grads.gradients.clear()  # or its __del__ fails on them
    activations = net[1](net[0](images)).detach()
    pair = first_and_second(lambda a: rest_scores(net[3](net[2](a)), classes), activations)
    assert pair[1].any()
    found = weighted(activations, shapley_weights(activations, *pair), relu=False)
    peak = float(np.abs(raw[0]).max())
    assert found.detach().numpy() == pytest.approx(raw[0], rel=1e-4, abs=1e-5 * peak)


def test_rest_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    expected = [2 - math.log(1 + math.exp(-2)), 1 - math.log(2)]
    assert rest_scores(logits, torch.tensor([0, 1])).tolist() == pytest.approx(expected)


# Finer-CAM.


@pytest.mark.parametrize("weighting", ["mean", "softmax"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_finer_scores_are_the_papers_formula(weighting: str, alpha: float) -> None:
    logits, classes = draw(0xD8, 4, 7), torch.tensor([0, 6, 3, 3])
    expected = []
    for y, c in zip(logits.tolist(), classes.tolist(), strict=True):
        others = sorted((d for d in range(7) if d != c), key=lambda d: abs(y[d] - y[c]))[:3]
        shares = [math.exp(y[d]) if weighting == "softmax" else 1.0 for d in others]
        contrasts = [y[c] - alpha * y[d] for d in others]
        total = sum(s * each for s, each in zip(shares, contrasts, strict=True))
        expected.append(total / sum(shares))
    found = finer_scores(logits, classes, alpha=alpha, weighting=weighting)
    assert found.tolist() == pytest.approx(expected)


def test_finer_cam_is_the_papers_average_before_the_relu() -> None:
    layer, linear = draw(0xD9, 2, 4, 3, 3).relu().requires_grad_(), nn.Linear(36, 6).double()
    logits, classes = linear(layer.flatten(1)), torch.tensor([1, 5])
    others = torch.tensor([[0, 2, 3], [4, 3, 0]])

    def gradient(scores: Tensor) -> Tensor:
        return torch.autograd.grad(scores.sum(), layer, retain_graph=True)[0]

    own = logits.gather(1, classes[:, None])[:, 0]
    maps = [
        weighted(layer, grad_cam_weights(layer, gradient(own - 0.6 * y)), relu=False)
        for y in logits.gather(1, others).unbind(1)
    ]
    expected = (sum(maps) / 3).relu()
    found = gradient(finer_scores(logits, classes, others=others))
    assert torch.allclose(weighted(layer, grad_cam_weights(layer, found)), expected)


def test_finer_scores_never_compare_a_class_with_itself() -> None:
    logits = torch.zeros(2, 4)  # all at the same distance
    logits.requires_grad_()
    scores = finer_scores(logits, torch.tensor([0, 3]), alpha=1.0, count=10)
    (back,) = torch.autograd.grad(scores.sum(), logits)
    third = pytest.approx(-1 / 3)
    assert back.tolist() == [[1.0, third, third, third], [third, third, third, 1.0]]


def test_finer_scores_need_another_class() -> None:
    with pytest.raises(FedgazeError, match="there are 1 classes and 3 of them"):
        finer_scores(torch.zeros(1, 1), torch.tensor([0]))
    with pytest.raises(FedgazeError, match="there are 4 classes and 0 of them"):
        finer_scores(torch.zeros(1, 4), torch.tensor([0]), count=0)
    with pytest.raises(FedgazeError, match="'soft'; allowed are mean, softmax"):
        finer_scores(torch.zeros(1, 4), torch.tensor([0]), weighting="soft")


def test_similar_classes_are_those_of_the_smallest_angle() -> None:
    weights, classes = draw(0xDA, 6, 4), torch.tensor([2, 0])
    w = weights.numpy()
    for found, c in zip(similar_classes(weights, classes, count=4), classes.tolist(), strict=True):
        cosines = [
            (float(w[c] @ w[d]) / math.sqrt(float(w[c] @ w[c]) * float(w[d] @ w[d])), d)
            for d in range(6)
            if d != c
        ]
        assert found.tolist() == [d for _, d in sorted(cosines, reverse=True)][:4]
    assert similar_classes(weights, classes, count=99).shape == (2, 5)


def test_finer_cam_is_that_of_pytorch_grad_cam(net: nn.Sequential, images: Tensor) -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    theirs = peers.FinerCAM(net, [net[1]])
    raw: list[Array] = []
    keep = theirs.base_cam.get_cam_image

    def spy(*args: object) -> Array:
        raw.append(keep(*args))
        return raw[-1]

    theirs.base_cam.get_cam_image = spy
    theirs(images)
    activations = net[1](net[0](images)).detach().requires_grad_()
    logits = net[3](net[2](activations))
    scores = finer_scores(logits, logits.argmax(1), alpha=1.0, weighting="softmax")
    (gradients,) = torch.autograd.grad(scores.sum(), activations)
    found = weighted(activations, grad_cam_weights(activations, gradients), relu=False)
    peak = float(np.abs(raw[0]).max())
    assert found.detach().numpy() == pytest.approx(raw[0], rel=1e-4, abs=1e-5 * peak)


def test_finer_cam_is_that_of_torchcam(net: nn.Sequential, images: Tensor) -> None:
    peers = pytest.importorskip("torchcam.methods")
    with peers.FinerCAM(net, net[1], (3, 8, 8)) as extractor:
        (expected,) = extractor([1, 4], net(images), normalized=False)
    activations = net[1](net[0](images)).detach().requires_grad_()
    scores = finer_scores(net[3](net[2](activations)), torch.tensor([1, 4]))
    (gradients,) = torch.autograd.grad(scores.sum(), activations)
    found = weighted(activations, grad_cam_weights(activations, gradients))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


# Smooth Grad-CAM++.


def noisy_runs(runs: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Gradients and scores of runs on two images, and the activations without noise."""
    gradients = [draw(0xE0 + m, 2, 3, 4, 5) for m in range(runs)]
    scores = [draw(0xF0 + m, 2) for m in range(runs)]
    return gradients, scores, draw(0xDB, 2, 3, 4, 5).relu()


def paper_smooth(gradients: list[Tensor], scores: list[Tensor], a: Tensor, numerator: int) -> Array:
    """Averages of the derivatives of exp(S), alphas and weights, in float64 loops."""
    weights = np.zeros((2, 3))
    for n in range(2):
        for k in range(3):
            for i in range(4):
                for j in range(5):
                    d = [0.0, 0.0, 0.0]
                    for g, s in zip(gradients, scores, strict=True):
                        for p in range(3):
                            power = float(g[n, k, i, j]) ** (p + 1)
                            d[p] += math.exp(float(s[n])) * power / len(gradients)
                    total = 0.0
                    for b in range(4):
                        for c in range(5):
                            total += float(a[n, k, b, c]) * d[2]
                    alpha = d[numerator] / (2 * d[1] + total)
                    weights[n, k] += alpha * max(d[0], 0.0)
    return weights


@pytest.mark.parametrize(("name", "numerator"), [("first", 0), ("second", 1)])
def test_smooth_grad_cam_plus_plus_is_the_papers_formula(name: str, numerator: int) -> None:
    gradients, scores, a = noisy_runs(4)
    expected = paper_smooth(gradients, scores, a, numerator)
    sums: list[Tensor] = [torch.zeros(())] * 3
    for g, s in zip(gradients, scores, strict=True):
        added = zip(sums, exp_derivatives(g, s), strict=True)
        sums = [total + each for total, each in added]
    of_averages = smooth_grad_cam_plus_plus_weights(
        *(total / 4 for total in sums), a, numerator=name
    )
    assert of_averages.shape == (2, 3, 1, 1)
    assert of_averages[..., 0, 0].numpy() == pytest.approx(expected, rel=1e-9)
    # Sums are as good as averages, up to one factor.
    of_sums = smooth_grad_cam_plus_plus_weights(*sums, a, numerator=name)
    assert torch.allclose(of_sums, 4 * of_averages)


def test_one_run_without_noise_is_grad_cam_plus_plus() -> None:
    (g,), _, a = noisy_runs(1)
    found = smooth_grad_cam_plus_plus_weights(*exp_derivatives(g), a, numerator="second")
    assert torch.allclose(found, grad_cam_plus_plus_weights(a, g))


def test_smooth_grad_cam_plus_plus_by_hand() -> None:
    # Runs with g = 1 and g = 3, S = 0: D = 2, 5, 14; sum A = 2: D / (10 + 28) * 2.
    runs = exp_derivatives(torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]]))
    means = [each.mean(0, keepdim=True) for each in runs]
    assert [each[0, 0, 0].item() for each in means] == [2.0, 5.0, 14.0]
    a = torch.tensor([[[0.5, 1.5]]])
    first = smooth_grad_cam_plus_plus_weights(*means, a)
    assert first.item() == pytest.approx(2 / 38 * 2)
    second = smooth_grad_cam_plus_plus_weights(*means, a, numerator="second")
    assert second.item() == pytest.approx(5 / 38 * 2)


def test_exp_derivatives_are_those_of_the_exponential() -> None:
    a, w = draw(0xDC, 1, 1, 1).requires_grad_(), draw(0xDD, 1)
    score = (w * a).sum()
    first = torch.autograd.grad(score.exp(), a, create_graph=True)[0]
    second = torch.autograd.grad(first, a, create_graph=True)[0]
    third = torch.autograd.grad(second, a)[0]
    found = exp_derivatives(w.reshape(1, 1, 1), score.detach().reshape(1))
    for ours, autograds in zip(found, (first, second, third), strict=True):
        assert torch.allclose(ours, autograds)


@pytest.mark.parametrize("numerator", ["first", "second"])
@pytest.mark.parametrize("value", [0.0, -1.0, 2.0])
def test_flat_layers_are_never_nan(numerator: str, value: float) -> None:
    # sum A = -2 for the value -1, and 2 g² - 2 g³ is zero for g = 1.
    a = torch.full((1, 2, 2), value, requires_grad=True)
    for gradient in (0.0, -1.0, 1.0):
        g = torch.full((1, 2, 2), gradient, requires_grad=True)
        found = smooth_grad_cam_plus_plus_weights(*exp_derivatives(g), a, numerator=numerator)
        assert found.isfinite().all()
        for each in torch.autograd.grad(found.sum(), [a, g]):
            assert each.isfinite().all()


def test_an_unknown_numerator_is_refused() -> None:
    with pytest.raises(FedgazeError, match=r"'frist'; allowed are first, second; .*'first'"):
        smooth_grad_cam_plus_plus_weights(*[torch.ones(1, 1, 1)] * 4, numerator="frist")


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 2, 2, 2), (1, 2, 1, 2, 2)])
def test_weights_can_be_differentiated_twice_for_any_number_of_dimensions(
    shape: tuple[int, ...],
) -> None:
    def smooth(a: Tensor, g: Tensor) -> Tensor:
        weights = smooth_grad_cam_plus_plus_weights(*exp_derivatives(g), a)
        return weighted(a, weights, relu=False)

    def shapley(a: Tensor, g: Tensor) -> Tensor:
        return weighted(a, shapley_weights(a, g, a * g), relu=False)

    a = (draw(0xDE, *shape).abs() + 0.1).requires_grad_()
    g = (draw(0xDF, *shape) + 0.1).requires_grad_()
    for method in (smooth, shapley):
        assert torch.autograd.gradcheck(method, (a, g))
        assert torch.autograd.gradgradcheck(method, (a, g))
