"""Score-CAM and its relatives, beside loops over the channels and other libraries."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain

Array = NDArray[np.float64]
Score = Callable[[Array], float]


def scaled(mask: Array) -> Array:
    return (mask - mask.min()) / (mask.max() - mask.min())


def softmax(values: list[float]) -> Array:
    powers = np.exp(np.array(values) - max(values))
    return powers / powers.sum()


@pytest.fixture
def truth(
    staged: Callable[..., nn.Module],
    activations_of: Callable[..., Array],
    logit: Callable[..., float],
    grown: Callable[..., Array],
) -> Callable[..., Array]:
    """Maps by the papers' sums; of a channel, `behind` makes the score of image and mask."""

    def make(
        model: nn.Module,
        layer: str,
        images: Tensor,
        labels: list[int],
        behind: Callable[[Score, Array, Array], float] = lambda f, x, h: f(x * h),
    ) -> Array:
        maps = []
        activations = activations_of(model.get_submodule(layer), model, images)
        for image, own, label in zip(images.numpy(), activations, labels, strict=True):

            def score(x: Array, label: int = label) -> float:
                return logit(model, x, label)

            empty = score(np.zeros_like(image))
            live = [k for k in range(len(own)) if own[k].max() > own[k].min()]
            scores = [
                behind(score, image, scaled(grown(own[k], image.shape[1:]))) - empty for k in live
            ]
            found = np.zeros(own.shape[1:])
            for alpha, k in zip(softmax(scores), live, strict=True):
                found += alpha * own[k]
            maps.append(found)
        return np.stack(maps)

    return make


def raw(model: nn.Module, images: Tensor, method: str, labels: Any, **options: Any) -> Array:
    found: Array = explain(
        model, images, method, labels, options.pop("layer", "last"), relu=False, **options
    ).raw.numpy()
    return found


@pytest.mark.parametrize("layer", ["first", "last", "last.0"])
def test_score_cam_is_the_papers_sum(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    truth: Callable[..., Array],
    layer: str,
) -> None:
    model, images = staged(), pictures()
    found = raw(model, images, "scorecam", [2, 0], layer=model.get_submodule(layer))
    assert found == pytest.approx(truth(model, layer, images, [2, 0]), rel=1e-9, abs=1e-12)


def test_score_cam_worked_by_hand() -> None:
    # Channels [1, 3] and [-1, -3] have the masks [0, 1] and [1, 0]. Behind them the image is
    # [0, 3] and [1, 0]; the score, its sum, is 3 and 1. Softmax gives 1 / (1 + e^-2) and the rest,
    # whose difference is tanh 1: the map is tanh 1 times the first channel.
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    image = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    found = explain(model, image, "scorecam", lambda out: out[:, 0], model[0], relu=False).raw
    assert found.flatten().tolist() == pytest.approx([math.tanh(1), 3 * math.tanh(1)])


def test_the_authors_weighting_is_the_probability_behind_each_mask(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    activations_of: Callable[..., Array],
    grown: Callable[..., Array],
) -> None:
    model, images = staged(), pictures(1)
    own = activations_of(model.last, model, images)[0]
    expected = np.zeros(own.shape[1:])
    for channel in own:
        if channel.max() > channel.min():
            shown = images * torch.from_numpy(scaled(grown(channel, (8, 10))))
            expected += float(model(shown).softmax(1)[0, 3]) * channel
    found = raw(model, images, "scorecam", 3, weighting="probability")
    assert found[0] == pytest.approx(expected, rel=1e-9)


def test_channels_that_are_the_same_everywhere_take_no_part_and_no_run(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], truth: Callable[..., Array]
) -> None:
    model, images = staged(7), pictures()
    with torch.no_grad():
        model.last[0].weight[2:4].zero_()
        model.last[0].bias[2:4] = torch.tensor([0.7, -1.0])  # constant, and dead after the ReLU
    rows = 0

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    found = raw(model, images, "scorecam", [1, 2])
    assert found == pytest.approx(truth(model, "last", images, [1, 2]), rel=1e-9)
    with model.first.register_forward_pre_hook(count):
        raw(model, images, "scorecam", [1, 2], batch_size=4)
    # The images once to be captured, and five masks each.
    assert rows == 2 + 2 * 5


@pytest.mark.parametrize("method", ["scorecam", "sscam", "iscam"])
def test_without_any_mask_the_map_is_zero_and_says_so(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], method: str
) -> None:
    model = staged()
    with torch.no_grad():
        model.last[0].weight.zero_()
        model.last[0].bias.fill_(0.5)
    found = explain(model, pictures(), method, 0, "last")
    assert not found.raw.any()
    assert all("no_positive_evidence" in flags for flags in found.flags)


def test_scores_far_from_zero_do_not_overflow_the_softmax(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], truth: Callable[..., Array]
) -> None:
    model, images = staged(), pictures()
    usual = truth(model, "last", images, [0, 0])
    for shift in (1e5, -1e5):
        with torch.no_grad():
            model.head.bias[0] = shift
        assert raw(model, images, "scorecam", 0) == pytest.approx(usual, rel=1e-6)


@pytest.mark.parametrize("method", ["scorecam", "sscam", "iscam"])
@pytest.mark.parametrize("channels", [None, 9])
def test_the_batch_and_its_cutting_change_nothing(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    method: str,
    channels: int | None,
) -> None:
    model, images = staged(24), pictures(3)
    options = {"samples": 3} if method == "sscam" else {}
    together = raw(model, images, method, [0, 1, 2], channels=channels, **options)
    for batch_size in (1, 5):
        cut = raw(
            model, images, method, [0, 1, 2], channels=channels, batch_size=batch_size, **options
        )
        assert cut == pytest.approx(together, rel=1e-9)
    alone = raw(model, images[1:2], method, 1, channels=channels, **options)
    assert alone[0] == pytest.approx(together[1], rel=1e-9)


def test_several_targets_of_an_image_are_each_their_own(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(), pictures()
    both = raw(model, images, "scorecam", torch.tensor([[0, 3], [1, 2]]))
    for index, labels in enumerate([[0, 1], [3, 2]]):
        assert both[index::2] == pytest.approx(raw(model, images, "scorecam", labels), rel=1e-9)


def test_masks_of_volumes_are_made_in_three_directions() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    ).double()
    volume = torch.randn(1, 1, 4, 6, 6, dtype=torch.float64)
    own = model[:2](volume).detach()[0]
    masks = (own - own.amin((1, 2, 3), True)) / (own.amax((1, 2, 3)) - own.amin((1, 2, 3))).view(
        -1, 1, 1, 1
    )
    alpha = model(volume * masks[:, None]).detach()[:, 2].softmax(0)
    found = explain(model, volume, "scorecam", 2, model[1]).raw
    assert torch.allclose(found[0], torch.einsum("k,kzyx->zyx", alpha, own))


def test_other_libraries_say_the_same_where_no_mask_is_enlarged(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    cams = pytest.importorskip("torchcam.methods")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = staged(6).float(), pictures(1).float()
    ours = explain(model, images, "scorecam", 2, "first").raw[0]
    with peer.ScoreCAM(model, [model.first]) as cam:
        theirs = cam(images, [ClassifierOutputTarget(2)])[0]
    # What they return is scaled to [0, 1].
    assert scaled(ours.numpy()) == pytest.approx(theirs, abs=1e-5)
    with cams.ScoreCAM(model, "first", input_shape=(3, 8, 10)) as extractor:
        extractor_logits = model(images)
        (found,) = extractor(2, extractor_logits, normalized=False)
    assert torch.allclose(ours, found[0], rtol=1e-4, atol=1e-6)


# SS-CAM.


@pytest.mark.parametrize("smooth", ["activation", "input"])
def test_ss_cam_is_the_papers_mean_over_noise(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    truth: Callable[..., Array],
    smooth: str,
) -> None:
    model, images = staged(), pictures()
    samples, sigma = 4, 0.5

    def noise(index: int, shape: tuple[int, ...]) -> Array:
        source = torch.Generator().manual_seed(0xFED6 + index)
        return sigma * torch.randn(shape, generator=source).double().numpy()

    def behind(f: Score, x: Array, h: Array) -> float:
        if smooth == "input":
            return sum(f(x * h + noise(i, x.shape)) for i in range(samples)) / samples
        return sum(f(x * (h + noise(i, h.shape))) for i in range(samples)) / samples

    found = raw(model, images, "sscam", [1, 3], smooth=smooth, samples=samples, sigma=sigma)
    expected = truth(model, "last", images, [1, 3], behind)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found != pytest.approx(truth(model, "last", images, [1, 3]), rel=1e-3)


@pytest.mark.parametrize("smooth", ["activation", "input"])
def test_noise_of_no_size_leaves_score_cam(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], smooth: str
) -> None:
    model, images = staged(), pictures()
    found = raw(model, images, "sscam", 1, smooth=smooth, samples=2, sigma=0.0)
    assert found == pytest.approx(raw(model, images, "scorecam", 1), rel=1e-9)


@pytest.mark.parametrize("smooth", ["activation", "input"])
def test_a_linear_score_is_not_moved_by_noise(pictures: Callable[..., Tensor], smooth: str) -> None:
    # The same noise for all channels adds the same to the score of each, and cancels.
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(320, 3)).double()
    images = pictures(1)
    found = raw(model, images, "sscam", 2, layer=model[0], smooth=smooth, samples=3, sigma=2.0)
    assert found == pytest.approx(raw(model, images, "scorecam", 2, layer=model[0]), rel=1e-8)


# IS-CAM.


def test_is_cam_is_the_papers_mean_over_steps_that_add_up(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], truth: Callable[..., Array]
) -> None:
    steps = 4

    def behind(f: Score, x: Array, h: Array) -> float:
        total = 0.0
        for i in range(steps + 1):
            shown = np.zeros_like(x)
            for j in range(i):
                shown += j / steps * x * h
            total += f(shown)
        return total / steps

    model, images = staged(), pictures()
    found = raw(model, images, "iscam", [0, 1], steps=steps)
    assert found == pytest.approx(truth(model, "last", images, [0, 1], behind), rel=1e-9)


def test_the_straight_path_is_that_of_integrated_gradients(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor], truth: Callable[..., Array]
) -> None:
    def behind(f: Score, x: Array, h: Array) -> float:
        return sum(f(i / 5 * x * h) for i in range(1, 6)) / 5

    model, images = staged(), pictures()
    found = raw(model, images, "iscam", 1, steps=5, path="straight")
    assert found == pytest.approx(truth(model, "last", images, [1, 1], behind), rel=1e-9)


# Options.


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("scorecam", {"weighting": "softmx"}, "'softmx'.*softmax, probability.*softmax"),
        ("scorecam", {"channels": 7}, "channels is 7; allowed is 8 and more"),
        ("sscam", {"smooth": "both"}, "smooth is 'both'; allowed are activation, input"),
        ("sscam", {"samples": 0}, "samples is 0"),
        ("sscam", {"sigma": -1.0}, "sigma is -1.0; allowed is 0 or more"),
        ("sscam", {"sigma": math.nan}, "sigma is nan"),
        ("iscam", {"steps": 1}, "steps is 1"),
        ("iscam", {"path": "short"}, "path is 'short'; allowed are paper, straight"),
    ],
)
def test_what_cannot_be_is_refused(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    method: str,
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(FedgazeError, match=said):
        explain(staged(), pictures(), method, 0, "last", **options)
