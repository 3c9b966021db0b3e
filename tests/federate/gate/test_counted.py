"""What batch normalisation counted: by hand, and of a model that is told by torch's own layer."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fedgaze.federate.gate import marks
from fedgaze.federate.gate.counted import SHARE, STRIDE, Counted, count
from fedgaze.federate.gate.light import under_other_light
from fedgaze.train import Counts, LearnerProtocol
from fedgaze.train.norms import counts_of

NAMES = ("norm.running_mean", "norm.running_var")


def sees_pixels() -> LearnerProtocol:
    """Its first layer sees the images themselves."""

    def seen(images: Tensor) -> Counts:
        flat = images.flatten(2)
        return Counts(NAMES, flat.mean(2), flat.var(2, correction=0))

    return cast("LearnerProtocol", SimpleNamespace(count=seen))


def sent(images: Tensor) -> dict[str, Tensor]:
    """The state of whose layer counted these images, all at once."""
    flat = images.transpose(0, 1).flatten(1)
    return {NAMES[0]: flat.mean(1), NAMES[1]: flat.var(1, correction=0)}


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Two classes: a small and a large bright square on black, of varied brightness."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.zeros(count, 1, 12, 12), torch.arange(count) % 2
    bright = 0.5 + 0.4 * torch.rand(count, 1, 1, generator=generator)
    images[labels == 0, 0, 4:7, 4:7] = bright[labels == 0]
    images[labels == 1, 0, 2:10, 2:10] = bright[labels == 1]
    return images, labels


def test_means_are_in_standard_deviations_and_variances_logarithms() -> None:
    images, labels = digits(30)
    found = count(sees_pixels(), [sent(0.5 * images), None, sent(images)], images, labels)
    assert found is not None
    mean, deviation = images.mean(), images.std(correction=0)
    expected = [(-0.5 * mean / deviation).item(), 2 * torch.tensor(0.5).log().item()]
    assert found.updates[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert found.updates[1].isnan().all()
    assert found.updates[2].tolist() == pytest.approx([0, 0], abs=1e-5)


def test_classes_and_light_are_those_of_the_probe() -> None:
    images, labels = digits(30)
    found = count(sees_pixels(), [None], images, labels)
    assert found is not None
    mean, deviation = images.mean(), images.std(correction=0)
    shift = torch.stack([images[labels == c].mean() - mean for c in (0, 1)]) / deviation
    spread = [((images[labels == c] - mean) ** 2).mean() / deviation**2 for c in (0, 1)]
    logs = torch.stack(spread).log()
    expected = torch.stack([shift - shift.mean(), logs - logs.mean()], 1)
    torch.testing.assert_close(found.classes.float(), expected, atol=1e-5, rtol=0)
    some = images[::STRIDE]
    for row, lit in zip(found.light, under_other_light(some), strict=True):
        brighter = (lit.mean() - some.mean()) / deviation
        richer = 2 * (lit.std(correction=0) / some.std(correction=0)).log()
        assert row.tolist() == pytest.approx([brighter.item(), richer.item()], abs=1e-5)


def test_the_way_to_other_light_is_measured_across_that_of_classes() -> None:
    """Classes differ in the first number only: there, a step counts as much less."""
    classes = torch.tensor([[2.0, 0], [-2, 0]], dtype=torch.double)
    light = torch.tensor([[1.0, 1.0]], dtype=torch.double)
    updates = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.double)
    ridge = SHARE * 4
    weights = torch.tensor([1 / (4 + ridge), 1 / ridge])
    expected = [1, (weights[0] / weights.sum()).item(), (weights[1] / weights.sum()).item()]
    found = Counted(updates, classes, light).towards_light[:, 0]
    assert found.tolist() == pytest.approx(expected)


def test_recoloured_images_are_told_from_a_skew_of_classes() -> None:
    """With two channels, of which one sees no more than edges."""
    images, labels = digits(60)
    edges = (images - images.roll(1, 3)).abs()
    images = torch.cat([images, edges], 1)
    raised = 0.2 + 0.8 * images[:, :1]
    raised = torch.cat([raised, (raised - raised.roll(1, 3)).abs()], 1)

    def seen(shown: Tensor) -> Counts:
        pixels = shown[:, :1]
        both = torch.cat([pixels, (pixels - pixels.roll(1, 3)).abs()], 1).flatten(2)
        return Counts(NAMES, both.mean(2), both.var(2, correction=0))

    learner = cast("LearnerProtocol", SimpleNamespace(count=seen))
    skewed = [images[labels == 0], images[labels == 1]]
    states = [sent(each) for each in (images, raised, *skewed)]
    found = count(learner, states, images[:, :1], labels)
    assert found is not None
    plain, other, *rest = found.towards_light[:, 2].tolist()
    assert plain == pytest.approx(0, abs=1e-5)
    assert other == pytest.approx(1, abs=0.1)
    straight = found.updates @ found.light[2] / found.light[2].square().sum()
    assert max(rest) < 0.5 * straight[2:].max()


def test_one_class_alone_has_no_skew() -> None:
    images, labels = digits(30)
    only = images[labels == 0]
    found = count(sees_pixels(), [sent(0.2 + 0.8 * only)], only, torch.zeros(len(only)).long())
    assert found is not None
    assert found.towards_light[0, 2].item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 7), (12, 3, 5, 6)])
def test_counts_are_what_batch_normalisation_counts(shape: tuple[int, ...]) -> None:
    """A layer that takes over its statistics from one batch is the reference."""
    layers: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    norm: Any = layers[len(shape)](3, momentum=1.0)
    first: nn.Module = nn.Conv2d(3, 3, 1) if len(shape) == 4 else nn.Identity()
    model = nn.Sequential(first, norm, nn.Flatten(), nn.LazyLinear(2))
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    model(images)
    found = counts_of(model.eval(), lambda: model(images))
    assert found is not None
    assert found.names == ("1.running_mean", "1.running_var")
    assert found.means.shape == found.variances.shape == (12, 3)
    mean = found.means.mean(0)
    torch.testing.assert_close(mean, norm.running_mean)
    spread = (found.variances + found.means**2).mean(0) - mean**2
    count = len(images.flatten(1)[0]) // 3 * 12
    torch.testing.assert_close(spread * count / (count - 1), norm.running_var)
    assert not norm._forward_pre_hooks


def test_large_images_are_shown_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as marks are tried on at once, and the same is counted."""
    images, labels = digits(30)
    whole = count(sees_pixels(), [sent(images)], images, labels)
    shown: list[int] = []
    pixels = sees_pixels()

    def seen(some: Tensor) -> Counts | None:
        shown.append(len(some))
        return pixels.count(some)

    monkeypatch.setattr(marks, "PIXELS", 20 * 12 * 12)
    learner = cast("LearnerProtocol", SimpleNamespace(count=seen))
    parts = count(learner, [sent(images)], images, labels)
    assert shown == [20, 20, 20, 20]  # 30, and ten of them under five lights
    assert whole is not None
    assert parts is not None
    torch.testing.assert_close(parts.light, whole.light)
    torch.testing.assert_close(parts.updates, whole.updates)


def test_who_counts_nothing_has_no_counts() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    images = torch.rand(2, 1, 5, 5)
    assert counts_of(plain.eval(), lambda: plain(images)) is None
    silent = cast("LearnerProtocol", SimpleNamespace(count=lambda _: None))
    assert count(silent, [None], images, torch.tensor([0, 1])) is None
