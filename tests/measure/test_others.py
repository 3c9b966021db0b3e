"""The same values as Quantus and Captum where they compute the same."""

import math
from typing import Any

import numpy as np
import pytest
import quantus
import torch
from captum.metrics import infidelity
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze import measure
from fedgaze.measure.perturbation import curve, cuts_of
from fedgaze.xai import Runner

LABELS = np.array([0, 3, 1])


def asked(metric: Any, model: nn.Module, images: Tensor, heatmaps: Tensor, **more: Any) -> Any:
    """What Quantus says of heatmaps; it changes some of what it is given."""
    return metric(
        model=model,
        x_batch=images.numpy().copy(),
        y_batch=LABELS,
        a_batch=heatmaps[:, None].numpy().copy(),
        device="cpu",
        **more,
    )


def quiet(**more: Any) -> dict[str, Any]:
    return {"normalise": False, "abs": False, "disable_warnings": True} | more


def same(found: Tensor, expected: Any) -> None:
    expected = torch.tensor(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_pixels_flipped_as_quantus_flips_them(
    runner: Runner, model: nn.Module, images: Tensor, heatmaps: Tensor
) -> None:
    metric = quantus.PixelFlipping(features_in_step=8, perturb_baseline=0.3, **quiet())
    expected = asked(metric, model, images, heatmaps)
    cuts = cuts_of(64, 8, images.device)
    same(curve(runner, heatmaps, cuts, 0.3)[:, 1:], expected)


def test_faithfulness_estimate_is_quantus_s(
    runner: Runner, model: nn.Module, images: Tensor, heatmaps: Tensor
) -> None:
    metric = quantus.FaithfulnessEstimate(features_in_step=4, perturb_baseline=0.3, **quiet())
    expected = asked(metric, model, images, heatmaps, softmax=False)
    same(measure.faithfulness_estimate(runner, heatmaps, steps=16, baseline=0.3), expected)


def test_quantus_s_monotonicity_never_inserts_a_pixel(
    runner: Runner, model: nn.Module, images: Tensor, heatmaps: Tensor
) -> None:
    """It replaces its baseline by its baseline: all maps are monotonic. Ours are not."""
    metric = quantus.Monotonicity(features_in_step=4, perturb_baseline=0.3, **quiet())
    assert asked(metric, model, images, heatmaps) == [True] * 3
    found = measure.monotonicity(runner, heatmaps, steps=16, baseline=0.3, strict=True)
    assert found.tolist() == [0, 0, 0]


def test_complexity_is_quantus_s(model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    for metric, found in (
        (quantus.Sparseness(**quiet(abs=True)), measure.gini(heatmaps)),
        (quantus.Complexity(**quiet(abs=True)), measure.entropy(heatmaps) * math.log(64)),
    ):
        same(found, asked(metric, model, images, heatmaps))


def test_localisation_is_quantus_s(model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, 2:6, 1:7], mask[1, :3, :3] = True, True
    row, column = divmod(int(heatmaps[2].argmax()), 8)
    mask[2, row, column] = True
    for metric, found in (
        (quantus.PointingGame(**quiet()), measure.pointing_game(heatmaps, mask)),
        (quantus.TopKIntersection(k=10, **quiet()), top(heatmaps, mask)),
        (quantus.RelevanceRankAccuracy(**quiet()), measure.relevance_rank_accuracy(heatmaps, mask)),
        (quantus.RelevanceMassAccuracy(**quiet()), measure.mass_on(heatmaps, mask)),
        (
            quantus.AttributionLocalisation(**quiet()),
            measure.attribution_localisation(heatmaps, mask),
        ),
    ):
        same(found, asked(metric, model, images, heatmaps, s_batch=mask[:, None].numpy()))


def test_quantus_s_weighted_localisation_divides_where_the_paper_multiplies(
    model: nn.Module, images: Tensor, heatmaps: Tensor
) -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 1:5] = True  # a quarter of the image
    metric = quantus.AttributionLocalisation(weighted=True, **quiet())
    theirs = asked(metric, model, images, heatmaps, s_batch=mask[:, None].numpy())
    same(measure.attribution_localisation(heatmaps, mask, weighted=True) / 4**2, theirs)


def top(heatmaps: Tensor, mask: Tensor) -> Tensor:
    return measure.top_k_intersection(heatmaps, mask, share=10 / 64)


@pytest.mark.parametrize("scaled", [False, True])
def test_infidelity_is_captum_s(
    runner: Runner, model: nn.Module, images: Tensor, heatmaps: Tensor, scaled: bool
) -> None:
    samples, sigma = 40, 0.2
    changes = sigma * runner.noise(torch.arange(samples))

    def perturbed(inputs: Tensor) -> tuple[Tensor, Tensor]:
        # Captum asks for all perturbations of all images at once, image by image.
        repeated = changes.repeat(len(inputs) // samples, 1, 1, 1)
        return repeated, inputs - repeated

    with torch.no_grad():
        expected = infidelity(
            model,
            perturbed,
            images,
            heatmaps[:, None],
            target=torch.tensor(LABELS),
            n_perturb_samples=samples,
            normalize=scaled,
        )
    # Ours has no unit: a map of zeros has 1.
    expected = expected / falls_squared(model, images, changes) if scaled else expected
    found = measure.infidelity(
        runner, heatmaps, perturbation="noise", samples=samples, sigma=sigma, scaled=scaled
    )
    same(found, expected)


def falls_squared(model: nn.Module, images: Tensor, changes: Tensor) -> Tensor:
    rows: list[NDArray[np.float64]] = []
    for image, label in zip(images, LABELS, strict=True):
        with torch.no_grad():
            fall = model(image[None])[0, label] - model(image - changes)[:, label]
        rows.append(fall.square().mean().double().numpy())
    return torch.tensor(np.stack(rows)).float()
