"""The rules of layers with weights, against the papers' sums in float64 loops."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedgaze.xai.rules import linear, lrp_rules
from fedgaze.xai.rules.numeric import wide

Back = Callable[..., Tensor]
Array = NDArray[np.float64]
Share = Callable[[Array, Array, Array, float], Array]

TINY = 1e-6


def signed(z: float, epsilon: float) -> float:
    return z + epsilon if z >= 0 else z - epsilon


def epsilon(x: Array, w: Array, b: Array, value: float) -> Array:
    """Bach et al. 2015, Eq. 58: what each input i gets of each output j: ``(j, i)``."""
    shares = np.zeros_like(w)
    for j in range(len(w)):
        z = sum(x[i] * w[j, i] for i in range(len(x))) + b[j]
        for i in range(len(x)):
            shares[j, i] = x[i] * w[j, i] / signed(z, value)
    return shares


def alpha_beta(x: Array, w: Array, b: Array, alpha: float) -> Array:
    """Bach et al. 2015, Eq. 60, with beta = alpha - 1."""
    shares = np.zeros_like(w)
    for j in range(len(w)):
        terms = [x[i] * w[j, i] for i in range(len(x))]
        up = sum(max(t, 0.0) for t in terms) + max(b[j], 0.0)
        down = sum(min(t, 0.0) for t in terms) + min(b[j], 0.0)
        for i, term in enumerate(terms):
            shares[j, i] += alpha * max(term, 0.0) / signed(up, TINY)
            shares[j, i] -= (alpha - 1) * min(term, 0.0) / signed(down, TINY)
    return shares


def gamma(x: Array, w: Array, b: Array, value: float) -> Array:
    """Montavon et al. 2019, Sec. 10.2.1; for other signs what has the sign of z is favoured."""
    shares = np.zeros_like(w)
    for j in range(len(w)):
        z = sum(x[i] * w[j, i] for i in range(len(x))) + b[j]
        terms = [x[i] * w[j, i] for i in range(len(x))]
        raised = [t + value * t if t * z > 0 else t for t in terms]
        below = sum(raised) + (b[j] + value * b[j] if b[j] * z > 0 else b[j])
        for i, term in enumerate(raised):
            shares[j, i] = term / signed(below, TINY)
    return shares


def box(x: Array, w: Array, _: Array, value: float) -> Array:
    """Montavon et al. 2017, Sec. 4.2, for inputs in [-value, 2 value]."""
    shares = np.zeros_like(w)
    for j in range(len(w)):
        terms = [
            x[i] * w[j, i] + value * max(w[j, i], 0.0) - 2 * value * min(w[j, i], 0.0)
            for i in range(len(x))
        ]
        for i, term in enumerate(terms):
            shares[j, i] = term / signed(sum(terms), TINY)
    return shares


def w_square(x: Array, w: Array, _: Array, __: float) -> Array:
    """Montavon et al. 2017, Sec. 4.1."""
    shares = np.zeros_like(w)
    for j in range(len(w)):
        for i in range(len(x)):
            shares[j, i] = w[j, i] ** 2 / signed(sum(v**2 for v in w[j]), TINY)
    return shares


def flat(_: Array, w: Array, __: Array, ___: float) -> Array:
    """Evenly over what is connected: what is not has the weight zero exactly."""
    shares = np.zeros_like(w)
    for j in range(len(w)):
        count = sum(1.0 for v in w[j] if v != 0)
        for i in range(w.shape[1]):
            shares[j, i] = 1 / (count + TINY) if w[j, i] != 0 else 0.0
    return shares


BOX = linear.box(torch.tensor(-3.0), torch.tensor(6.0))
RULES: dict[str, tuple[linear.Rule, Share, float]] = {
    "epsilon": (linear.epsilon(0.1), epsilon, 0.1),
    "epsilon zero": (linear.epsilon(0.0), epsilon, 0.0),
    "z+": (linear.alpha_beta(1, 0), alpha_beta, 1.0),
    "alpha2 beta1": (linear.alpha_beta(2, 1), alpha_beta, 2.0),
    "alpha 1.5 beta 0.5": (linear.alpha_beta(1.5, 0.5), alpha_beta, 1.5),
    "gamma": (linear.gamma(0.25), gamma, 0.25),
    "gamma zero": (linear.gamma(0.0), gamma, 0.0),
    "box": (BOX, box, 3.0),
    "w square": (linear.w_square(), w_square, 0.0),
    "flat": (linear.flat(), flat, 0.0),
}


def convolution_as_matrix(weight: Array, size: int, stride: int, padding: int) -> Array:
    """``(K h' w', C h w)`` of a convolution, place by place."""
    outputs, inputs, kernel, _ = weight.shape
    out = (size + 2 * padding - kernel) // stride + 1
    matrix = np.zeros((outputs, out, out, inputs, size, size))
    for k in range(outputs):
        for p in range(out):
            for q in range(out):
                for c in range(inputs):
                    for a in range(kernel):
                        for b in range(kernel):
                            i, j = p * stride + a - padding, q * stride + b - padding
                            if 0 <= i < size and 0 <= j < size:
                                matrix[k, p, q, c, i, j] += weight[k, c, a, b]
    return matrix.reshape(outputs * out * out, -1)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("positive", [True, False])
def test_dense_layers(name: str, positive: bool) -> None:
    rule, share, value = RULES[name]
    rng = np.random.default_rng(7)
    w, b, x = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=6)
    x = np.abs(x) if positive else x
    relevance = rng.normal(size=4)
    layer = linear.Layer(F.linear, torch.from_numpy(w), torch.from_numpy(b))
    found = rule(layer, torch.from_numpy(x)[None], torch.from_numpy(relevance)[None])
    assert found[0].numpy() == pytest.approx(relevance @ share(x, w, b, value), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_convolutions(name: str, stride: int, padding: int) -> None:
    rule, share, value = RULES[name]
    rng = np.random.default_rng(8)
    weight, b, x = rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3), rng.normal(size=(2, 5, 5))
    matrix = convolution_as_matrix(weight, 5, stride, padding)
    relevance = rng.normal(size=len(matrix))
    places = len(matrix) // 3
    expected = relevance @ share(x.ravel(), matrix, np.repeat(b, places), value)
    layer = linear.Layer(
        lambda x, w, b: F.conv2d(x, w, b, stride, padding),
        torch.from_numpy(weight),
        torch.from_numpy(b),
    )
    above = torch.from_numpy(relevance).reshape(1, 3, int(places**0.5), -1)
    found = rule(layer, torch.from_numpy(x)[None], above)
    assert found.numpy().ravel() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("composite", "first", "conv"),
    [
        ("epsilon", epsilon, epsilon),
        ("epsilon_plus", alpha_beta, alpha_beta),
        ("epsilon_plus_flat", flat, alpha_beta),
        ("epsilon_gamma", gamma, gamma),
        ("epsilon_gamma_box", box, gamma),
        ("epsilon_alpha2_beta1", alpha_beta, alpha_beta),
        ("epsilon_alpha2_beta1_flat", flat, alpha_beta),
    ],
)
def test_composites_on_a_network_in_loops(
    composite: str, first: Share, conv: Share, back: Back
) -> None:
    values = {
        epsilon: 0.01,
        alpha_beta: 2.0 if "alpha2" in composite else 1.0,
        gamma: 0.3,
        box: 3.0,
        flat: 0.0,
    }
    rng = np.random.default_rng(9)
    shapes = ((3, 2, 3, 3), (4, 3, 3, 3), (3, 4))
    weights = [rng.normal(size=shape) for shape in shapes]
    biases = [0.1 * rng.normal(size=shape[0]) for shape in shapes]
    x = rng.uniform(-3, 6, size=(2, 5, 5))

    z1 = convolution_as_matrix(weights[0], 5, 1, 1)
    z2 = convolution_as_matrix(weights[1], 5, 2, 1)
    a1 = np.maximum(z1 @ x.ravel() + np.repeat(biases[0], 25), 0)
    a2 = np.maximum(z2 @ a1 + np.repeat(biases[1], 9), 0)
    mean = a2.reshape(4, 9).mean(1)
    logits = weights[2] @ mean + biases[2]
    relevance = np.eye(3)[1] * logits[1]
    relevance = relevance @ epsilon(mean, weights[2], biases[2], values[epsilon])
    pooling = np.kron(np.eye(4), np.full((1, 9), 1 / 9))
    relevance = relevance @ epsilon(a2, pooling, np.zeros(4), TINY)
    relevance = relevance @ conv(a1, z2, np.repeat(biases[1], 9), values[conv])
    relevance = relevance @ first(x.ravel(), z1, np.repeat(biases[0], 25), values[first])

    w, b = ([torch.from_numpy(each) for each in some] for some in (weights, biases))

    def model(images: Tensor) -> Tensor:
        images = F.relu(F.conv2d(images, w[0], b[0], padding=1))
        images = F.relu(F.conv2d(images, w[1], b[1], stride=2, padding=1))
        return F.linear(images.mean((2, 3)), w[2], b[2])

    found = back(
        model,
        torch.from_numpy(x)[None],
        lambda: lrp_rules(composite, epsilon=0.01, gamma=0.3, low=-3.0, high=[6.0, 6.0]),
        1,
    )
    assert found.numpy().ravel() * logits[1] == pytest.approx(relevance, rel=1e-7, abs=1e-9)


def test_by_hand(back: Back) -> None:
    # z = 1*3 + 2*1 - 1*2 + 1 = 4: 3/4 and 2/4 and -2/4, and the bias keeps 1/4.
    w, b = torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([1.0])
    x = torch.tensor([[1.0, 2.0, 2.0]])
    for composite in ("epsilon", "epsilon_plus"):  # which is for convolutions only
        found = back(lambda t: F.linear(t, w, b), x, lambda c=composite: lrp_rules(c))
        assert found[0].tolist() == pytest.approx([3 / 4, 2 / 4, -2 / 4], rel=1e-5)
    as_convolution = {
        "epsilon": [3 / 4, 2 / 4, -2 / 4],
        "epsilon_plus": [3 / 6, 2 / 6, 0],
        # twice the shares of what is positive, less those of what is negative
        "epsilon_alpha2_beta1": [1.0, 2 / 3, -1.0],
        # 3 * 1.25, 2 * 1.25, -2 and a bias of 1.25: 5.5 in all
        "epsilon_gamma": [3.75 / 5.5, 2.5 / 5.5, -2 / 5.5],
        "epsilon_plus_flat": [1 / 3, 1 / 3, 1 / 3],
        # x w - l w+ - h w- in [0, 4]: 3, 2, -2 + 4
        "epsilon_gamma_box": [3 / 7, 2 / 7, 2 / 7],
    }
    for composite, shares in as_convolution.items():
        found = back(
            lambda t: F.conv2d(t, w[:, :, None, None], b).flatten(1),
            x[:, :, None, None],
            lambda c=composite: lrp_rules(c, low=0.0, high=4.0),
        )
        assert found.flatten().tolist() == pytest.approx(shares, rel=1e-5)
    found = back(
        lambda t: F.conv2d(t, w[:, :, None, None], b).flatten(1),
        x[:, :, None, None],
        lambda: lrp_rules("epsilon_plus", first="w_square"),
    )
    assert found.flatten().tolist() == pytest.approx([9 / 11, 1 / 11, 1 / 11], rel=1e-5)


def test_half_precision_is_widened() -> None:
    assert wide(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert wide(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
