"""The engine: the same values as the metrics themselves, and reasons instead of NaN."""

import pytest
import torch
from torch import Tensor, nn

from fedgaze import measure
from fedgaze.measure import Batch, Change, Maker, evaluate, find_metric, maker_of
from fedgaze.xai import Runner

CLASSES = torch.tensor([0, 3, 1])


@pytest.fixture
def batch(images: Tensor) -> Batch:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 2:6, 1:7] = True
    boxes = torch.full((3, 1, 4), torch.nan)
    boxes[0, 0] = torch.tensor([1.0, 2.0, 7.0, 6.0])
    return Batch(images, images, CLASSES, masks, boxes)


def drawn(heatmaps: Tensor, name: str = "drawn") -> Maker:
    return Maker(name, lambda _model, _images, _classes: heatmaps)


def test_values_are_those_of_the_metrics(
    model: nn.Module, batch: Batch, heatmaps: Tensor, runner: Runner
) -> None:
    metrics = [(find_metric("deletion"), {"steps": 8}), (find_metric("gini"), {})]
    ((found),) = evaluate(model, batch, [drawn(heatmaps)], metrics)
    assert found.maps is heatmaps
    expected = {
        "deletion": measure.deletion(runner, heatmaps, steps=8),
        "gini": measure.gini(heatmaps),
    }
    for name, values in expected.items():
        assert [each.number for each in found.values[name]] == pytest.approx(
            values.tolist(), abs=1e-5
        )
        assert {each.reason for each in found.values[name]} == {""}


def test_what_has_no_value_says_why(model: nn.Module, batch: Batch, heatmaps: Tensor) -> None:
    flat = heatmaps.clone()
    flat[0] = 0
    metrics = [(find_metric(each), {}) for each in ("pointing_game", "insertion")]
    ((found),) = evaluate(model, batch, [drawn(flat)], metrics)
    assert [each.reason for each in found.values["pointing_game"]] == [
        "the heatmap is the same everywhere",
        "no box of the explained class",
        "no box of the explained class",
    ]
    assert found.values["insertion"][0] == (None, "the heatmap is the same everywhere")
    assert found.values["insertion"][1].number is not None


def test_a_method_that_fails_takes_nothing_from_the_others(
    model: nn.Module, batch: Batch, heatmaps: Tensor
) -> None:
    makers = [maker_of("attention_rollout"), maker_of("gradcam", "0"), drawn(heatmaps)]
    metrics = [(find_metric("gini"), {})]
    failed, ours, given = evaluate(model, batch, makers, metrics)
    assert failed.maps is None
    assert all(each.number is None for each in failed.values["gini"])
    assert failed.values["gini"][0].reason.startswith("no heatmap: ")
    assert ours.maps is not None
    assert given.values["gini"][0].number is not None


def test_changed_images_are_explained_for_the_same_classes(
    model: nn.Module, batch: Batch, heatmaps: Tensor
) -> None:
    asked: list[Tensor] = []

    def make(_model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        asked.append(classes)
        return heatmaps if torch.equal(images, batch.images) else heatmaps.flip(1)

    change = Change("noise", severity=3)
    changed = change(model, batch)
    torch.testing.assert_close(changed.images, measure.corrupted(batch.images, "noise", severity=3))
    ((found),) = evaluate(model, batch, [Maker("made", make)], [], changed)
    assert [torch.equal(each, CLASSES) for each in asked] == [True, True]
    expected = measure.agreement(heatmaps, heatmaps.flip(1))
    for name, values in expected.items():
        numbers = [each.number for each in found.values[f"noise_{name}"]]
        assert numbers == pytest.approx(values.double().tolist())


def test_changes_go_through_the_model_s_normalisation(model: nn.Module, images: Tensor) -> None:
    pictures, mean, std = images, (0.3,), (0.2,)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    batch = Batch((images - 0.3) / 0.2, pictures, CLASSES, masks, torch.full((3, 1, 4), torch.nan))
    changed = Change("contrast", mean=mean, std=std)(model, batch)
    back = changed.images * 0.2 + 0.3
    torch.testing.assert_close(back, measure.corrupted(pictures, "contrast"))
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda _model, inputs: seen.append(inputs[0].detach()))
    attacked = Change("fgsm", epsilon=0.1, mean=mean, std=std)(model, batch).images * 0.2 + 0.3
    hook.remove()
    torch.testing.assert_close(seen[0], batch.images)
    moved = (attacked - pictures).abs()
    assert moved.max() <= 0.1 + 1e-6
    assert moved.mean() > 0.03


def test_baselines_are_makers_that_know_nothing_of_the_model(
    model: nn.Module, batch: Batch
) -> None:
    for name in ("noise", "edges", "centre"):
        maker = maker_of(name)
        assert maker.baseline
        first = maker.make(model, batch.images, CLASSES)
        again = maker.make(nn.Identity(), batch.images, CLASSES.flip(0))
        assert torch.equal(first, again)
    assert not maker_of("gradcam").baseline
    assert maker_of("saliency", "0").layer is None
