"""Maps that can be trained with: second derivatives, and a map as a loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain, find_method, list_methods

# Of several layers' kinds, the weights' gradients of a sum of maps can be had by differences.
METHODS = ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam", "cam"]


class Smooth(nn.Module):
    """Curved everywhere, so that second derivatives are not zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.conv1, self.act1 = nn.Conv2d(1, 3, 3, padding=1), nn.Softplus()
        self.conv2, self.act2 = nn.Conv2d(3, 3, 3, padding=1), nn.Softplus()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.fc(self.pool(x).flatten(1))


def layer_of(method: str) -> str:
    # CAM explains the last layer only; Eigen-CAM does not look at what comes after its layer.
    return "act2" if method in {"cam", "eigencam"} else "act1"


def loss_of(model: nn.Module, images: Tensor, method: str, where: Tensor) -> Tensor:
    """How much of the map lies at some places."""
    found = explain(
        model, images, method, 1, layers=layer_of(method), relu=False, differentiable=True
    )
    return (found.raw * where).sum()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_to_weights_and_images_are_those_of_differences(method: str) -> None:
    model = Smooth().double()
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    where = torch.randn(2, 4, 4, dtype=torch.float64)
    loss = loss_of(model, images, method, where)
    weights = [model.conv1.weight, model.conv2.weight]
    found = torch.autograd.grad(loss, [images, *weights])
    step = 1e-5
    for tensor, gradient in zip([images, *weights], found, strict=True):
        flat = tensor.data.view(-1)
        for index in (0, len(flat) // 2, len(flat) - 1):
            before = flat[index].item()
            ends = []
            for moved in (before + step, before - step):
                flat[index] = moved
                ends.append(loss_of(model, images, method, where).item())
            flat[index] = before
            slope = (ends[0] - ends[1]) / (2 * step)
            assert gradient.reshape(-1)[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_heatmaps_pass_gradcheck() -> None:
    model = Smooth().double()
    images = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def heatmaps(x: Tensor) -> Tensor:
        options: dict[str, Any] = {"layers": "act1", "relu": False, "differentiable": True}
        return explain(model, x, targets=[[0, 1]], **options).heatmaps

    assert torch.autograd.gradcheck(heatmaps, (images,), atol=1e-4)


def test_a_model_learns_where_to_look() -> None:
    """It may look anywhere at first; a loss on the map draws it to the left half."""
    torch.manual_seed(2)
    model, images = Smooth().train(), torch.rand(8, 1, 8, 8)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)

    def share(differentiable: bool) -> Tensor:
        found = explain(model, images, "hirescam", 1, layers="act2", differentiable=differentiable)
        mass = found.heatmaps
        return mass[:, :, 4:].sum() / mass.sum().clamp_min(1e-6)

    images[:, :, :, :4] += 0.5
    first = float(share(False))
    for _ in range(30):
        optimiser.zero_grad()
        share(True).backward()
        assert all(p.grad is not None for p in (model.conv1.weight, model.conv2.weight))
        optimiser.step()
    assert float(share(False)) < 0.8 * first
    assert model.training


def test_scores_have_a_graph_only_where_it_is_asked_for() -> None:
    model, images = Smooth(), torch.rand(2, 1, 4, 4, requires_grad=True)
    for method in METHODS:
        plain = explain(model, images, method, 1, layers=layer_of(method))
        assert not plain.raw.requires_grad
        assert not plain.heatmaps.requires_grad
        graph = explain(model, images, method, 1, layers=layer_of(method), differentiable=True)
        assert graph.raw.requires_grad
        assert graph.heatmaps.requires_grad
        torch.testing.assert_close(graph.raw.detach(), plain.raw)
        assert images.grad is None
        assert all(p.grad is None for p in model.parameters())


def test_several_layers_batches_and_smoothing_keep_the_graph() -> None:
    model, images = Smooth(), torch.rand(3, 1, 4, 4)
    options: list[dict[str, Any]] = [
        {"layers": ["act1", "act2"], "fusion": "weighted"},
        {"layers": "act1", "batch_size": 2},
        {"layers": "act1", "smoothing": "augment"},
        {"layers": "act1", "smoothing": "eigen"},
    ]
    for more in options:
        found = explain(model, images, targets=[[0, 1]] * 3, differentiable=True, **more)
        (gradient,) = torch.autograd.grad(found.heatmaps.square().sum(), model.conv1.weight)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_a_flat_map_gives_no_nan_to_its_trainer() -> None:
    model, images = Smooth(), torch.zeros(2, 1, 4, 4)
    nn.init.zeros_(model.conv1.bias)
    nn.init.zeros_(model.conv2.weight)
    found = explain(model, images, targets=1, layers="act2", differentiable=True)
    found.heatmaps.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_cannot_be_trained_with_says_so() -> None:
    model, images = Smooth(), torch.rand(1, 1, 4, 4)
    for method in list_methods():
        if not method.differentiable:
            with pytest.raises(FedgazeError, match="cannot be trained with; allowed are gradcam"):
                explain(model, images, method, differentiable=True)
    assert not find_method("rise").differentiable
    with pytest.raises(FedgazeError, match="maps to train with need 'full'"):
        explain(model, images, differentiable=True, precision="fast")


def test_under_no_grad_a_graph_can_still_be_asked_for() -> None:
    model: Callable[..., Tensor] = Smooth()
    with torch.no_grad():
        found = explain(model, torch.rand(1, 1, 4, 4), layers="act1", differentiable=True)
    assert found.raw.requires_grad
