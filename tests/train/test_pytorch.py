"""A task's own loops, and what a learner is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedgaze.config import parse_task
from fedgaze.data import StackedImages
from fedgaze.errors import FedgazeError
from fedgaze.train import LEARNERS, Drift, TorchLearner, find_hooks

PIXELS = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
IMAGES = StackedImages(PIXELS, torch.arange(20) % 3)

NET = """
import torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(16, 3))
"""

SGD = """
def train_torch(model, loader, epochs, cfg):
    optimiser = torch.optim.SGD(model.parameters(), lr=cfg.learning_rate)
    for _ in range(epochs):
        for images, labels in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
"""


def learner(folder: Path, code: str, **keys: Any) -> TorchLearner:
    (folder / "models.py").write_text(NET + code)
    values = {"model": {"_target_": "models.Net"}, "batch_size": 20, "learning_rate": 0.5, **keys}
    task = parse_task(values, folder)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    return TorchLearner(task, model, find_hooks(task))


def test_an_own_loop_trains(tmp_path: Path) -> None:
    own = learner(tmp_path, SGD, num_epochs=1)
    before = own.get_parameters()
    own.train(IMAGES, Drift())
    weight, bias = (before[f"1.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    loss = F.cross_entropy(F.linear(PIXELS.flatten(1), weight, bias), IMAGES.labels)
    loss.backward()
    assert weight.grad is not None
    torch.testing.assert_close(
        own.get_parameters()["1.weight"], weight.detach() - 0.5 * weight.grad
    )


def test_the_proximal_term_enters_an_own_loop(tmp_path: Path) -> None:
    """Two steps of SGD worked by hand: the pull of FedProx is zero in the first."""
    own = learner(tmp_path, SGD, num_epochs=2)
    start = own.get_parameters()["1.weight"]
    own.train(IMAGES, Drift(proximal_mu=0.8))
    free = learner(tmp_path, SGD, num_epochs=1)
    free.train(IMAGES, Drift())
    once = free.get_parameters()["1.weight"]
    free.train(IMAGES, Drift())
    twice = free.get_parameters()["1.weight"]
    torch.testing.assert_close(own.get_parameters()["1.weight"], twice - 0.5 * 0.8 * (once - start))


def test_controls_shift_every_gradient(tmp_path: Path) -> None:
    """SCAFFOLD's line 10: y - eta (g - c_i + c)."""
    shift = torch.linspace(-1, 1, 48).view(3, 16)
    results = []
    for drift in (Drift(), Drift(controls={"1.weight": shift})):
        own = learner(tmp_path, SGD, num_epochs=1)
        own.train(IMAGES, drift)
        results.append(own.get_parameters())
    torch.testing.assert_close(results[1]["1.weight"], results[0]["1.weight"] - 0.5 * shift)
    torch.testing.assert_close(results[1]["1.bias"], results[0]["1.bias"])


def test_no_term_is_left_on_the_model(tmp_path: Path) -> None:
    own = learner(tmp_path, "\ndef train_torch(model, loader, epochs, cfg):\n    1 / 0\n")
    with pytest.raises(FedgazeError):
        own.train(IMAGES, Drift(proximal_mu=9.0, controls={"1.bias": torch.ones(3)}))
    F.cross_entropy(own.model(PIXELS), IMAGES.labels).backward()
    got = own.model[1].bias.grad
    plain = nn.Linear(16, 3)
    plain.load_state_dict(own.model[1].state_dict())
    F.cross_entropy(plain(PIXELS.flatten(1)), IMAGES.labels).backward()
    torch.testing.assert_close(got, plain.bias.grad)


def test_an_own_test_is_believed(tmp_path: Path) -> None:
    code = """
def test_torch(model, loader, cfg):
    seen = sum(len(labels) for _, labels in loader)
    whole = len(loader.dataset)
    return 1.5, torch.tensor(0.25), {"seen": seen, "whole": whole, "size": cfg.batch_size}
"""
    score = learner(tmp_path, code, batch_size=8).evaluate(IMAGES)
    assert (score.loss, score.accuracy) == (1.5, 0.25)
    assert score.metrics == {"seen": 20, "whole": 20, "size": 8}


def test_a_hook_without_arguments_returns_the_loop(tmp_path: Path) -> None:
    code = """
def test_torch():
    def custom_test(model, loader, cfg):
        return 2.0, 0.5, None
    return custom_test
"""
    score = learner(tmp_path, code).evaluate(IMAGES)
    assert (score.loss, score.accuracy, score.metrics) == (2.0, 0.5, {})


def test_a_returned_model_is_taken_over(tmp_path: Path) -> None:
    code = """
def train_torch(model, loader, epochs, cfg):
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.constant_(other[1].weight, 7.0)
    return other
"""
    own = learner(tmp_path, code)
    own.train(IMAGES, Drift())
    assert (own.get_parameters()["1.weight"] == 7).all()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("0.5", "test_torch must return"),
        ("(1.0, 'good')", "all of them numbers"),
        ("(1.0, 97.5)", "accuracy is 97.5: 0 to 1 is allowed"),
        ("(1.0, 0.5, {'a b': 1})", "'a b'"),
        ("(1.0, 0.5, {'loss': 1})", "neither loss nor accuracy"),
        ("(1.0, 0.5, [1])", "must return"),
    ],
)
def test_what_a_test_may_not_return(tmp_path: Path, returned: str, said: str) -> None:
    own = learner(tmp_path, f"\ndef test_torch(model, loader, cfg):\n    return {returned}\n")
    with pytest.raises(FedgazeError, match=said):
        own.evaluate(IMAGES)


def test_an_error_in_a_hook_names_its_line(tmp_path: Path) -> None:
    own = learner(tmp_path, "\ndef train_torch(model, loader, epochs, cfg):\n    1 / 0\n")
    with pytest.raises(FedgazeError, match=r"models\.py, line 9: ZeroDivisionError"):
        own.train(IMAGES, Drift())


def test_a_hook_that_is_no_function(tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match=r"models\.train_torch is 3: a function"):
        learner(tmp_path, "\ntrain_torch = 3\n")


def test_every_model_type_with_a_learner_can_be_asked_for_one() -> None:
    for kind in LEARNERS:
        assert parse_task({"model": {"name": "resnet18"}, "model_type": kind}).model_type == kind


@pytest.mark.parametrize("strategy", ["fedavg", "fedbn"])
def test_what_stays_at_home_is_not_counted(tmp_path: Path, strategy: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    (tmp_path / "models.py").write_text(NET)
    values = {"model": {"_target_": "models.Net"}, "server": {"strategy": strategy}}
    task = parse_task(values, tmp_path)
    own = TorchLearner(task, model, find_hooks(task))
    found = own.count(PIXELS)
    if strategy == "fedbn":
        assert found is None
    else:
        assert found is not None
        assert found.names == ("1.running_mean", "1.running_var")
        assert set(found.names) < own.statistics()
        torch.testing.assert_close(found.means, model[0](PIXELS).mean((2, 3)))
