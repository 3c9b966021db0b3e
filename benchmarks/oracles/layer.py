"""Loops from papers, in float64, for methods that explain a layer by its activations and gradients.

A is the layer's activations, g the gradients of the logit to them. Every function returns signed
maps ``(N, h, w)``: what the paper's last relu is applied to.
"""

import numpy as np
import torch
from torch import Tensor

from oracles.cases import Array, Case, logit, wide
from oracles.draws import noisy


def weighted(activations: Array, weights: Array) -> Array:
    """``sum_k w_k A_k`` for each image."""
    maps = np.zeros((len(activations), *activations.shape[2:]))
    for n, channels in enumerate(activations):
        for k, channel in enumerate(channels):
            maps[n] += weights[n, k] * channel
    return maps


def cam(case: Case) -> Array:
    a, _ = case.pair
    head = case.model.get_submodule(case.head).get_parameter("weight").detach().double().numpy()
    return weighted(a, head[case.classes])


def grad_cam(case: Case) -> Array:
    a, g = case.pair
    return weighted(a, g.mean((2, 3)))


def grad_cam_plus_plus(case: Case) -> Array:
    """Eq. 19 as it is printed, but for exp(S), which is in each term of the fraction."""
    a, g = case.pair
    weights = np.zeros(a.shape[:2])
    for n, k in np.ndindex(*a.shape[:2]):
        total = a[n, k].sum()
        for at in np.ndindex(*a.shape[2:]):
            slope = g[n, k][at]
            below = 2 * slope**2 + total * slope**3
            if below != 0:
                weights[n, k] += slope**2 / below * max(slope, 0)
    return weighted(a, weights)


def x_grad_cam(case: Case) -> Array:
    a, g = case.pair
    weights = np.zeros(a.shape[:2])
    for n, k in np.ndindex(*a.shape[:2]):
        total = a[n, k].sum()
        if total != 0:
            weights[n, k] = sum(
                a[n, k][at] / total * g[n, k][at] for at in np.ndindex(*a.shape[2:])
            )
    return weighted(a, weights)


def hires_cam(case: Case) -> Array:
    a, g = case.pair
    return weighted(a, g)


def layer_cam(case: Case) -> Array:
    a, g = case.pair
    return weighted(a, np.maximum(g, 0))


def elementwise(case: Case) -> Array:
    a, g = case.pair
    maps = np.zeros((len(a), *a.shape[2:]))
    for n, k in np.ndindex(*a.shape[:2]):
        maps[n] += np.maximum(g[n, k] * a[n, k], 0)
    return maps


def finer_cam(case: Case) -> Array:
    """One Grad-CAM for each of the three comparisons, then their mean."""

    def others(row: Tensor, label: int) -> list[int]:
        distance = (row - row[label]).abs().tolist()
        return sorted((c for c in range(len(row)) if c != label), key=distance.__getitem__)[:3]

    maps = []
    for which in range(3):

        def score(row: Tensor, label: int, which: int = which) -> Tensor:
            return row[label] - 0.6 * row[others(row.detach(), label)[which]]

        a, g, _ = case.passed(score)
        maps.append(weighted(a, g.mean((2, 3))))
    found: Array = np.mean(maps, axis=0)
    return found


def shapley_cam(case: Case) -> Array:
    """H A from differences: how g changes where all of A grows or shrinks by a little."""

    def rest(row: Tensor, label: int) -> Tensor:
        return row[label] + row.log_softmax(0)[label]

    def slope(factor: float) -> tuple[Array, Array]:
        """The activations, made larger by a factor, and the gradients there; all in float64."""
        leaves: list[Tensor] = []

        def scaled(_module: object, _inputs: object, output: Tensor) -> Tensor:
            leaves.append((output.detach() * factor).requires_grad_())
            return leaves[-1]

        model = case.copy().double()
        model.get_submodule(case.layer).register_forward_hook(scaled)
        rows = zip(model(case.images.double()), case.classes, strict=True)
        total = torch.stack([rest(row, label) for row, label in rows]).sum()
        (found,) = torch.autograd.grad(total, leaves[-1])
        return wide(case.laid_out(leaves[-1])), wide(case.laid_out(found))

    a, g = slope(1)
    bent = (slope(1 + 1e-5)[1] - slope(1 - 1e-5)[1]) / 2e-5
    return weighted(a, (g - bent / 2).mean((2, 3)))


def component(x: Array, towards: Array) -> Array:
    """The first left singular vector times its value ``(P,)``, of ``(P, K)``, by a full SVD."""
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    found: Array = left[:, 0] * values[0]
    return found if found @ towards >= 0 else -found


def _by_component(values: Array, towards: Array, *, centred: bool) -> Array:
    maps = np.zeros((len(values), *values.shape[2:]))
    for n, channels in enumerate(values):
        x = channels.reshape(len(channels), -1).T
        x = x - x.mean(0) if centred else x
        maps[n] = component(x, towards[n].ravel()).reshape(channels.shape[1:])
    return maps


def eigen_cam(case: Case) -> Array:
    a, _ = case.pair
    return _by_component(a, np.abs(a).sum(1), centred=False)


def eigen_grad_cam(case: Case) -> Array:
    a, g = case.pair
    return _by_component(a * g, (a * g).sum(1), centred=True)


def kpca_cam(case: Case) -> Array:
    """Kernel PCA as in Schoelkopf et al., 1998, with the kernel tanh(x·y / K + 1)."""
    a, _ = case.pair
    maps = np.zeros((len(a), *a.shape[2:]))
    for n, channels in enumerate(a):
        x = channels.reshape(len(channels), -1).T
        x = x - x.mean(0)
        kernel = np.tanh(x @ x.T / x.shape[1] + 1)
        middle = np.eye(len(x)) - np.full((len(x), len(x)), 1 / len(x))
        values, vectors = np.linalg.eigh(middle @ kernel @ middle)
        found = vectors[:, -1] * np.sqrt(values[-1])
        sign = 1 if found @ np.abs(channels).sum(0).ravel() >= 0 else -1
        maps[n] = sign * found.reshape(channels.shape[1:])
    return maps


def smooth_grad_cam_plus_plus(case: Case, samples: int) -> Array:
    """Averages of the three derivatives of exp(S) over noisy images.

    They are divided by the average of exp(S), which scales the map and nothing else.
    """
    a, _, clean = case.passed(logit)
    sums = [np.zeros(a.shape) for _ in range(3)]
    mass = np.zeros(len(a))
    for v in range(samples):
        _, g, logits = case.passed(logit, noisy(case.images, v))
        for n, label in enumerate(case.classes):
            y = np.exp(logits[n, label] - clean[n, label])
            mass[n] += y / samples
            for order, total in enumerate(sums, start=1):
                total[n] += y * g[n] ** order / samples
    weights = np.zeros(a.shape[:2])
    for n, k in np.ndindex(*a.shape[:2]):
        for at in np.ndindex(*a.shape[2:]):
            d1, d2, d3 = (each[n, k][at] / mass[n] for each in sums)
            below = 2 * d2 + a[n, k].sum() * d3
            if below != 0:
                weights[n, k] += d1 / below * max(d1, 0)
    return weighted(a, weights)
