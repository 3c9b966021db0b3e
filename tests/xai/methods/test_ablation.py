"""Ablation-CAM, beside a loop that sets each channel to zero."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze.xai import explain

Array = NDArray[np.float64]


def ablated(model: nn.Module, layer: nn.Module, image: Tensor, label: int) -> Array:
    """The map of one image by the paper's fraction, over the size of the score."""
    kept: list[Tensor] = []
    off: list[int] = []

    def hook(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        kept.append(out.clone())
        changed = out.clone()
        changed[:, off] = 0
        return changed

    with torch.no_grad(), layer.register_forward_hook(hook):
        whole = float(model(image[None])[0, label])
        activations = kept[0][0].numpy()
        found = np.zeros(activations.shape[1:])
        for k, channel in enumerate(activations):
            off[:] = [k]
            without = float(model(image[None])[0, label])
            found += (whole - without) / abs(whole) * channel
    return found


@pytest.mark.parametrize("layer", ["first", "last", "last.0"])
def test_ablation_cam_is_the_papers_sum(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], layer: str
) -> None:
    model, images = staged(), pictures(3)
    module = model.get_submodule(layer)
    labels = [2, 0, 3]
    found = explain(model, images, "ablationcam", labels, module, relu=False).raw.numpy()
    signs = set()
    for raw, image, label in zip(found, images, labels, strict=True):
        assert raw == pytest.approx(ablated(model, module, image, label), rel=1e-8, abs=1e-12)
        signs.add(bool(model(image[None])[0, label] > 0))
    assert signs == {True, False}


def test_ablation_cam_worked_by_hand() -> None:
    # Channels [1, 3] and [2, 6]; the score is 1 * 4 + 0.5 * 8 = 8. Without the first it is 4, and
    # without the second too: weights of a half, and the map is [1.5, 4.5].
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 0.5, 0.5]]))
    image = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    found = explain(model, image, "ablationcam", lambda out: out[:, 0], model[0]).raw
    assert found.flatten().tolist() == [1.5, 4.5]


def test_a_score_of_zero_is_not_divided_by(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    found = explain(staged(), pictures(), "ablationcam", lambda out: out[:, 0] * 0, "last")
    assert not found.raw.any()
    assert "not_finite" not in found.flags[0]


def test_of_a_linear_head_the_map_is_that_of_class_activation_mapping() -> None:
    # y - y_k is w_k times the channel's mean: the weights are those of CAM times the mean.
    torch.manual_seed(6)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    ).double()
    images = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    found = explain(model, images, "ablationcam", 3, model[1], relu=False)
    own = model[:2](images).detach()
    weights = model[4].weight[3].detach() * own.mean((2, 3)) / model(images)[:, 3:].abs().detach()
    assert torch.allclose(found.raw, torch.einsum("nk,nkyx->nyx", weights, own))


def test_what_lies_below_the_layer_runs_once_a_chunk_and_what_lies_above_for_each_channel(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(12), pictures(2)
    below: list[int] = []
    above: list[int] = []
    with (
        model.first.register_forward_pre_hook(lambda _m, x: below.append(len(x[0]))),
        model.head.register_forward_pre_hook(lambda _m, x: above.append(len(x[0]))),
    ):
        explain(model, images, "ablationcam", 1, "last", batch_size=6)
    # The two images to be captured in one or more passes, then chunks of one image each.
    chunks = [rows for rows in above if rows > 2]
    assert sum(chunks) > 0
    assert max(below) <= 2
    assert max(above) == 6


def test_hundreds_of_channels_take_few_passes_without_a_graph() -> None:
    # Below the layer one image takes more than fifty ablated maps above it.
    below = nn.Sequential(nn.Conv2d(1, 64, 1), nn.Conv2d(64, 300, 1), nn.AdaptiveAvgPool2d(2))
    model = nn.Sequential(below, nn.Flatten(), nn.Linear(1200, 5)).eval()
    runs: list[bool] = []
    below.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    explain(model, torch.rand(1, 1, 128, 128), "ablationcam", 1, "0")
    assert len(runs) < 8
    assert not any(runs)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_batch_and_its_cutting_change_nothing(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], batch_size: int
) -> None:
    model, images = staged(12), pictures(3)
    whole = explain(model, images, "ablationcam", [0, 1, 2], "last").raw
    cut = explain(model, images, "ablationcam", [0, 1, 2], "last", batch_size=batch_size).raw
    assert torch.allclose(cut, whole, rtol=1e-9)
    alone = explain(model, images[1:2], "ablationcam", 1, "last").raw
    assert torch.allclose(alone[0], whole[1], rtol=1e-9)


class Joined(nn.Module):
    """What lies below the layer meets what lies above it, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        both = torch.cat([x, self.second(x)], 1)
        seen: Tensor = self.head(both.tanh().mean((2, 3)))
        return seen


def test_where_what_lies_below_goes_past_the_layer_the_map_is_the_same(
    pictures: Callable[..., Tensor],
) -> None:
    torch.manual_seed(7)
    model, images = Joined().double().eval(), pictures()
    found = explain(model, images, "ablationcam", [0, 2], "second", relu=False).raw.numpy()
    for raw, image, label in zip(found, images, [0, 2], strict=True):
        expected = ablated(model, model.second, image, label)
        assert raw == pytest.approx(expected, rel=1e-8, abs=1e-12)


class Twice(nn.Module):
    """One layer that runs two times."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.head(self.block(self.block(x)).mean((2, 3)))
        return seen


def test_of_a_layer_that_runs_twice_the_last_call_is_changed(
    pictures: Callable[..., Tensor],
) -> None:
    torch.manual_seed(8)
    model, images = Twice().double().eval(), pictures(1)
    found = explain(model, images, "ablationcam", 1, "block", relu=False)
    own = model.block(model.block(images)).detach()[0]
    weights = model.head.weight[1].detach() * own.mean((1, 2)) / model(images)[0, 1].abs().detach()
    assert torch.allclose(found.raw[0], torch.einsum("k,kyx->yx", weights, own))
    assert "last_of_2_calls" in found.flags[0]


def test_pytorch_grad_cam_says_the_same_after_a_relu(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = staged(6).float(), pictures(1).float()
    label = int(model(images)[0].argmax())  # whose score is above zero
    assert float(model(images)[0, label]) > 0
    raw = explain(model, images, "ablationcam", label, "first").raw[0]
    ours = ((raw - raw.min()) / (raw.max() - raw.min())).numpy()
    with peer.AblationCAM(model, [model.first]) as cam:
        theirs = cam(images, [ClassifierOutputTarget(label)])[0]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_activations_are_not_changed_in_place(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(), pictures()
    before, said = images.clone(), model(images).detach()
    explain(model, images, "ablationcam", 0, "first")
    assert torch.equal(images, before)
    assert torch.equal(model(images), said)
