"""Robustness where the heatmap is a known function of the image."""

import pytest
import torch
from torch import Tensor, nn

from fedgaze import measure
from fedgaze.errors import FedgazeError
from fedgaze.measure import Around
from fedgaze.xai import Runner, explain, open_runner

AROUND = Around(radius=0.1, samples=6, seed=4)


def same(images: Tensor, _classes: Tensor) -> Tensor:
    return images[:, 0]


def constant(images: Tensor, _classes: Tensor) -> Tensor:
    return torch.full_like(images[:, 0], 0.5)


def norm(values: Tensor) -> Tensor:
    return values.flatten(1).square().sum(1).sqrt()


def moved(runner: Runner) -> Tensor:
    """``(N, samples)``: how far the images move."""
    return torch.stack([norm(each - runner.images) for each in AROUND.of(runner)], 1)


def test_images_round_an_image_lie_in_its_cube(runner: Runner) -> None:
    found = torch.stack(list(AROUND.of(runner)))
    reach = 0.1 * (runner.images.amax((1, 2, 3)) - runner.images.amin((1, 2, 3)))
    far = (found - runner.images).abs().amax((0, 2, 3, 4))
    assert (far <= reach * 1.0001).all()
    assert (far > 0.95 * reach).all()
    assert torch.equal(found, torch.stack(list(AROUND.of(runner))))
    assert len({each.sum().item() for each in found}) == 6


def test_a_map_that_is_the_image_moves_as_it_does(runner: Runner) -> None:
    heatmaps = runner.images[:, 0]
    shares = moved(runner) / norm(heatmaps)[:, None]
    largest = measure.max_sensitivity(runner, heatmaps, same, around=AROUND)
    mean = measure.average_sensitivity(runner, heatmaps, same, around=AROUND)
    torch.testing.assert_close(largest, shares.amax(1))
    torch.testing.assert_close(mean, shares.mean(1))
    steep = measure.local_lipschitz(
        runner, 3 * heatmaps, lambda x, c: 3 * same(x, c), around=AROUND
    )
    torch.testing.assert_close(steep, torch.full((3,), 3.0))
    # Relative to themselves, image and map change alike.
    relative = measure.relative_input_stability(runner, heatmaps, same, around=AROUND)
    torch.testing.assert_close(relative, torch.ones(3))


def test_a_map_that_never_changes_is_stable(runner: Runner) -> None:
    heatmaps = constant(runner.images, torch.zeros(3))
    for name in (
        "max_sensitivity",
        "average_sensitivity",
        "local_lipschitz",
        "relative_input_stability",
        "relative_output_stability",
    ):
        found = getattr(measure, name)(runner, heatmaps, constant, around=AROUND)
        assert found.tolist() == [0, 0, 0], name


def test_stability_of_outputs_and_layers_by_hand(
    runner: Runner, model: nn.Module, images: Tensor
) -> None:
    heatmaps = images[:, 0]
    with torch.no_grad():
        logits, layer = model(images), model[0](images)
        changes, outputs, layers = [], [], []
        for each in AROUND.of(runner):
            assert torch.equal(model(each).argmax(1), logits.argmax(1))
            changes.append(norm((images - each) / images))
            outputs.append(norm(logits - model(each)))
            layers.append(norm((layer - model[0](each)) / layer))
    change = torch.stack(changes, 1)
    found = measure.relative_output_stability(runner, heatmaps, same, around=AROUND)
    torch.testing.assert_close(found, (change / torch.stack(outputs, 1)).amax(1))
    found = measure.relative_representation_stability(runner, heatmaps, same, "0", around=AROUND)
    torch.testing.assert_close(found, (change / torch.stack(layers, 1)).amax(1))


def test_images_that_are_predicted_otherwise_do_not_count() -> None:
    """A model that tells by a hair whether the pixels add up to more than a half."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        model[1].bias.copy_(torch.tensor([0.0, 2.0]))
    near = torch.tensor([[[[0.0, 1.0], [1.0, 0.001]]]])
    with open_runner(model, near, 0) as runner:
        around = Around(radius=0.5, samples=12)
        logits = torch.stack([model(each)[0] for each in around.of(runner)])
        stays = logits.argmax(1) == 0
        assert 0 < stays.sum() < 12
        shares = []
        for each, stay in zip(around.of(runner), stays, strict=True):
            change = (near - each) / torch.where(near == 0, 1e-6, near)
            shares += [norm(change[:, 0]) / norm(model(near) - model(each))] if stay else []
        found = measure.relative_output_stability(runner, near[:, 0], same, around=around)
        torch.testing.assert_close(found, torch.stack(shares).amax(0))


def test_of_a_zero_map_nothing_can_be_said(runner: Runner) -> None:
    heatmaps = torch.zeros(3, 8, 8)
    assert measure.max_sensitivity(runner, heatmaps, same).isnan().all()


def test_real_maps_are_made_again_for_the_same_classes(
    model: nn.Module, images: Tensor, runner: Runner
) -> None:
    seen: list[list[int]] = []

    def grad_cam(pictures: Tensor, classes: Tensor) -> Tensor:
        seen.append(classes.tolist())
        return explain(model, pictures, "gradcam", classes, "0").heatmaps

    heatmaps = grad_cam(images, torch.tensor([0, 3, 1]))
    found = measure.max_sensitivity(runner, heatmaps, grad_cam, around=AROUND)
    assert seen == [[0, 3, 1]] * 7
    assert (found > 0).all()


def test_wrong_arounds_are_named() -> None:
    with pytest.raises(FedgazeError, match="radius is 0; allowed is above 0"):
        Around(radius=0)
    with pytest.raises(FedgazeError, match="samples is 0"):
        Around(samples=0)
