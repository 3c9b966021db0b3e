"""Occlusion, beside a loop over the windows and Captum."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain


def starts(length: int, window: int, stride: int) -> list[int]:
    found = [0]
    while found[-1] + window < length:
        found.append(found[-1] + stride)
    return found


@pytest.mark.parametrize(
    ("window", "stride", "baseline"), [((3, 4), (2, 3), 0.0), ((2, 2), (2, 2), 0.5), (5, 1, -1.0)]
)
def test_occlusion_is_the_mean_of_what_is_lost_behind_each_window(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    window: int | Sequence[int],
    stride: int | Sequence[int],
    baseline: float,
) -> None:
    model, images = staged(), pictures()
    found = explain(
        model, images, "occlusion", [3, 1], window=window, stride=stride, baseline=baseline
    ).raw.numpy()
    high, wide = (window, window) if isinstance(window, int) else window
    down, right = (stride, stride) if isinstance(stride, int) else stride
    for raw, image, label in zip(found, images, [3, 1], strict=True):
        lost, times = np.zeros((8, 10)), np.zeros((8, 10))
        whole = float(model(image[None]).softmax(1)[0, label])
        for y in starts(8, high, down):
            for x in starts(10, wide, right):
                covered = image.clone()
                covered[:, y : y + high, x : x + wide] = baseline
                fall = whole - float(model(covered[None]).softmax(1)[0, label])
                lost[y : y + high, x : x + wide] += fall
                times[y : y + high, x : x + wide] += 1
        assert raw == pytest.approx(lost / times, rel=1e-8, abs=1e-12)


def test_occlusion_worked_by_hand() -> None:
    # The score is 1 a + 2 b + 3 c + 4 d of the row [1, 1, 1, 2]. Windows of two, one step apart,
    # cost 3, 5 and 11: the pixels get 3, (3 + 5) / 2, (5 + 11) / 2 and 11.
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    image = torch.tensor([1.0, 1.0, 1.0, 2.0]).view(1, 1, 1, 4)
    found = explain(
        model, image, "occlusion", lambda out: out[:, 0], window=(1, 2), stride=1
    ).raw.flatten()
    assert found.tolist() == [3.0, 4.0, 8.0, 11.0]


@pytest.mark.parametrize(
    ("window", "stride"), [((3, 4), (2, 3)), ((2, 5), (1, 5)), ((8, 10), (1, 1)), ((3, 3), (3, 2))]
)
def test_captum_says_the_same(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    window: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    attr = pytest.importorskip("captum.attr")
    model, images = staged(), pictures()
    ours = explain(
        model, images, "occlusion", [0, 2], window=window, stride=stride, probability=False
    ).raw
    theirs = attr.Occlusion(model).attribute(
        images, (3, *window), (3, *stride), target=torch.tensor([0, 2])
    )
    # Captum adds up in float32.
    assert torch.allclose(ours.float(), theirs[:, 0], rtol=1e-4, atol=1e-5)


def test_a_baseline_may_be_an_image_or_a_colour(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(), pictures()
    itself = explain(model, images[:1], "occlusion", 1, baseline=images[0])
    assert not itself.raw.any()
    colour = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    spread = explain(model, images, "occlusion", 1, baseline=colour.expand(3, 8, 10)).raw
    assert torch.equal(explain(model, images, "occlusion", 1, baseline=colour).raw, spread)


def test_volumes_are_covered_by_boxes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 1, bias=False)).double()
    volume = torch.randn(1, 1, 2, 4, 4, dtype=torch.float64)
    found = explain(
        model, volume, "occlusion", lambda out: out[:, 0], window=(1, 2, 2), stride=(1, 2, 2)
    ).raw[0]
    product = (model[1].weight.detach().view(2, 4, 4) * volume[0, 0]).view(2, 2, 2, 2, 2)
    expected = product.sum((2, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(found, expected)


def test_the_batch_and_its_cutting_change_nothing(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(), pictures(3)
    labels = torch.tensor([[0, 3], [1, 2], [2, 0]])
    whole = explain(model, images, "occlusion", labels, window=3).raw
    cut = explain(model, images, "occlusion", labels, window=3, batch_size=4).raw
    assert torch.allclose(whole, cut, rtol=1e-9)
    alone = explain(model, images[1:2], "occlusion", 2, window=3).raw
    assert torch.allclose(alone[0], whole[3], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window is 0"),
        ({"window": 9}, "window is 9; allowed is 1 to 8"),
        ({"window": (3, 3, 3)}, "window has 3 numbers for 2 directions"),
        ({"window": 3, "stride": 4}, "stride is 4; allowed is 1 to 3"),
        ({"baseline": torch.zeros(2, 8, 10)}, r"baseline has the shape \(2, 8, 10\)"),
        ({"baseline": torch.zeros(1, 3, 8, 10)}, r"baseline has the shape \(1, 3, 8, 10\)"),
    ],
)
def test_what_cannot_be_is_refused(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(FedgazeError, match=said):
        explain(staged(), pictures(), "occlusion", 0, **options)
