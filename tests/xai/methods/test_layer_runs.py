"""Methods of one layer that run more than once, through `explain`: what they are given is right."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain
from fedgaze.xai.runner import Runner

Array = NDArray[np.float64]
MakeCNN = Callable[..., nn.Module]

TARGETS = [[3, 1], [0, 4]]
METHODS = ("shapleycam", "finercam", "smooth_gradcam++", "random")


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def model(make_cnn: MakeCNN) -> nn.Module:
    return make_cnn(7).double()


@pytest.fixture
def images() -> Tensor:
    return draw(0x1A, 2, 3, 8, 10)


def below(model: nn.Module, images: Tensor) -> Tensor:
    """What `conv2` of the small network says."""
    with torch.no_grad():
        return model.conv2(F.max_pool2d(model.bn1(model.conv1(images)).relu(), 2))


def above(model: nn.Module, activations: Tensor) -> Tensor:
    """The logits that follow from it."""
    return model.fc(model.bn2(activations).relu().mean((2, 3)))


def rows(targets: list[list[int]]) -> list[tuple[int, int]]:
    return [(n, chosen) for n, classes in enumerate(targets) for chosen in classes]


def positive(map_: Array) -> Array:
    return np.maximum(map_, 0)


# ShapleyCAM.


@pytest.mark.parametrize("average", [True, False])
def test_shapley_cam_is_the_papers_formula_on_the_whole_hessian(
    average: bool, model: nn.Module, images: Tensor
) -> None:
    found = explain(model, images, "shapleycam", TARGETS, layers="conv2", average=average).raw
    activations = below(model, images)
    for row, (n, chosen) in enumerate(rows(TARGETS)):
        a = activations[n]

        def utility(flat: Tensor, like: Tensor = a, chosen: int = chosen) -> Tensor:
            logits = above(model, flat.view_as(like)[None])[0]
            return logits[chosen] + logits.log_softmax(0)[chosen]

        flat = a.flatten()
        g = torch.autograd.functional.jacobian(utility, flat).view_as(a).numpy()
        hessian = torch.autograd.functional.hessian(utility, flat)
        curved = (hessian @ flat).view_as(a).numpy()
        assert np.abs(curved).max() > 1e-4
        expected = np.zeros(a.shape[1:])
        for k in range(a.shape[0]):
            weight = g[k] - 0.5 * curved[k]
            expected += (weight.mean() if average else weight) * a[k].numpy()
        assert found[row].numpy() == pytest.approx(positive(expected), rel=1e-8, abs=1e-12)


def test_shapley_cam_reports_the_score_that_it_explains(model: nn.Module, images: Tensor) -> None:
    found = explain(model, images, "shapleycam", [3, 0], layers="conv2")
    with torch.no_grad():
        logits = above(model, below(model, images))
    expected = (logits + logits.log_softmax(1))[[0, 1], [3, 0]]
    torch.testing.assert_close(found.scores, expected)
    torch.testing.assert_close(found.logits, logits)


# Finer-CAM.


@pytest.mark.parametrize("weighting", ["mean", "softmax"])
def test_finer_cam_is_the_mean_of_the_papers_comparisons(
    weighting: str, model: nn.Module, images: Tensor
) -> None:
    options = {"alpha": 0.7, "count": 2, "weighting": weighting}
    found = explain(model, images, "finercam", TARGETS, layers="conv2", **options).raw
    activations = below(model, images)
    for row, (n, chosen) in enumerate(rows(TARGETS)):
        a = activations[n : n + 1].requires_grad_()
        logits = above(model, a)[0]
        order = (logits - logits[chosen]).detach().abs().argsort().tolist()
        similar = [c for c in order if c != chosen][:2]
        contrasts = [logits[chosen] - 0.7 * logits[c] for c in similar]
        shares = logits[similar].softmax(0) if weighting == "softmax" else torch.full((2,), 0.5)
        score = sum(share * each for share, each in zip(shares, contrasts, strict=True))
        (gradient,) = torch.autograd.grad(score, a)
        expected = np.zeros(a.shape[2:])
        for k in range(a.shape[1]):
            expected += float(gradient[0, k].mean()) * a[0, k].detach().numpy()
        assert found[row].numpy() == pytest.approx(positive(expected), rel=1e-8, abs=1e-12)


def test_finer_cam_of_nothing_taken_away_is_grad_cam(model: nn.Module, images: Tensor) -> None:
    finer = explain(model, images, "finercam", TARGETS, layers="conv2", alpha=0.0).raw
    torch.testing.assert_close(finer, explain(model, images, "gradcam", TARGETS, "conv2").raw)


# Smooth Grad-CAM++.


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The noise that the method is made to use: ``(samples, C, H, W)``."""
    table = draw(0x1B, 5, 3, 8, 10)
    monkeypatch.setattr(Runner, "noise", lambda _runner, v, _shape=None: table[v])
    return table


@pytest.mark.parametrize(("numerator", "index"), [("first", 0), ("second", 1)])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_smooth_grad_cam_plus_plus_is_the_papers_formula(
    numerator: str,
    index: int,
    batch_size: int | None,
    model: nn.Module,
    images: Tensor,
    noise: Tensor,
) -> None:
    found = explain(
        model,
        images,
        "smooth_gradcam++",
        TARGETS,
        layers="conv2",
        batch_size=batch_size,
        samples=5,
        noise=0.2,
        numerator=numerator,
    ).raw
    clean = below(model, images).numpy()
    for row, (n, chosen) in enumerate(rows(TARGETS)):
        spread = 0.2 * float(images[n].max() - images[n].min())
        sums = [np.zeros(clean.shape[1:]) for _ in range(3)]
        for sample in range(5):
            a = below(model, images[n : n + 1] + spread * noise[sample]).requires_grad_()
            score = above(model, a)[0, chosen]
            g = torch.autograd.grad(score, a)[0][0].numpy()
            for power in range(3):
                sums[power] += math.exp(float(score)) * g ** (power + 1) / 5
        expected = np.zeros(clean.shape[2:])
        for k in range(clean.shape[1]):
            denominator = 2 * sums[1][k] + clean[n, k].sum() * sums[2][k]
            alpha = np.divide(
                sums[index][k],
                denominator,
                out=np.zeros_like(denominator),
                where=denominator != 0,
            )
            expected += (alpha * np.maximum(sums[0][k], 0)).sum() * clean[n, k]
        # The average of exp(S) is divided out, and with "first" so is the map's scale.
        ours, theirs = found[row].numpy(), positive(expected)
        assert theirs.max() > 0
        assert ours / ours.max() == pytest.approx(theirs / theirs.max(), rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
def test_scores_that_exp_cannot_hold_change_nothing(
    shift: float, model: nn.Module, images: Tensor, noise: Tensor
) -> None:
    expected = explain(model, images, "smooth_gradcam++", 1, "conv2", samples=5).raw
    with torch.no_grad():
        model.fc.bias.add_(shift)
    found = explain(model, images, "smooth_gradcam++", 1, "conv2", samples=5, batch_size=2).raw
    assert expected.any()
    # Beside so large a score, that many digits of the differences are left.
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_smooth_grad_cam_plus_plus_without_noise_is_grad_cam_plus_plus(
    model: nn.Module, images: Tensor
) -> None:
    options: dict[str, Any] = {"samples": 3, "noise": 0.0, "numerator": "second"}
    found = explain(model, images, "smooth_gradcam++", TARGETS, "conv2", **options).raw
    torch.testing.assert_close(found, explain(model, images, "gradcam++", TARGETS, "conv2").raw)


# The baseline.


def test_random_maps_depend_on_image_and_seed_alone(make_cnn: MakeCNN, images: Tensor) -> None:
    first = explain(make_cnn(1).double(), images, "random", layers="conv2").raw
    other = explain(make_cnn(2).double(), images, "random", 3, layers="conv2").raw
    assert torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    alone = explain(make_cnn(1).double(), images[1:], "random", layers="conv2").raw
    assert torch.equal(alone, first[1:])
    changed = images.clone()
    changed[0, 0, 0, 0] += 1e-9
    moved = explain(make_cnn(1).double(), changed, "random", layers="conv2").raw
    assert not torch.equal(moved[0], first[0])
    assert torch.equal(moved[1], first[1])
    seeded = explain(make_cnn(1).double(), images, "random", layers="conv2", seed=1).raw
    assert not torch.equal(seeded, first)


def test_random_maps_are_even_between_0_and_1(make_cnn: MakeCNN) -> None:
    many = torch.rand(40, 3, 24, 24)
    values = explain(make_cnn(1), many, "random", layers="conv2").raw.flatten()
    counts = torch.histc(values, 10, 0, 1) / len(values)
    assert torch.allclose(counts, torch.tensor(0.1), atol=0.02)


def test_random_weights_of_channels(model: nn.Module, images: Tensor) -> None:
    found = explain(model, images, "random", layers="conv2", over="channels").raw
    activations = below(model, images)
    for n in range(2):
        # The map is a sum of channels: nothing is left of it beside what they span.
        channels = activations[n].flatten(1).T
        weights = torch.linalg.lstsq(channels, found[n].flatten()[:, None]).solution
        torch.testing.assert_close(channels @ weights, found[n].flatten()[:, None])
        assert weights.abs().max() <= 1


# All of them.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [{"batch_size": 1}, {"batch_size": 3}, {"memory": "300KiB"}])
def test_batches_change_nothing(
    method: str, budget: dict[str, Any], make_cnn: MakeCNN, images: Tensor
) -> None:
    model, many = make_cnn(3).double(), draw(0x1C, 5, 3, 12, 12)
    options = {"samples": 4} if method == "smooth_gradcam++" else {}
    targets = [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]
    expected = explain(model, many, method, targets, layers="conv2", **options)
    found = explain(model, many, method, targets, layers="conv2", **budget, **options)
    assert expected.raw.shape == (10, 6, 6)
    torch.testing.assert_close(found.raw, expected.raw)
    torch.testing.assert_close(found.scores, expected.scores)


@pytest.mark.parametrize("method", METHODS[:3])
def test_tokens_are_maps_too(method: str) -> None:
    """A mixer of tokens ``(N, T, K)``, and the same network with its tokens laid out."""

    class Tokens(nn.Module):
        def __init__(self, conv: nn.Conv2d, rest: nn.Module, head: nn.Linear) -> None:
            super().__init__()
            self.patches, self.block, self.head = conv, rest, head

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.block(tokens).tanh().mean(1))

    class Maps(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            weight, bias = self.block.weight[:, :, None, None], self.block.bias
            return self.head(self.convolved(F.conv2d(self.patches(x), weight, bias)))

        def convolved(self, x: Tensor) -> Tensor:
            return self.named(x).tanh().mean((2, 3))

    torch.manual_seed(0x1D)
    conv, block, head = nn.Conv2d(3, 5, 4, stride=4), nn.Linear(5, 6), nn.Linear(6, 4)
    tokens = Tokens(conv, block, head).double().eval()
    maps = Maps(conv, block, head).double().eval()
    maps.named = nn.Identity()
    images = draw(0x1E, 2, 3, 16, 12)
    found = explain(tokens, images, method, [2, 1], layers="block").raw
    expected = explain(maps, images, method, [2, 1], layers="named").raw
    assert found.shape == (2, 4, 3)
    assert found.any()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("finercam", {"count": 0}, "there are 5 classes and 0 of them to compare with"),
        ("finercam", {"weighting": "meen"}, "no weighting 'meen'; .*'mean'"),
        ("smooth_gradcam++", {"samples": 0}, "samples is 0; allowed is a whole number, 1 or more"),
        ("smooth_gradcam++", {"noise": float("nan")}, "noise is nan; allowed is a share"),
        ("smooth_gradcam++", {"numerator": "third"}, "no numerator 'third'; allowed are first"),
        ("random", {"seed": -1}, "seed is -1; allowed is a whole number, 0 or more"),
        ("random", {"over": "chanels"}, "over 'chanels'; .*'channels'"),
    ],
)
def test_options_that_cannot_be_used(
    method: str, options: dict[str, Any], message: str, model: nn.Module, images: Tensor
) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(model, images, method, layers="conv2", **options)


@pytest.mark.parametrize("method", ["shapleycam", "finercam", "cam"])
def test_what_explains_classes_refuses_functions(
    method: str, model: nn.Module, images: Tensor
) -> None:
    with pytest.raises(FedgazeError, match=f"{method} explains "):
        explain(model, images, method, lambda logits: logits[:, 0].exp(), layers="relu")
