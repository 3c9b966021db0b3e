"""RISE, beside the sum over its masks, and what that sum tends to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain
from fedgaze.xai.methods.rise import RandomMasks


@pytest.mark.parametrize("probability", [True, False])
def test_rise_is_the_papers_sum_over_its_masks(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], probability: bool
) -> None:
    model, images, count, keep = staged(), pictures(), 90, 0.4
    found = explain(
        model, images, "rise", [1, 2], masks=count, cells=3, keep=keep, probability=probability
    ).raw.numpy()
    made = RandomMasks(count, 3, keep, (8, 10), torch.Generator().manual_seed(0xFED6))
    for raw, image, label in zip(found, images, [1, 2], strict=True):
        expected = np.zeros((8, 10))
        for i in range(count):
            mask = made(torch.tensor([i]))[0].double()
            logits = model((image * mask)[None])[0].detach()
            score = logits.softmax(0)[label] if probability else logits[label]
            expected += float(score) * mask.numpy() / (keep * count)
        assert raw == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_what_is_found_tends_to_the_mean_score_of_masks_that_keep_a_pixel() -> None:
    # The score is the mask's value at one pixel, whatever the others are. So the expectation of
    # f M / p at that pixel is E[M^2] / p, and p where no cell reaches both.
    class Pixel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0, 2, 2][:, None]

    image = torch.ones(1, 1, 16, 16)
    found = explain(
        Pixel(), image, "rise", lambda out: out[:, 0], masks=4000, cells=4, keep=0.5
    ).raw[0]
    # Far away: p, with a standard error of 0.01.
    assert float(found[13, 13]) == pytest.approx(0.5, abs=0.05)
    assert float(found[2, 2]) > 0.65


def test_a_score_that_never_changes_is_found_evenly_everywhere() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x[:, 0, 0])

    found = explain(Same(), torch.rand(1, 1, 12, 12), "rise", lambda out: out[:, 0], masks=4000)
    assert float((found.raw - 1).abs().max()) < 0.08


def test_the_seed_decides_and_the_batch_does_not(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(), pictures(3)
    options: dict[str, Any] = {"masks": 70, "cells": 3}
    first = explain(model, images, "rise", 1, **options).raw
    torch.manual_seed(1)
    assert torch.equal(explain(model, images, "rise", 1, **options).raw, first)
    cut = explain(model, images, "rise", 1, batch_size=4, **options).raw
    assert torch.allclose(cut, first, rtol=1e-9)
    alone = explain(model, images[1:2], "rise", 1, **options).raw
    assert torch.allclose(alone[0], first[1], rtol=1e-9)
    other = explain(model, images, "rise", 1, seed=1, **options).raw
    assert not torch.allclose(other, first, rtol=1e-3)


def test_the_random_state_of_the_caller_is_not_touched(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(), pictures()
    before = torch.get_rng_state()
    explain(model, images, "rise", 0, masks=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masks": 0}, "masks is 0"),
        ({"cells": 0}, "cells is 0"),
        ({"keep": 0.0}, "keep is 0.0; allowed is a probability above 0"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(FedgazeError, match=said):
        explain(staged(), pictures(), "rise", 0, **options)
