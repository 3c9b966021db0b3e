"""The local training loop against steps taken by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedgaze.data import StackedImages
from fedgaze.train import Drift, evaluate, train

IMAGES = StackedImages(
    torch.rand(33, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(33) % 3
)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def by_hand(model: nn.Module, steps: int, mu: float) -> nn.Module:
    """Adam's update written out (Kingma and Ba 2015, Algorithm 1), on the whole set."""
    start = [p.detach().clone() for p in model.parameters()]
    first = [torch.zeros_like(p) for p in start]
    second = [torch.zeros_like(p) for p in start]
    for t in range(1, steps + 1):
        loss = F.cross_entropy(model(IMAGES.pixels), IMAGES.labels)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(model.parameters(), grads, strict=True)):
                g = g + mu * (p - start[i])  # noqa: PLW2901 - the proximal term's gradient
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                p -= 0.01 * (first[i] / (1 - 0.9**t)) / ((second[i] / (1 - 0.999**t)).sqrt() + 1e-8)  # noqa: PLW2901
    return model


@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_steps_equal_those_by_hand(mu: float) -> None:
    trained = net()
    train(trained, IMAGES, epochs=4, batch_size=64, learning_rate=0.01, drift=Drift(mu))
    expected = by_hand(net(), 4, mu)
    for got, want in zip(trained.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_the_proximal_term_keeps_weights_near() -> None:
    moved = []
    for mu in (0.0, 10.0):
        model, start = net(), net()
        train(model, IMAGES, epochs=30, batch_size=8, learning_rate=0.01, drift=Drift(mu))
        both = zip(model.parameters(), start.parameters(), strict=True)
        moved.append(sum((a - b).square().sum().item() for a, b in both))
    assert moved[1] < moved[0] / 4


def test_same_seed_same_weights() -> None:
    models = []
    for _ in range(2):
        models.append(net())
        torch.manual_seed(5)
        train(models[-1], IMAGES, epochs=2, batch_size=8, learning_rate=0.01)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_last_batch_of_one_trains_with_batchnorm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3))
    score = train(model, IMAGES, epochs=1, batch_size=8, learning_rate=0.01)  # 33 = 4 · 8 + 1
    assert 0 <= score.accuracy <= 1


def test_evaluate_by_hand_and_in_any_batches() -> None:
    model = net()
    logits = model(IMAGES.pixels)
    for size in (1, 10, 256):
        score = evaluate(model, IMAGES, batch_size=size)
        hits = (logits.argmax(1) == IMAGES.labels).float().mean().item()
        assert score.accuracy == pytest.approx(hits)
        assert score.loss == pytest.approx(F.cross_entropy(logits, IMAGES.labels).item(), rel=1e-5)


def test_evaluate_does_not_touch_batchnorm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, IMAGES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_evaluate_judges_the_model_as_it_is_now() -> None:
    """Whatever way its weights were changed since it was judged last."""
    torch.manual_seed(3)
    images = StackedImages(torch.rand(80, 3, 16, 16), torch.arange(80) % 4)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )

    def by_hand() -> tuple[float, float]:
        with torch.no_grad():
            logits = model.eval()(images.pixels.float())
            hits = (logits.argmax(1) == images.labels).float().mean()
            return hits.item(), F.cross_entropy(logits, images.labels).item()

    seen = []
    for change in (
        lambda: None,
        lambda: train(model, images, epochs=1, batch_size=16, learning_rate=0.1),
        lambda: [p.data.mul_(1.5) for p in model.parameters()],
        lambda: model.load_state_dict({k: v / 2 for k, v in model.state_dict().items()}),
        lambda: setattr(model, "8", nn.Linear(16, 4)),
    ):
        change()
        accuracy, loss = by_hand()
        score = evaluate(model, images)
        assert score.accuracy == pytest.approx(accuracy)
        assert score.loss == pytest.approx(loss, abs=1e-5)
        seen.append(loss)
    assert len({round(loss, 3) for loss in seen}) == 5


def test_a_penalty_is_added_to_the_loss_and_not_to_what_is_told_of_it() -> None:
    """One step of plain SGD on the whole set, by hand: the penalty's gradient is 3 everywhere."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def penalty(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append((images, labels))
        return 3 * torch.stack([p.sum() for p in model.parameters()]).sum()

    plain, other, before = net(), net(), list(net().parameters())
    how = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "optimizer": "sgd"}
    scores = []
    for model, more in ((plain, {}), (other, {"penalty": penalty})):
        torch.manual_seed(5)
        scores.append(train(model, IMAGES, **how, **more))  # type: ignore[arg-type]
    assert scores[0] == scores[1]
    for start, one, two in zip(before, plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two, one - 0.01 * 3, rtol=1e-5, atol=1e-6)
        assert not torch.equal(start, one)
    ((images, labels),) = seen
    torch.manual_seed(5)
    order = torch.randperm(33)
    assert torch.equal(images, IMAGES.pixels[order])
    assert torch.equal(labels, IMAGES.labels[order])
