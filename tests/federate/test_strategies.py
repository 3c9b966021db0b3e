"""Flower's strategies by the words that people have for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate.strategies import (
    NAMES,
    resolve_strategy,
    restore_memory,
    strategy_memory,
)
from fedgaze.store import Run

Small = Callable[..., dict[str, Any]]


def resolve(small: Small, **changes: Any) -> tuple[type[FedAvg], dict[str, Any]]:
    return resolve_strategy(parse_task(small(**{"num_clients": 10} | changes)))


@pytest.mark.parametrize(
    "name",
    [
        "flwr.server.strategy.FedAvg",
        "flwr.serverapp.strategy.FedAvg",
        "FedAvg",
        "fedavg",
    ],
)
def test_older_newer_and_short_names(small: Small, name: str) -> None:
    assert resolve(small, strategy=name)[0] is FedAvg


def test_older_arguments_become_present_ones(small: Small) -> None:
    strategy = {
        "_target_": "flwr.server.strategy.FedAdam",
        "fraction_fit": 0.5,
        "min_fit_clients": 3,
        "min_available_clients": 4,
        "eta": 0.2,
    }
    kind, arguments = resolve(small, server={"strategy": strategy})
    assert kind is FedAdam
    assert arguments["eta"] == 0.2
    assert arguments["min_train_nodes"] == 5
    assert arguments["fraction_train"] == 0.5
    assert arguments["min_available_nodes"] == 4
    assert vars(kind(**arguments))["eta"] == 0.2  # Flower takes them


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (
            {"_target_": "flwr.server.strategy.FedAvgg"},
            "FedAvgg: there is no such strategy; .*did you mean 'flwr.serverapp.strategy.FedAvg'",
        ),
        ({"_target_": "os.system"}, "os.system: there is no such strategy"),
        ({"_target_": "os.FedAvg"}, "os.FedAvg: there is no such strategy"),
        ({"_target_": "fedavg", "fraction_fti": 1}, "fraction_fti=1: FedAvg takes .*fraction_fit"),
        ({"_target_": "fedavg", "fraction_fit": 2}, "fraction_fit=2: a part from 0 to 1"),
        ({"_target_": "fedavg", "fraction_fit": "half"}, "fraction_fit=half: a number"),
        ({"_target_": "fedavg", "min_fit_clients": 1.5}, "min_fit_clients=1.5: a whole number"),
        ({"_target_": "fedavg", "min_fit_clients": 11}, "11 is more than num_clients=10"),
        ({"_target_": "fedavg", "fraction_fit": 0.01}, "leaves no client to train"),
        ({"_target_": "fedavg", "fraction_fit": 0.5, "fraction_train": 0.5}, "given twice"),
        ({"_target_": "fedavg", "train_metrics_aggr_fn": 3}, "train_metrics_aggr_fn=3: FedAvg ta"),
        ({"_target_": "qfedavg"}, "client_learning_rate is missing"),
    ],
)
def test_what_is_wrong_is_said(small: Small, strategy: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError, match=said):
        resolve(small, server={"strategy": strategy})


def test_two_words_for_the_number_of_clients_must_agree(small: Small) -> None:
    fraction = {"_target_": "fedavg", "fraction_fit": 0.3}
    _, arguments = resolve(small, clients_per_round=3, server={"strategy": fraction})
    assert arguments["min_train_nodes"] == 3
    with pytest.raises(
        FedgazeError, match=r"clients_per_round=5 and .*fraction_train=0.3.*makes 3"
    ):
        resolve(small, clients_per_round=5, server={"strategy": fraction})


@pytest.mark.parametrize("count", range(1, 11))
def test_flower_samples_exactly_as_many_as_asked_for(small: Small, count: int) -> None:
    kind, arguments = resolve(small, clients_per_round=count)
    strategy = kind(**arguments)
    assert max(int(10 * strategy.fraction_train), strategy.min_train_nodes) == count


@pytest.mark.parametrize("name", NAMES)
def test_each_strategy_carries_a_run(carry_out: Callable[..., Run], name: str) -> None:
    needed = {"client_learning_rate": 0.1} if name == "QFedAvg" else {}
    run = carry_out(
        num_clients=4 if name == "Bulyan" else 3,
        xai={"enabled": False},
        strategy={"_target_": name, **needed},
    )
    assert len(run.summary["rounds"]) == 2


def test_memory_goes_through_tensors_and_back() -> None:
    strategy = FedAvgM(server_momentum=0.9)
    strategy.momentum_vector = [np.float32([1, 2]), np.array(3.0)]
    strategy.current_arrays = ArrayRecord(
        {"z": Array(np.float32([[4]])), "a": Array(np.float32([7]))}
    )
    adam = FedAdam()
    adam.m_t = {"a.b": np.float32([5]), "c/d": np.float64(6)}
    for old in (strategy, adam):
        new = type(old)()
        restore_memory(new, strategy_memory(old))
        before, after = strategy_memory(old), strategy_memory(new)
        assert before
        assert list(before) == list(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert list(getattr(new, "current_arrays", None) or {}) == list(
            getattr(old, "current_arrays", None) or {}
        )
        assert {k: type(v) for k, v in vars(old).items()} == {
            k: type(v) for k, v in vars(new).items()
        }
