"""SCAFFOLD: Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from tests.federate.bench import TOY, Bench
from tests.federate.conftest import Silent
from torch import Tensor, nn

from fedgaze.config import parse_task
from fedgaze.data import StackedImages, hold_back, load_digits, partition
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare, start
from fedgaze.federate.exchange import pack, unpack
from fedgaze.federate.scaffold import Steering
from fedgaze.store import Run, load_tensors
from fedgaze.train import Drift, Hooks, TorchLearner

Small = Callable[..., dict[str, Any]]
SCAFFOLD = {"strategy": "scaffold", "optimizer": "sgd"}


def answer(message: Message, state: dict[str, Tensor], change: Any) -> Message:
    """A client's reply: its weights, and how its control changed."""
    metrics = MetricRecord({"num-examples": 7})
    records = {"arrays": pack(state), "metrics": metrics}
    if change is not None:
        records["control"] = pack(change)
    return Message(RecordDict(records), reply_to=message)


def sent_control(message: Message) -> list[float]:
    values: list[float] = message.content.array_records["control"]["w"].numpy().tolist()
    return values


def test_the_servers_side(tmp_path: Path) -> None:
    """Two of four clients a round, ``η_g = 0.5``; numbers of samples do not count.

    Round 1: ``x = 0 + 0.5·mean(2, 4) = 1.5``; ``c = 0 + 2/4·mean(1, 3) = 1``.
    Round 2: ``x = 1.5 + 0.5·mean(1.5 - 1.5, 7.5 - 1.5) = 3``; ``c = 1 + 2/4·mean(-1, -2) = 0.25``.
    """
    made = Bench(
        tmp_path,
        4,
        {},
        clients_per_round=2,
        optimizer="sgd",
        strategy={"_target_": "SCAFFOLD", "server_learning_rate": 0.5},
    )
    made.send()
    assert [sent_control(message) for message in made.sent] == [[0.0, 0.0]] * 2
    replies = [
        answer(message, {"w": torch.tensor([y, 0.0])}, {"w": torch.tensor([change, -2.0])})
        for message, y, change in zip(made.sent, (2.0, 4.0), (1.0, 3.0), strict=True)
    ]
    merged, _ = made.strategy.aggregate_train(1, replies)
    assert merged is not None
    made.state = unpack(merged, made.server.like)
    assert made.w == [1.5, 0.0]
    made.send()
    assert [sent_control(message) for message in made.sent] == [[1.0, -1.0]] * 2
    replies = [
        answer(message, {"w": torch.tensor([y, 0.0])}, {"w": torch.tensor([change, 0.0])})
        for message, y, change in zip(made.sent, (1.5, 7.5), (-1.0, -2.0), strict=True)
    ]
    merged, _ = made.strategy.aggregate_train(2, replies)
    assert merged is not None
    made.state = unpack(merged, made.server.like)
    assert made.w == [3.0, 0.0]
    made.send()
    assert sent_control(made.sent[0]) == [0.25, -1.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "lack 'w'"),
        ({"w": torch.zeros(3)}, r"'w' is torch.float32 \(3,\)"),
        ({"w": torch.tensor([float("nan"), 0])}, "not finite"),
        ({"w": torch.zeros(2), "norm.running_mean": torch.zeros(2)}, "has no 'norm.running_mean'"),
    ],
)
def test_a_control_that_does_not_fit_spoils_nothing(
    tmp_path: Path, change: dict[str, Tensor] | None, said: str
) -> None:
    model = {"norm": True}
    made = Bench(tmp_path, 3, model, **SCAFFOLD)
    made.send()
    fine = {name: torch.ones(2) for name in ("w", "norm.weight", "norm.bias")}
    changes = [fine, fine, None if change is None else fine | change]
    replies = [
        answer(message, made.state, each) for message, each in zip(made.sent, changes, strict=True)
    ]
    made.strategy.aggregate_train(1, replies)
    [failure] = made.server.record["failures"]
    assert failure["client"] == 2
    assert re.search(said, failure["reason"])
    made.send()
    assert sent_control(made.sent[0]) == pytest.approx([2 / 3, 2 / 3])


def test_the_clients_side() -> None:
    """``c_i⁺ = c_i - c + (x - y) / Σ η`` = 3 - 1 + (10 - 4) / 0.5; no step, no change."""
    steering = Steering(
        {"w": torch.tensor(1.0), "still": torch.tensor(1.0)},
        {"w": torch.tensor(3.0), "still": torch.tensor(2.0)},
    )
    assert steering.shifts == {"w": torch.tensor(-2.0), "still": torch.tensor(-1.0)}
    both = {"w": torch.tensor(10.0), "still": torch.tensor(5.0)}
    after = steering.after(both, both | {"w": torch.tensor(4.0)}, {"w": 0.5})
    assert after == {"w": torch.tensor(14.0), "still": torch.tensor(2.0)}


MODELS = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(576, 2))
"""


def gradients(
    x: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], w: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Of mean cross-entropy at a linear model; ``w`` is ``(2, 577)``, its last column the bias."""
    logits = x @ w.T
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    return (chances - np.eye(2)[labels]).T @ x / len(x)


def test_a_run_is_algorithm_1(tmp_path: Path) -> None:
    """Two clients, two rounds, three steps of whole batches, written out in NumPy."""
    (tmp_path / "models.py").write_text(MODELS)
    values = {
        "model": {"_target_": "models.Net"},
        "dataset": {"classes": ["1", "7"], "alpha": 0.3},
        "num_clients": 2,
        "num_rounds": 2,
        "num_epochs": 3,
        "batch_size": 10_000,
        "learning_rate": 0.05,
        "xai": {"enabled": False},
        **SCAFFOLD,
    }
    run = start(parse_task(values, tmp_path), tmp_path / "run", Silent())
    digits = load_digits(seed=42).keep(["1", "7"]).train
    data = []
    for own in partition(digits.labels, 2, "dirichlet", 0.3, 42):
        kept, _ = hold_back(digits.labels[own], 0.2, 42)
        pixels = digits[own[kept]].flatten(1).double().numpy()
        data.append(
            (np.pad(pixels, ((0, 0), (0, 1)), constant_values=1.0), digits.labels[own[kept]])
        )
    first = load_tensors(run.checkpoint(0))
    x = np.concatenate([first["1.weight"].numpy(), first["1.bias"].numpy()[:, None]], 1)
    x = x.astype(np.float64)
    c = np.zeros_like(x)
    own_controls = [np.zeros_like(x) for _ in range(2)]
    eta, steps = 0.05, 3
    for number in (1, 2):
        local, changes = [], []
        for client, (pixels, labels) in enumerate(data):
            y = x.copy()
            for _ in range(steps):
                y -= eta * (gradients(pixels, labels.numpy(), y) - own_controls[client] + c)
            new = own_controls[client] - c + (x - y) / (steps * eta)
            local.append(y - x)
            changes.append(new - own_controls[client])
            own_controls[client] = new
        x = x + np.mean(local, 0)
        c = c + np.mean(changes, 0)
        merged = load_tensors(run.checkpoint(number))
        np.testing.assert_allclose(merged["1.weight"], x[:, :-1], atol=1e-5)
        np.testing.assert_allclose(merged["1.bias"], x[:, -1], atol=1e-5)
    memory = load_tensors(run.strategy_state(2))
    np.testing.assert_allclose(memory["dict/control/000000/1.weight"], c[:, :-1], atol=2e-5)
    for client in range(2):
        file = run.path / "clients" / f"client_{client}" / "control" / "round_2.safetensors"
        kept = load_tensors(file)
        np.testing.assert_allclose(kept["1.weight"], own_controls[client][:, :-1], atol=2e-5)
    assert np.abs(own_controls[0] - own_controls[1]).max() > 0.01  # they do differ


def pull(strength: float, target: float, model: Any, *_: Any) -> None:
    """Ten steps of SGD down ``strength / 2 · (w - target)²``."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        optimiser.zero_grad()
        (strength / 2 * (model.w - target).square().sum()).backward()
        optimiser.step()


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_clients_that_differ_find_the_optimum_together(tmp_path: Path, strategy: str) -> None:
    """Client 0 has ``(w + 1)² / 2``, client 1 ``10 (w - 3)² / 2``: the best is 29 / 11.

    FedAvg stops where the mean of ten local steps stands still, between the two optima: its steps
    shrink the distances by 0.95¹⁰ = 0.5987 and 0.5¹⁰ = 0.001, so at
    ``w = (-(1 - 0.5987) + 3·0.999) / ((1 - 0.5987) + 0.999) = 1.854``, 0.78 off. SCAFFOLD finds
    the best.
    """
    made = Bench(tmp_path, 2, {}, strategy=strategy, optimizer="sgd")
    own: list[dict[str, Tensor]] = [{"w": torch.zeros(2)} for _ in range(2)]
    for _ in range(80):
        made.send()
        replies = []
        for client, (strength, target) in enumerate(((1.0, -1.0), (10.0, 3.0))):
            message = made.sent[client]
            model = nn.Module()
            model.w = nn.Parameter(made.state["w"].clone())
            hooks = Hooks(partial(pull, strength, target), lambda *_: (0.0, 0.0))
            learner = TorchLearner(made.server.setup.task, model, hooks)
            images = StackedImages(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
            if strategy == "fedavg":
                learner.train(images, Drift())
                replies.append(answer(message, learner.get_parameters(), None))
                continue
            server = unpack(message.content.array_records["control"], {"w": torch.zeros(2)})
            steering = Steering(server, own[client])
            score = learner.train(images, Drift(controls=steering.shifts))
            after = steering.after(made.state, learner.get_parameters(), score.rates)
            change = {"w": after["w"] - own[client]["w"]}
            own[client] = after
            replies.append(answer(message, learner.get_parameters(), change))
        merged, _ = made.strategy.aggregate_train(made.number, replies)
        assert merged is not None
        made.state = unpack(merged, made.server.like)
    if strategy == "fedavg":
        shrunk = 1 - 0.95**10, 1 - 0.5**10
        fixed = (-shrunk[0] + 3 * shrunk[1]) / sum(shrunk)
        assert made.w == pytest.approx([fixed, fixed], abs=1e-4)
        assert abs(fixed - 29 / 11) > 0.7
    else:
        assert made.w == pytest.approx([29 / 11, 29 / 11], abs=1e-4)


def test_it_needs_plain_sgd(small: Small) -> None:
    with pytest.raises(FedgazeError, match="Scaffold and optimizer=adam do not go together"):
        prepare(parse_task(small(strategy="scaffold")))


@pytest.mark.parametrize(
    ("optimiser", "said"),
    [
        ("torch.optim.Adam(model.parameters())", "this training took Adam"),
        ("torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)", "took SGD with momentum"),
        ("None", "took no optimiser of torch"),
    ],
)
def test_a_tasks_own_loop_has_to_step_plainly(tmp_path: Path, optimiser: str, said: str) -> None:
    (tmp_path / "models.py").write_text(
        TOY.partition("def train_torch")[0]
        + "def train_torch(model, loader, epochs, cfg):\n"
        + f"    optimiser = {optimiser}\n"
        + "    model.w.sum().backward()\n"
        + "    optimiser and optimiser.step()\n"
    )
    values = {
        "model": {"_target_": "models.Toy"},
        "dataset": {"classes": ["1", "7"]},
        "num_clients": 2,
        "xai": {"enabled": False},
        **SCAFFOLD,
    }
    with pytest.raises(FedgazeError, match=f"SCAFFOLD needs steps of plain SGD; .*{said}"):
        start(parse_task(values, tmp_path), tmp_path / "run", Silent())


def test_layers_that_do_not_train_have_no_control(tmp_path: Path) -> None:
    """BatchNorm's statistics are averaged; a frozen layer stays as it is."""
    (tmp_path / "models.py").write_text(
        "from fedgaze.models import DigitsNet\n"
        "class Net(DigitsNet):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(num_classes=num_classes)\n"
        "        self.conv1.requires_grad_(False)\n"
    )
    values = {
        "model": {"_target_": "models.Net"},
        "dataset": {"classes": ["1", "7"]},
        "num_clients": 2,
        "num_rounds": 2,
        "learning_rate": 0.05,
        "xai": {"enabled": False},
        **SCAFFOLD,
    }
    run: Run = start(parse_task(values, tmp_path), tmp_path / "run", Silent())
    before, after = (load_tensors(run.checkpoint(number)) for number in (0, 2))
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not torch.equal(before["conv2.weight"], after["conv2.weight"])
    kept = load_tensors(run.path / "clients/client_0/control/round_2.safetensors")
    assert not any("running" in name or "num_batches" in name for name in kept)
    assert not kept["conv1.weight"].any()
    assert kept["conv2.weight"].any()
