"""Faithfulness against loops in NumPy, written from the papers, one image and pixel at a time."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze import measure
from fedgaze.errors import FedgazeError
from fedgaze.xai import Runner, open_runner

Array = NDArray[np.float64]
Says = Callable[[Array, int], float]
LABELS = (0, 3, 1)
BINS = (0.01, 0.05, 0.1, 0.2, 0.5)


def wide(tensor: Tensor) -> list[Array]:
    return list(tensor.double().numpy())


def replaced(image: Array, heat: Array, count: int, others: Array, *, ascending: bool) -> Array:
    """The image with so many pixels of another one, in the order of the heat."""
    order = sorted(np.ndindex(heat.shape), key=lambda place: heat[place], reverse=not ascending)
    made = image.copy()
    for row, column in order[:count]:
        made[:, row, column] = others[:, row, column]
    return made


def even(image: Array) -> Array:
    return np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape)


def curve(
    says: Says, image: Array, heat: Array, label: int, counts: Sequence[int], **how: bool
) -> list[float]:
    """Probabilities while pixels go (or, with ``insert``, come)."""
    insert, ascending = how.get("insert", False), how.get("ascending", False)
    first, second = (even(image), image) if insert else (image, even(image))
    return [
        says(replaced(first, heat, count, second, ascending=ascending), label) for count in counts
    ]


def each(images: Tensor, heatmaps: Tensor, work: Callable[..., float]) -> Tensor:
    found = [work(*one) for one in zip(wide(images), wide(heatmaps), LABELS, strict=True)]
    return torch.tensor(found, dtype=torch.float32)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def area(values: Sequence[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)


def test_deletion_and_insertion_are_areas_under_curves(
    runner: Runner, images: Tensor, heatmaps: Tensor, says: Says
) -> None:
    steps = range(0, 65, 8)
    for name, insert in (("deletion", False), ("insertion", True)):
        expected = each(
            images,
            heatmaps,
            lambda image, heat, label, insert=insert: area(
                curve(says, image, heat, label, steps, insert=insert)
            ),
        )
        same(getattr(measure, name)(runner, heatmaps, steps=8, baseline="mean"), expected)


def test_pixel_flipping_is_the_mean_fall(
    runner: Runner, images: Tensor, heatmaps: Tensor, says: Says
) -> None:
    def fall(image: Array, heat: Array, label: int) -> float:
        found = curve(says, image, heat, label, range(0, 65, 16))
        return sum(found[0] - value for value in found) / 5

    same(measure.pixel_flipping(runner, heatmaps, steps=4), each(images, heatmaps, fall))


def test_comprehensiveness_and_sufficiency_over_five_sizes(
    runner: Runner, images: Tensor, heatmaps: Tensor, says: Says
) -> None:
    counts = [max(1, round(share * 64)) for share in BINS]

    def without(image: Array, heat: Array, label: int) -> float:
        return says(image, label) - float(np.mean(curve(says, image, heat, label, counts)))

    def alone(image: Array, heat: Array, label: int) -> float:
        kept = curve(says, image, heat, label, counts, insert=True)
        return says(image, label) - float(np.mean(kept))

    same(measure.comprehensiveness(runner, heatmaps), each(images, heatmaps, without))
    same(measure.sufficiency(runner, heatmaps), each(images, heatmaps, alone))


def test_average_drop_and_increase(
    runner: Runner, images: Tensor, heatmaps: Tensor, says: Says
) -> None:
    def drop(image: Array, heat: Array, label: int) -> float:
        before, after = says(image, label), says(image * heat, label)
        return max(0.0, before - after) / before

    expected = each(images, heatmaps, drop)
    same(measure.average_drop(runner, heatmaps), expected)
    rises = measure.increase_in_confidence(runner, heatmaps)
    assert rises.tolist() == [float(value == 0) for value in expected]
    assert 0 < sum(rises.tolist()) < 3  # both happen here


def test_monotonicity_counts_steps_that_do_not_fall(
    runner: Runner, images: Tensor, heatmaps: Tensor, says: Says
) -> None:
    def share(image: Array, heat: Array, label: int) -> float:
        found = curve(says, image, heat, label, range(0, 65, 4), insert=True, ascending=True)
        return float(np.mean([b >= a for a, b in pairwise(found)]))

    expected = each(images, heatmaps, share)
    same(measure.monotonicity(runner, heatmaps, steps=16), expected)
    assert measure.monotonicity(runner, heatmaps, steps=16, strict=True).tolist() == [0, 0, 0]


def test_the_true_order_beats_its_reverse() -> None:
    """Of a model that adds up pixels, those with the largest weights matter most."""
    weight = torch.arange(64.0).view(8, 8) / 64
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(model[1].bias)
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([weight.flatten(), torch.zeros(64)]))
    image = torch.ones(1, 1, 8, 8)
    right, wrong = weight[None], 1 - weight[None]
    with open_runner(model, image, 0) as runner:
        for name, better in (
            ("deletion", -1),
            ("insertion", 1),
            ("pixel_flipping", 1),
            ("comprehensiveness", 1),
            ("sufficiency", -1),
            ("faithfulness_correlation", 1),
            ("sensitivity_n", 1),
            ("faithfulness_estimate", 1),
            ("infidelity", -1),
        ):
            metric = getattr(measure, name)
            ends = [metric(runner, each, baseline=0.0).item() for each in (right, wrong)]
            assert better * (ends[0] - ends[1]) > 0, name
        # What the weights say is all there is to say.
        for name, value in (
            ("faithfulness_correlation", 1),
            ("sensitivity_n", 1),
            ("faithfulness_estimate", 1),
            ("infidelity", 0),
        ):
            found = getattr(measure, name)(runner, right, baseline=0.0).item()
            assert found == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize(
    "name",
    [
        "deletion",
        "insertion",
        "pixel_flipping",
        "comprehensiveness",
        "sufficiency",
        "average_drop",
        "increase_in_confidence",
        "monotonicity",
        "faithfulness_correlation",
        "sensitivity_n",
        "faithfulness_estimate",
        "infidelity",
        "road_morf",
        "road_lerf",
        "road",
    ],
)
def test_a_map_without_an_order_has_no_value_and_takes_none_from_others(
    name: str, runner: Runner, heatmaps: Tensor
) -> None:
    metric = getattr(measure, name)
    whole = metric(runner, heatmaps)
    assert whole.isfinite().all()
    heatmaps[1] = 0
    found = metric(runner, heatmaps)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]])


def test_what_runs_at_once_changes_nothing(
    model: nn.Module, images: Tensor, heatmaps: Tensor
) -> None:
    for name in ("deletion", "road", "sensitivity_n", "infidelity"):
        values = []
        for size in (1, 7, 1000):
            with open_runner(model, images, [0, 3, 1], batch_size=size) as runner:
                values.append(getattr(measure, name)(runner, heatmaps))
        torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[0], values[2], rtol=1e-4, atol=1e-5)


def test_wrong_maps_and_options_are_named(runner: Runner, heatmaps: Tensor) -> None:
    with pytest.raises(FedgazeError, match=r"shape \(2, 8, 8\); allowed is \(3, 8, 8\)"):
        measure.deletion(runner, heatmaps[:2])
    with pytest.raises(FedgazeError, match="steps is 0; allowed is 1 and more"):
        measure.deletion(runner, heatmaps, steps=0)
    with pytest.raises(FedgazeError, match="a share of the pixels is 2"):
        measure.comprehensiveness(runner, heatmaps, bins=(2,))
    with pytest.raises(FedgazeError, match=r"no baseline 'blurr'.*blur"):
        measure.deletion(runner, heatmaps, baseline="blurr")
    with pytest.raises(FedgazeError, match="perturbation is 'squares'; allowed are noise, square"):
        measure.infidelity(runner, heatmaps, perturbation="squares")


def test_several_targets_an_image_are_refused(model: nn.Module, images: Tensor) -> None:
    with (
        open_runner(model, images, torch.tensor([[0, 1]] * 3)) as runner,
        pytest.raises(FedgazeError, match="2 targets an image"),
    ):
        measure.deletion(runner, torch.rand(3, 8, 8))
