"""Flower's strategies by the words that people have for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, MultiKrum

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate.memory import restore_memory, strategy_memory
from fedgaze.federate.strategies import NAMES, resolve_strategy
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
        "fed_avg",
    ],
)
def test_older_newer_and_short_names(small: Small, name: str) -> None:
    assert resolve(small, strategy=name)[0] is FedAvg


@pytest.mark.parametrize("name", ["MultiKrum", "multikrum", "multi-krum", "Multi_Krum"])
def test_names_with_and_without_signs(small: Small, name: str) -> None:
    strategy = {"_target_": name, "num_clients_to_keep": 2}
    assert resolve(small, strategy=strategy)[0] is MultiKrum


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
            "FedAvgg: there is no such strategy; .*did you mean 'FedAvg'",
        ),
        ({"_target_": "os.system"}, "os.system: there is no such strategy"),
        ({"_target_": "os.FedAvg"}, "os.FedAvg: there is no such strategy"),
        ({"_target_": "fedavg", "fraction_fti": 1}, "fraction_fti=1: FedAvg takes .*fraction_fit"),
        ({"_target_": "fedavg", "fraction_fit": 2}, "fraction_fit=2: a part from 0 to 1"),
        ({"_target_": "fedavg", "fraction_fit": "half"}, "fraction_fit=half: a part from 0"),
        ({"_target_": "fedavg", "min_fit_clients": 1.5}, "min_fit_clients=1.5: a whole number"),
        ({"_target_": "fedavg", "min_fit_clients": 11}, "11 is more than num_clients=10"),
        ({"_target_": "fedavg", "fraction_fit": 0.01}, "leaves no client to train"),
        ({"_target_": "fedavg", "fraction_fit": 0.5, "fraction_train": 0.5}, "given twice"),
        ({"_target_": "fedavg", "train_metrics_aggr_fn": 3}, "train_metrics_aggr_fn=3: FedAvg ta"),
        ({"_target_": "qfedavg"}, "client_learning_rate is missing"),
        ({"_target_": "qfedavg", "client_learning_rate": 0}, "=0: a number above 0"),
        ({"_target_": "qfedavg", "client_learning_rate": 1, "q": -1}, "q=-1: .*at least 0"),
        ({"_target_": "bulyan", "selection_rule": 1}, "selection_rule=1: Bulyan takes"),
        ({"_target_": "bulyan", "num_malicious_clients": 2}, "needs 11 updates .4·2 . 3.*has 10"),
        ({"_target_": "krum", "num_malicious_clients": 4}, "needs 11 updates .2·4 . 3.*has 10"),
        ({"_target_": "multi-krum"}, "num_nodes_to_select is missing: without it MultiKrum is Kr"),
        ({"_target_": "multikrum", "num_clients_to_keep": 0}, "num_clients_to_keep=0: .*at least"),
        (
            {"_target_": "multikrum", "num_clients_to_keep": 9, "num_malicious_clients": 2},
            "num_nodes_to_select=9 is more than the 8 that are honest among 10 updates",
        ),
        ({"_target_": "fedtrimmedavg", "beta": 0.5}, "beta=0.5: .*at least 0 and below 0.5"),
        ({"_target_": "fedtrimmedavg", "beta": 0.09}, "beta=0.09 cuts nobody off 10 updates"),
        ({"_target_": "fedavgm"}, "server_momentum is missing: without it FedAvgM is FedAvg"),
        ({"_target_": "fedavgm", "server_momentum": 1}, "server_momentum=1: .*below 1"),
        ({"_target_": "fedprox"}, "proximal_mu is missing: without it FedProx is FedAvg"),
        ({"_target_": "fedprox", "proximal_mu": float("nan")}, "proximal_mu=nan: a number of"),
        ({"_target_": "fedadam", "beta_1": 1.0}, "beta_1=1.0: .*below 1"),
        ({"_target_": "fedadam", "tau": 0}, "tau=0: a number above 0"),
        ({"_target_": "fedadam", "eta": True}, "eta=True: a number above 0"),
        ({"_target_": "fedyogi", "eta_l": 0.5}, "eta_l=0.5 and learning_rate=0.003 contradict"),
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


NEEDED: dict[str, dict[str, float]] = {
    "FedAvgM": {"server_momentum": 0.9},
    "FedProx": {"proximal_mu": 0.1},
    "FedTrimmedAvg": {"beta": 0.34},
    "MultiKrum": {"num_nodes_to_select": 2},
    "QFedAvg": {"client_learning_rate": 0.1},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_strategy_carries_a_run(carry_out: Callable[..., Run], name: str) -> None:
    run = carry_out(
        xai={"enabled": False}, optimizer="sgd", strategy={"_target_": name, **NEEDED.get(name, {})}
    )
    assert len(run.summary["rounds"]) == 2
    assert all("not_merged" not in record for record in run.summary["rounds"])


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
