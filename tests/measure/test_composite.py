"""Scores made of several, by hand."""

import numpy as np
import torch
from torch import Tensor

from fedgaze import measure
from fedgaze.xai import Runner


def square(images: Tensor, _classes: Tensor) -> Tensor:
    return images[:, 0] ** 2


def coherencies(runner: Runner, heatmaps: Tensor) -> list[float]:
    again = (runner.images[:, 0] * heatmaps) ** 2
    pairs = zip(again.double().numpy(), heatmaps.double().numpy(), strict=True)
    return [float(1 + np.corrcoef(a.ravel(), b.ravel())[0, 1]) / 2 for a, b in pairs]


def test_coherency_is_a_correlation_with_the_map_of_the_dimmed_image(
    runner: Runner, heatmaps: Tensor
) -> None:
    found = measure.coherency(runner, heatmaps, square)
    torch.testing.assert_close(found, torch.tensor(coherencies(runner, heatmaps)))


def test_adcc_and_arcc_are_harmonic_means(runner: Runner, heatmaps: Tensor) -> None:
    drop, road = measure.average_drop(runner, heatmaps), measure.road(runner, heatmaps)
    heat = heatmaps.mean((1, 2))
    for name, part in (("adcc", 1 - drop), ("arcc", (1 + road) / 2)):
        expected = [
            3 / (1 / coherency + 1 / (1 - float(heat[row])) + 1 / float(part[row]))
            for row, coherency in enumerate(coherencies(runner, heatmaps))
        ]
        found = getattr(measure, name)(runner, heatmaps, square)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_a_map_that_says_nothing_has_no_score(runner: Runner, heatmaps: Tensor) -> None:
    heatmaps[2] = 1
    for name in ("coherency", "adcc", "arcc"):
        found = getattr(measure, name)(runner, heatmaps, square)
        assert found.isnan().tolist() == [False, False, True], name
