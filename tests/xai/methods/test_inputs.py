"""Methods that judge each number of an image by gradients."""

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
from fedgaze.xai import explain
from fedgaze.xai.memory import peak_bytes
from fedgaze.xai.methods.paths import baseline_of, blurred, quadrature
from fedgaze.xai.runner import Runner

Array = NDArray[np.float64]
MakeCNN = Callable[..., nn.Module]

METHODS = ("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "vargrad")
CLASSES = [2, 0]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def smooth() -> nn.Module:
    """A network with curvature everywhere, which the truths below know as a formula."""
    torch.manual_seed(0xB0)
    layers = nn.Flatten(), nn.Linear(24, 7), nn.Tanh(), nn.Linear(7, 3)
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def images() -> Tensor:
    return draw(0xB1, 2, 2, 3, 4)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Array:
    """The noise that all methods are made to use: ``(samples, C, H, W)``."""
    rows = draw(0xB2, 4, 2, 3, 4)
    monkeypatch.setattr(Runner, "noise", lambda runner, v: rows[v].to(runner.images.dtype))
    return rows.numpy()


# The papers' formulas, in float64 loops.


class Truth:
    """The smooth network, for one image and class, in NumPy."""

    def __init__(self, model: nn.Module, chosen: int) -> None:
        w1, b1, w2, b2 = (each.detach().numpy() for each in model.parameters())
        self.w1, self.b1, self.w2, self.b2 = w1, b1, w2[chosen], b2[chosen]

    def score(self, x: Array) -> float:
        return float(self.w2 @ np.tanh(self.w1 @ x.ravel() + self.b1) + self.b2)

    def gradient(self, x: Array) -> Array:
        found = np.zeros(x.size)
        for unit in range(len(self.w2)):
            value = np.tanh(self.w1[unit] @ x.ravel() + self.b1[unit])
            found += self.w2[unit] * (1 - value**2) * self.w1[unit]
        return found.reshape(x.shape)


def paper(method: str, truth: Truth, x: Array, noise: Array) -> Array:
    spread = 0.15 * (x.max() - x.min())
    gradients = [truth.gradient(x + spread * each) for each in noise]
    mean = sum(gradients) / len(gradients)
    if method == "saliency":
        return truth.gradient(x)
    if method == "input_x_gradient":
        return x * truth.gradient(x)
    if method == "smoothgrad":
        return mean
    if method == "vargrad":
        return sum((each - mean) ** 2 for each in gradients) / len(gradients)
    total = np.zeros_like(x)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    for node, weight in zip(nodes, weights, strict=True):
        total += weight / 2 * truth.gradient((node + 1) / 2 * x)
    return x * total


OPTIONS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 5},
    "smoothgrad": {"samples": 4},
    "vargrad": {"samples": 4},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_attributions_are_the_papers_formula(
    method: str, batch_size: int | None, smooth: nn.Module, images: Tensor, table: Array
) -> None:
    options = OPTIONS.get(method, {})
    found = explain(smooth, images, method, CLASSES, batch_size=batch_size, **options)
    for row, image, chosen in zip(range(2), images.numpy(), CLASSES, strict=True):
        expected = paper(method, Truth(smooth, chosen), image, table)
        assert found.attributions[row].numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        signed = method in {"input_x_gradient", "integrated_gradients"}
        map_ = expected.sum(0) if signed else np.abs(expected).max(0)
        assert found.raw[row].numpy() == pytest.approx(map_, rel=1e-9, abs=1e-12)


def test_integrated_gradients_by_hand() -> None:
    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x**2).flatten(1).sum(1, keepdim=True).expand(-1, 2)

    image = torch.tensor([[[[3.0, -1.0]]]])

    def found(steps: int, rule: str, baseline: float = 0.0) -> list[float]:
        options = {"steps": steps, "rule": rule, "baseline": baseline}
        explanation = explain(Squares(), image, "integrated_gradients", 0, **options)
        return explanation.raw.flatten().tolist()

    # The gradient 2x is a line: x² - x'², exactly, by a single node in the middle.
    assert found(1, "gausslegendre") == pytest.approx([9.0, 1.0])
    assert found(2, "trapezoid") == pytest.approx([9.0, 1.0])
    assert found(2, "gausslegendre", 1.0) == pytest.approx([8.0, 0.0])
    # x (2x/2 + 2x) / 2 = 1.5 x²: half a step too much.
    assert found(2, "riemann_right") == pytest.approx([13.5, 1.5])


def test_var_grad_keeps_what_is_small_beside_its_mean() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (1e4 * x + x**2 / 2).flatten(1)[:, :2]  # gradients 10,000 + x

    image = torch.tensor([[[[0.0, 1.0]]]])
    found = explain(Steep(), image, "vargrad", 0, samples=200, noise=1.0).raw
    # As the noise is one, its variance is, and float32 holds 10,000 to about 0.001.
    assert found[0, 0, 0] == pytest.approx(1.0, abs=0.25)
    assert found[0, 0, 1] == 0


# Sums in place of integrals.


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 40), data=st.data())
def test_gauss_legendre_is_exact_for_polynomials(count: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(0, 2 * count - 1))
    nodes, weights = quadrature("gausslegendre", count)
    assert float((weights * nodes**degree).sum()) == pytest.approx(1 / (degree + 1), rel=1e-10)
    expected = np.polynomial.legendre.leggauss(count)
    assert nodes.numpy() == pytest.approx((expected[0] + 1) / 2, abs=1e-12)
    assert weights.numpy() == pytest.approx(expected[1] / 2, abs=1e-12)


@pytest.mark.parametrize("rule", ["gausslegendre", "trapezoid", "riemann_right"])
def test_all_rules_come_to_the_integral(rule: str) -> None:
    nodes, weights = quadrature(rule, 500)
    assert float(weights.sum()) == pytest.approx(1)
    assert float((weights * nodes.exp()).sum()) == pytest.approx(np.e - 1, rel=2e-3)


# Baselines.


def test_baselines_are_numbers_tensors_means_and_blurs(images: Tensor) -> None:
    from scipy.ndimage import gaussian_filter

    assert torch.equal(baseline_of(images, -0.5), torch.full_like(images, -0.5))
    own = torch.arange(2.0)[:, None, None]
    assert torch.equal(baseline_of(images, own), own.double().expand_as(images))
    means = images.mean((2, 3))
    assert torch.allclose(baseline_of(images, "mean")[:, :, 1, 2], means)
    large = draw(0xB3, 2, 3, 32, 20)
    found = baseline_of(large, "blur")
    for n in range(2):
        for c in range(3):
            expected = gaussian_filter(
                large[n, c].numpy(), (2, 1.25), mode="nearest", truncate=3, radius=(6, 4)
            )
            assert found[n, c].numpy() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(blurred(torch.full((1, 2, 4, 5, 6), 3.0)), torch.tensor(3.0))


@pytest.mark.parametrize("baseline", [0.3, "mean", "blur", torch.ones(2, 1, 4)])
def test_integrated_gradients_add_up_from_any_baseline(
    baseline: Any, smooth: nn.Module, images: Tensor
) -> None:
    found = explain(
        smooth, images, "integrated_gradients", CLASSES, steps=30, baseline=baseline
    ).raw
    origin = baseline_of(images, baseline)
    for row, chosen in enumerate(CLASSES):
        truth = Truth(smooth, chosen)
        expected = truth.score(images[row].numpy()) - truth.score(origin[row].numpy())
        assert float(found[row].sum()) == pytest.approx(expected, rel=1e-8)


# What cannot be used.


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated_gradients", {"steps": 0}, "steps is 0; allowed is a whole number, 1 or more"),
        ("integrated_gradients", {"steps": 2.5}, "steps is 2.5; allowed is a whole number"),
        (
            "integrated_gradients",
            {"steps": 1, "rule": "trapezoid"},
            "steps is 1; the trapezoid rule needs 2 or more",
        ),
        (
            "integrated_gradients",
            {"rule": "trapezoids"},
            "'trapezoids'; allowed are .* did you mean 'trapezoid'",
        ),
        (
            "integrated_gradients",
            {"baseline": "blurr"},
            "'blurr'; allowed are .* did you mean 'blur'",
        ),
        (
            "integrated_gradients",
            {"baseline": torch.zeros(5, 3, 4)},
            r"shape \(5, 3, 4\); allowed is what broadcasts to \(2, 3, 4\)",
        ),
        ("integrated_gradients", {"baseline": None}, "baseline is None; allowed are a number"),
        (
            "integrated_gradients",
            {"baseline": float("nan")},
            "baseline is nan; allowed is a finite",
        ),
        ("smoothgrad", {"samples": True}, "samples is True; allowed is a whole number"),
        ("smoothgrad", {"noise": -0.1}, "noise is -0.1; allowed is a share"),
        ("smoothgrad", {"noise": float("inf")}, "noise is inf; allowed is a share"),
        ("vargrad", {"samples": 1}, "samples is 1; allowed is a whole number, 2 or more"),
    ],
)
def test_options_that_cannot_be_used(
    method: str, options: dict[str, Any], message: str, smooth: nn.Module, images: Tensor
) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(smooth, images, method, **options)


def test_a_score_without_gradients_at_the_image_is_refused(images: Tensor) -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)

    with pytest.raises(FedgazeError, match="does not depend on the image in a way"):
        explain(Blind(), images, "saliency")


# Maps to train with.


@pytest.mark.parametrize("method", METHODS[:4])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_losses_on_maps_reach_the_weights_and_images(
    method: str, batch_size: int | None, smooth: nn.Module, images: Tensor
) -> None:
    images.requires_grad_()
    leaves = [*smooth.parameters(), images]
    factors = draw(0xB4, 2, 3, 4)
    options = OPTIONS.get(method, {})

    def loss() -> Tensor:
        explanation = explain(
            smooth, images, method, CLASSES, batch_size=batch_size, differentiable=True, **options
        )
        return (explanation.raw * factors).sum() + explanation.heatmaps.pow(2).sum()

    assert all(each.grad is None for each in leaves)
    found = torch.autograd.grad(loss(), leaves, allow_unused=True)
    # The range of an image, by which noise is scaled, counts as a constant: the smallest and the
    # greatest number stay as they are.
    flat = images.detach().flatten(1)
    ends = torch.zeros_like(flat)
    ends.scatter_(1, torch.stack([flat.argmin(1), flat.argmax(1)], 1), 1.0)
    directions = [draw(0xB5 + each, *leaf.shape) for each, leaf in enumerate(leaves)]
    directions[-1] *= 1 - ends.view_as(images)
    size = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(direction, alpha=sign * size)
        values.append(float(loss().detach()))
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.sub_(direction, alpha=sign * size)
    slope = sum(
        float((g * direction).sum())
        for g, direction in zip(found, directions, strict=True)
        if g is not None
    )
    assert slope == pytest.approx((values[0] - values[1]) / (2 * size), rel=1e-5)
    assert abs(slope) > 1e-3
    assert found[0] is not None
    # The bias of the logits moves no gradient.
    assert found[3] is None or not found[3].any()


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_no_graph_unless_asked(method: str, smooth: nn.Module, images: Tensor) -> None:
    images.requires_grad_()
    found = explain(smooth, images, method, **OPTIONS.get(method, {}))
    assert not found.raw.requires_grad
    assert not found.attributions.requires_grad
    assert images.grad is None
    assert all(each.grad is None and each.requires_grad for each in smooth.parameters())


# Peers.


@pytest.mark.parametrize("rule", ["gausslegendre", "riemann_right"])
def test_integrated_gradients_are_those_of_captum(rule: str, make_cnn: MakeCNN) -> None:
    from captum.attr import IntegratedGradients

    model, photographs, classes = make_cnn(3), torch.randn(3, 3, 12, 10), torch.tensor([1, 4, 0])
    baseline = torch.full_like(photographs, 0.2)
    expected = IntegratedGradients(model).attribute(
        photographs, baseline, target=classes, n_steps=12, method=rule
    )
    options = {"steps": 12, "baseline": 0.2, "rule": rule}
    found = explain(model, photographs, "integrated_gradients", classes, **options)
    peak = float(expected.abs().max())
    torch.testing.assert_close(found.attributions, expected.float(), rtol=1e-4, atol=1e-5 * peak)


@pytest.mark.parametrize(
    ("method", "peer"), [("saliency", "Saliency"), ("input_x_gradient", "InputXGradient")]
)
def test_gradients_are_those_of_captum(method: str, peer: str, make_cnn: MakeCNN) -> None:
    import captum.attr

    model, photographs, classes = make_cnn(4), torch.randn(3, 3, 12, 10), torch.tensor([1, 4, 0])
    options = {"abs": False} if method == "saliency" else {}
    made = getattr(captum.attr, peer)(model)
    expected = made.attribute(photographs.clone(), target=classes, **options)
    found = explain(model, photographs, method, classes)
    torch.testing.assert_close(found.attributions, expected.detach(), rtol=1e-5, atol=1e-7)


def test_smooth_grad_and_var_grad_come_to_captums(smooth: nn.Module, images: Tensor) -> None:
    from captum.attr import NoiseTunnel, Saliency

    # Different noise, so only as near as chance allows; stdevs are not shares of the range.
    options = {"samples": 1500, "noise": 0.15}
    image = images[:1]
    spread = 0.15 * float(image.max() - image.min())
    for method, kind in (("smoothgrad", "smoothgrad"), ("vargrad", "vargrad")):
        torch.manual_seed(0xB6)
        expected = NoiseTunnel(Saliency(smooth)).attribute(
            image, kind, nt_samples=1500, stdevs=spread, target=1, abs=False
        )
        found = explain(smooth, image, method, 1, **options).attributions
        assert float((found - expected).norm() / expected.norm()) < 0.15


# What holds for all of them.


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_are_those_one_by_one(
    method: str, smooth: nn.Module, images: Tensor
) -> None:
    options = OPTIONS.get(method, {})
    several = explain(smooth, images, method, [[0, 2], [1, 0]], **options).attributions
    first = explain(smooth, images, method, [0, 1], **options).attributions
    second = explain(smooth, images, method, [2, 0], **options).attributions
    assert torch.allclose(several, torch.stack([first, second], 1).flatten(0, 1))


@pytest.mark.parametrize("method", METHODS)
def test_volumes_are_explained_as_images_are(method: str) -> None:
    torch.manual_seed(0xB7)
    model = nn.Sequential(
        nn.Conv3d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 60, 3)
    ).double()
    volumes = draw(0xB8, 2, 2, 3, 4, 5)
    options = dict.fromkeys(OPTIONS.get(method, {}), 4)
    found = explain(model, volumes, method, 1, **options)
    assert found.attributions.shape == volumes.shape
    assert found.heatmaps.shape == (2, 3, 4, 5)
    alone = explain(model, volumes[1:], method, 1, **options)
    assert torch.allclose(found.attributions[1:], alone.attributions)
    assert found.attributions.abs().max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_models_have_maps_in_float32(
    method: str, smooth: nn.Module, images: Tensor, table: Array
) -> None:
    options = OPTIONS.get(method, {})
    expected = explain(smooth, images, method, 1, **options).attributions
    found = explain(smooth.bfloat16(), images, method, 1, **options).attributions
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad", "vargrad"])
def test_memory_is_bounded_however_many_images_and_steps(method: str, make_cnn: MakeCNN) -> None:
    model, photographs = make_cnn(6), torch.randn(12, 3, 40, 40)
    budget = 2 * 2**20
    option = next(iter(OPTIONS[method]))

    def peak(images: Tensor, steps: int) -> int:
        run = {option: steps, "memory": budget}
        return peak_bytes(lambda: explain(model, images, method, 1, **run))

    sizes = [peak(photographs[:count], steps) for count, steps in ((1, 40), (12, 10), (12, 40))]
    # Beside the budget there is what is kept for all images: some tensors of their size.
    for count, size in zip((1, 12, 12), sizes, strict=True):
        assert size <= budget + 12 * photographs[:count].nbytes
    assert sizes[2] <= 1.1 * sizes[1]
    # All variants at once would take many times as much.
    assert 5 * sizes[2] < peak_bytes(lambda: gradients_at_once(model, photographs, 40))


def gradients_at_once(model: nn.Module, images: Tensor, steps: int) -> Tensor:
    variants = images.repeat(steps, 1, 1, 1).requires_grad_()
    return torch.autograd.grad(model(variants)[:, 1].sum(), variants)[0]
