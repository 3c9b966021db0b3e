"""A budget of channels: what is foretold, and how near its map comes to that of all channels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgaze.xai import explain
from fedgaze.xai.methods.budget import Guess, foretold


def blobs(images: int, channels: int, side: int = 7, seed: int = 0xB1) -> Tensor:
    """Bumps of different width at different places."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.rand(images, channels, 2, 1, generator=generator) * side
    width = 1 + 2 * torch.rand(images, channels, 1, 1, generator=generator)
    at = torch.arange(side) + 0.5
    y, x = torch.exp(-(((at - middle) / width) ** 2)).unbind(2)
    return y[..., None] * x[..., None, :]


def unit(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low)


class Judge:
    """Gives scores that are known, and remembers what it was asked for."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.asked: list[Tensor] = []

    def __call__(self, index: Tensor) -> Tensor:
        self.asked.append(index)
        return self.scores.gather(2, index[:, None].expand(-1, self.scores.shape[1], -1))


def scores_of(maps: Tensor, targets: int = 1) -> Tensor:
    """A score that grows with how much of the image's middle a mask keeps."""
    keep = torch.zeros(targets, *maps.shape[2:])
    for target in range(targets):
        keep[target, 1 + target : 5 + target, 2:5] = 1
    return 9 * (torch.einsum("nkyx,syx->nsk", unit(maps), keep) / 12).sqrt()


def test_the_guess_is_the_regression_of_a_gaussian_process() -> None:
    masks = blobs(1, 30).double().flatten(2)
    index = torch.tensor([[3, 8, 14, 20, 29]])
    scores = torch.tensor([[[2.0, 3.0, 1.0, 5.0, 4.0]]], dtype=torch.float64)
    found = Guess.of(masks, torch.ones(1, 30, dtype=torch.bool), index, scores)
    # Rasmussen and Williams, Eq. 2.25 and 2.26, in plain loops.
    x, seen = masks[0].numpy(), index[0].tolist()
    distance = np.array([[np.sqrt(((x[a] - x[b]) ** 2).sum()) for b in seen] for a in range(30)])
    length = distance.mean()
    near = np.exp(-(distance**2) / (2 * length**2))
    inverse = np.linalg.inv(near[seen] + 0.01 * np.eye(5))
    y = scores[0, 0].numpy()
    mean = y.mean() + near @ inverse @ (y - y.mean())
    deviation = y.std() * np.sqrt(1 - np.array([row @ inverse @ row for row in near]))
    assert found.mean[0, 0].numpy() == pytest.approx(mean, rel=1e-6)
    assert found.deviation[0, 0].numpy() == pytest.approx(deviation, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("budget", [8, 13, 24])
def test_as_many_channels_are_judged_as_the_budget_says_and_stay_what_they_are(
    budget: int,
) -> None:
    maps = blobs(2, 150)
    judge = Judge(scores_of(maps))
    live = torch.ones(2, 150, dtype=torch.bool)
    found = foretold(maps, live, judge, budget)
    asked = torch.cat(judge.asked, 1)
    assert asked.shape == (2, budget)
    assert all(len(set(row)) == budget for row in asked.tolist())
    index = asked[:, None]
    assert torch.equal(found.gather(2, index), judge.scores.gather(2, index))


def test_a_tenth_of_the_channels_tells_the_softmax_of_all() -> None:
    maps = blobs(4, 300)
    judge = Judge(3 * scores_of(maps, targets=2))
    found = foretold(maps, torch.ones(4, 300, dtype=torch.bool), judge, 40)
    exact, near = judge.scores.softmax(2), found.softmax(2)
    one = torch.einsum("nsk,nkyx->nsyx", exact, maps).flatten(0, 1).flatten(1)
    two = torch.einsum("nsk,nkyx->nsyx", near, maps).flatten(0, 1).flatten(1)
    for left, right in zip(one, two, strict=True):
        assert float(torch.corrcoef(torch.stack([left, right]))[0, 1]) > 0.98
    # Equal shares, which is what it would be without a look at the scores, are far from it.
    even = maps.mean(1).flatten(1)
    assert (
        min(
            float(torch.corrcoef(torch.stack([left, even[row // 2]]))[0, 1])
            for row, left in enumerate(one)
        )
        < 0.95
    )


def test_channels_without_a_mask_are_not_judged_and_do_not_count() -> None:
    maps = blobs(2, 80)
    live = torch.ones(2, 80, dtype=torch.bool)
    live[0, ::2] = False
    judge = Judge(scores_of(maps).masked_fill(~live[:, None], 1e6))
    found = foretold(maps.where(live[..., None, None], torch.tensor(0.0)), live, judge, 16)
    asked = torch.cat(judge.asked, 1)
    assert bool(live.gather(1, asked).all())
    assert float(found.masked_fill(~live[:, None], 0).abs().max()) < 20


def test_images_with_fewer_masks_than_the_budget_are_exact_and_finite() -> None:
    maps = blobs(2, 40)
    live = torch.ones(2, 40, dtype=torch.bool)
    live[1, 5:] = False
    judge = Judge(scores_of(maps))
    found = foretold(maps.where(live[..., None, None], torch.tensor(0.0)), live, judge, 20)
    assert bool(found.isfinite().all())
    assert torch.equal(found[1, :, :5], judge.scores[1, :, :5])


def test_each_image_is_treated_alone_and_alike() -> None:
    maps = blobs(3, 90)
    live = torch.ones(3, 90, dtype=torch.bool)
    scores = scores_of(maps)
    together = foretold(maps, live, Judge(scores), 16)
    again = foretold(maps, live, Judge(scores), 16)
    assert torch.equal(together, again)
    alone = foretold(maps[1:2], live[1:2], Judge(scores[1:2]), 16)
    assert torch.allclose(alone[0], together[1], atol=1e-4)


def test_a_budget_for_all_channels_is_the_method_as_it_stands(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(20), pictures()
    exact = explain(model, images, "scorecam", 1, "last").raw
    assert torch.equal(explain(model, images, "scorecam", 1, "last", channels=20).raw, exact)


@pytest.mark.parametrize(("method", "each"), [("scorecam", 1), ("sscam", 3), ("iscam", 9)])
def test_the_model_runs_no_more_than_the_budget_says(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    method: str,
    each: int,
) -> None:
    model, images = staged(40), pictures()
    rows = 0

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    options: dict[str, Any] = {"samples": 3} if method == "sscam" else {}
    with model.first.register_forward_pre_hook(count):
        explain(model, images, method, 1, "last", channels=10, batch_size=64, **options)
    assert rows == 2 + 2 * 10 * each


@pytest.mark.slow
def test_on_photographs_a_twentieth_of_the_channels_keeps_the_order_of_the_map(
    real_data: Path,
) -> None:
    from PIL import Image
    from safetensors.torch import load_file
    from scipy.stats import spearmanr
    from torchvision.models import squeezenet1_1

    from fedgaze.models import IMAGENET

    model = squeezenet1_1()
    model.load_state_dict(load_file(real_data / "weights" / "squeezenet1_1_imagenet.safetensors"))
    files = sorted((real_data / "photos" / "imagenet").glob("*.JPEG"))[3::20]
    found = []
    for file in files:
        picture = Image.open(file).convert("RGB")
        image = IMAGENET.tensor(IMAGENET.view(picture))[None]
        maps = [
            explain(model, image, "scorecam", layers="features", precision="fast", channels=each)
            for each in (None, 25)
        ]
        found.append(spearmanr(*(each.heatmaps.flatten().numpy() for each in maps)).statistic)
    assert np.median(found) >= 0.95
