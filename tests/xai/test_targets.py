"""What is explained of a classifier: one class or several, contrasts, probabilities, thresholds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import above, contrast, explain, log_probability, output, probability, top_k

MakeCNN = Callable[..., nn.Module]

METHODS = {
    "gradcam": {},  # weights
    "eigengradcam": {},  # map
    "scorecam": {},  # runs at the image, with a layer
    "ablationcam": {},  # runs from the layer on
    "saliency": {},  # runs with the way back
    "occlusion": {"window": 4, "stride": 4},  # runs without
}


def grad_cam_of(
    model: nn.Module, layer: nn.Module, images: Tensor, score: Callable[[Tensor], Tensor]
) -> Tensor:
    """Grad-CAM (ICCV 2017, Eq. 1-2) image by image, from an ordinary graph; not clamped."""
    maps = []
    for image, index in zip(images.split(1), range(len(images)), strict=True):
        kept: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, out: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(out)
            return out.clone()

        handle = layer.register_forward_hook(keep)
        logits = model(image)
        handle.remove()
        (gradient,) = torch.autograd.grad(score(logits[0], index), kept[-1])
        weights = gradient.mean((2, 3), keepdim=True)
        maps.append((weights * kept[-1].detach()).sum(1))
    return torch.cat(maps)


def signed(model: nn.Module, images: Tensor, targets: Any, **options: Any) -> Any:
    return explain(model, images, targets=targets, layers="bn2", relu=False, **options)


@pytest.fixture
def model(make_cnn: MakeCNN) -> nn.Module:
    return make_cnn()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_each_image_may_have_a_class_of_its_own(model: nn.Module, images: Tensor) -> None:
    classes = [3, 0, 4, 1]
    found = signed(model, images, classes)
    expected = grad_cam_of(model, model.bn2, images, lambda logits, n: logits[classes[n]])
    torch.testing.assert_close(found.raw, expected)
    assert found.targets.tolist() == classes
    assert found.images.tolist() == [0, 1, 2, 3]


def test_several_classes_an_image_take_one_forward_pass(model: nn.Module, images: Tensor) -> None:
    classes = torch.tensor([[3, 0], [0, 1], [4, 2], [1, 1]])
    passes = []
    model.conv1.register_forward_hook(lambda *_: passes.append(1))
    found = signed(model, images, classes)
    assert len(passes) == 1
    assert found.targets.tolist() == classes.flatten().tolist()
    assert found.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for column in range(2):
        wanted = classes[:, column].tolist()
        alone = grad_cam_of(model, model.bn2, images, lambda logits, n, w=wanted: logits[w[n]])
        torch.testing.assert_close(found.raw.unflatten(0, (4, 2))[:, column], alone)
    torch.testing.assert_close(found.scores.view(4, 2), found.logits.gather(1, classes))
    assert found.logits.shape == (4, 5)
    assert found.predicted.shape == (4,)


@pytest.mark.parametrize(("method", "options"), METHODS.items())
def test_several_classes_are_those_one_by_one_whatever_the_method(
    model: nn.Module, images: Tensor, method: str, options: dict[str, Any]
) -> None:
    if method not in {"saliency", "occlusion"}:
        options = options | {"layers": "bn2"}
    classes = torch.tensor([[3, 0], [0, 1], [4, 2], [1, 1]])
    both = explain(model, images, method, classes, relu=False, **options)
    for column in range(2):
        alone = explain(model, images, method, classes[:, column], relu=False, **options)
        torch.testing.assert_close(both.raw[column::2], alone.raw)
        torch.testing.assert_close(both.heatmaps[column::2], alone.heatmaps)
        torch.testing.assert_close(both.scores[column::2], alone.scores)
    if both.attributions is not None:
        assert both.attributions.shape == (8, 3, 8, 8)


@pytest.mark.parametrize("size", [1, 3])
def test_targets_stay_with_their_images_in_batches(
    model: nn.Module, images: Tensor, size: int
) -> None:
    for targets in ([[3, 0], [0, 1], [4, 2], [1, 1]], contrast([3, 0, 4, 1], [0, 1, 2, 3])):
        whole = signed(model, images, targets)
        parts = signed(model, images, targets, batch_size=size)
        torch.testing.assert_close(parts.raw, whole.raw)
        assert torch.equal(parts.targets, whole.targets)
        assert torch.equal(parts.images, whole.images)


def test_the_highest_classes(model: nn.Module, images: Tensor) -> None:
    found = signed(model, images, top_k(3))
    order = model(images).detach().numpy().argsort(1)[:, ::-1][:, :3].copy()
    assert found.targets.view(4, 3).tolist() == order.tolist()
    torch.testing.assert_close(found.raw, signed(model, images, order).raw)
    assert torch.equal(found.predicted, found.targets[::3])


def test_contrasts_are_differences_of_maps(model: nn.Module, images: Tensor) -> None:
    # Grad-CAM without its ReLU is linear in the score.
    one, other = signed(model, images, 3), signed(model, images, [0, 1, 2, 4])
    found = signed(model, images, contrast(3, [0, 1, 2, 4]))
    torch.testing.assert_close(found.raw, one.raw - other.raw)
    torch.testing.assert_close(found.scores, one.scores - other.scores)
    assert found.targets.tolist() == [3] * 4


@pytest.mark.parametrize(
    ("a", "b", "pair"),
    [
        (None, None, lambda best, second: (best, second)),
        (2, None, lambda best, second: (2, second if best == 2 else best)),
        (None, 2, lambda best, second: (second if best == 2 else best, 2)),
    ],
)
def test_a_contrast_finds_the_class_that_is_not_named(
    model: nn.Module, images: Tensor, a: Any, b: Any, pair: Any
) -> None:
    model.fc.bias.data[2] += 0.2  # so that class 2 is the best of some images and not of others
    logits = model(images).detach()
    pairs = [pair(*row.argsort(descending=True)[:2].tolist()) for row in logits]
    found = explain(model, images, targets=contrast(a, b), layers="bn2")
    assert found.targets.tolist() == [first for first, _ in pairs]
    expected = [float(row[i] - row[j]) for row, (i, j) in zip(logits, pairs, strict=True)]
    assert found.scores.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_settled_contrast_does_not_change_when_the_image_does(
    model: nn.Module, images: Tensor
) -> None:
    # Under Score-CAM's masks another class may be the runner-up; it is not what was asked.
    best = model(images).topk(2).indices
    found = explain(model, images, "scorecam", contrast(), layers="bn2", relu=False)
    named = contrast(best[:, 0], best[:, 1])
    fixed = explain(model, images, "scorecam", named, layers="bn2", relu=False)
    torch.testing.assert_close(found.raw, fixed.raw)


def test_multi_label_explains_each_class_above_the_threshold(
    model: nn.Module, images: Tensor
) -> None:
    model.fc.bias.data.copy_(torch.tensor([0.3, -5.0, 0.0, -0.1, -5.0]))
    model.fc.weight.data.mul_(3)
    chances = model(images).sigmoid()
    wanted = [
        sorted((k for k in range(5) if row[k] > 0.5), key=lambda k, row=row: -row[k])
        for row in chances.detach()
    ]
    assert len({len(each) for each in wanted}) > 1
    found = signed(model, images, above(0.5))
    assert found.targets.tolist() == [k for row in wanted for k in row]
    assert found.images.tolist() == [n for n, row in enumerate(wanted) for _ in row]
    assert len(found.flags) == len(found) == sum(map(len, wanted))
    for row, (n, k) in enumerate(zip(found.images.tolist(), found.targets.tolist(), strict=True)):
        torch.testing.assert_close(found.raw[row], signed(model, images[n], k).raw[0])
    # In batches each has its own number of classes.
    parts = signed(model, images, above(0.5), batch_size=1)
    torch.testing.assert_close(parts.raw, found.raw)
    assert torch.equal(parts.targets, found.targets)
    assert torch.equal(parts.images, found.images)


def test_images_without_a_class_above_have_no_map(model: nn.Module, images: Tensor) -> None:
    chances = model(images).sigmoid().detach()
    between = float(chances.amax(1).sort().values[1:3].mean())
    found = explain(model, images, targets=above(between), layers="bn2")
    missing = [n for n in range(4) if chances[n].max() <= between]
    assert len(missing) == 2
    assert set(found.images.tolist()) == set(range(4)) - set(missing)
    assert len(found.predicted) == len(found.logits) == 4
    with pytest.raises(FedgazeError, match=r"no class of any image has a probability above 0\.999"):
        explain(model, images, targets=above(0.999), layers="bn2")
    # A batch without any is no error as long as another has one.
    parts = explain(model, images, targets=above(between), layers="bn2", batch_size=1)
    assert torch.equal(parts.images, found.images)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_probabilities(model: nn.Module, images: Tensor, multi_label: bool, log: bool) -> None:
    def score(logits: Tensor, n: int) -> Tensor:
        # Written out: no softmax or sigmoid of PyTorch's.
        odds = logits.exp()
        chance = odds[n] / (1 + odds[n]) if multi_label else odds[n] / odds.sum()
        return chance.log() if log else chance

    target = log_probability if log else probability
    found = signed(model, images, target([0, 1, 2, 3], multi_label=multi_label))
    torch.testing.assert_close(found.raw, grad_cam_of(model, model.bn2, images, score))
    assert found.targets.tolist() == [0, 1, 2, 3]


def test_probabilities_of_the_highest(model: nn.Module, images: Tensor) -> None:
    found = explain(model, images, targets=probability(top_k(2)), layers="bn2")
    chances = model(images).softmax(1).topk(2)
    torch.testing.assert_close(found.scores.view(4, 2), chances.values)
    assert torch.equal(found.targets.view(4, 2), chances.indices)


def test_log_probability_of_what_is_impossible_has_gradients(
    model: nn.Module, images: Tensor
) -> None:
    model.fc.bias.data[1] = -200
    assert explain(model, images, targets=probability(1), layers="bn2").raw.count_nonzero() == 0
    found = explain(model, images, targets=log_probability(1), layers="bn2", relu=False)
    assert found.raw.isfinite().all()
    assert found.raw.abs().amax((1, 2)).min() > 0


class Binary(nn.Module):
    def __init__(self, inner: nn.Module, squeeze: bool) -> None:
        super().__init__()
        self.inner, self.squeeze = inner, squeeze

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits[:, 0] if self.squeeze else logits


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_speaks_for_class_1_and_against_class_0(
    make_cnn: MakeCNN, images: Tensor, squeeze: bool
) -> None:
    model = Binary(make_cnn(classes=1), squeeze)
    middle = model(images).detach().median()
    model.inner.fc.bias.data -= middle  # two images on each side
    found = explain(model, images, layers="inner.bn2", relu=False)
    z = model(images).detach().reshape(4)
    assert found.predicted.tolist() == found.targets.tolist() == (z > 0).long().tolist()
    assert {0, 1} == set(found.targets.tolist())
    torch.testing.assert_close(found.scores, z.abs())
    no, yes = (explain(model, images, targets=c, layers="inner.bn2", relu=False) for c in (0, 1))
    torch.testing.assert_close(no.raw, -yes.raw)
    raw = explain(model, images, targets=output(), layers="inner.bn2", relu=False)
    torch.testing.assert_close(yes.raw, raw.raw)
    torch.testing.assert_close(raw.scores, z)
    chance = explain(model, images, targets=probability(1), layers="inner.bn2")
    torch.testing.assert_close(chance.scores, 1 / (1 + (-z).exp()))
    with pytest.raises(FedgazeError, match="no class 2; the model knows 0 to 1"):
        explain(model, images, targets=2, layers="inner.bn2")


def test_a_function_may_give_several_scores_an_image(model: nn.Module, images: Tensor) -> None:
    found = signed(model, images, lambda logits: logits[:, [4, 1]])
    assert found.targets is None
    assert found.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(found.raw, signed(model, images, [[4, 1]] * 4).raw)


def test_scores_are_those_of_pytorch_grad_cam(model: nn.Module, images: Tensor) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import (
        BinaryClassifierOutputTarget,
        ClassifierOutputSoftmaxTarget,
        ClassifierOutputTarget,
    )

    def peers(targets: list[Any], peered: nn.Module, layer: nn.Module) -> Tensor:
        with GradCAM(model=peered, target_layers=[layer]) as cam:
            return torch.from_numpy(cam(input_tensor=images.clone(), targets=targets))

    # It stretches each map from its minimum to its maximum.
    def stretched(maps: Tensor) -> Tensor:
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return (maps - low) / (high - low).clamp_min(1e-12)

    def same(ours: Any, theirs: Tensor) -> None:
        # It divides by the peak plus 1e-7, twice.
        torch.testing.assert_close(stretched(ours.heatmaps), stretched(theirs), rtol=0, atol=2e-4)

    classes = model(images).argmax(1).tolist()
    model.fc.weight.data.mul_(50)
    theirs = peers([ClassifierOutputTarget(k) for k in classes], model, model.conv2)
    same(explain(model, images, targets=classes, layers="conv2"), theirs)
    theirs = peers([ClassifierOutputSoftmaxTarget(k) for k in classes], model, model.conv2)
    same(explain(model, images, targets=probability(classes), layers="conv2"), theirs)
    binary = nn.Sequential(model, nn.Linear(5, 1), nn.Flatten(0)).eval()
    theirs = peers([BinaryClassifierOutputTarget(k) for k in (0, 1, 0, 1)], binary, model.conv2)
    same(explain(binary, images, targets=[0, 1, 0, 1], layers="0.conv2"), theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: top_k(0), "k is 0; allowed is 1 and more"),
        (lambda: top_k(6), "k is 6; the model knows 5 classes"),
        (lambda: above(0), "threshold is 0; allowed is a number between 0 and 1"),
        (lambda: above(1.5), r"threshold is 1\.5"),
        (lambda: contrast(1, 1), "class 1 is contrasted with itself"),
        (lambda: contrast([0, 1, 2, 3], 2), "class 2 is contrasted with itself"),
        (lambda: contrast(1, 7), "there is no class 7; the model knows 0 to 4"),
        (lambda: contrast([1, 2], 3), "2 targets for 4 images"),
        (lambda: contrast([[1, 2]] * 4), r"to contrast have the shape \(4, 2\)"),
        (lambda: contrast("cat"), "targets are 'cat'"),
        (lambda: probability(lambda o: o[:, 0]), "a probability is that of classes"),
        (lambda: probability(contrast(1, 2)), "a probability is that of classes"),
        (lambda: probability([1, 2]), "2 targets for 4 images"),
        (lambda: [[0, 1]] * 3, "3 targets for 4 images"),
        (lambda: [[]] * 4, "targets are"),
        (list, "0 targets for 4 images"),
        (lambda: {"class": 1}, "targets are"),
        (lambda: lambda o: o[:, None], r"returned \(4, 1, 5\) for 4 images"),
    ],
)
def test_what_is_no_target_is_said_in_one_sentence(
    model: nn.Module, images: Tensor, make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(FedgazeError, match=message) as caught:
        explain(model, images, targets=make(), layers="bn2")
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(".")
