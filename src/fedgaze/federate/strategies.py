"""Which of Flower's strategies a task means, and with which arguments."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedgaze.config import Task
from fedgaze.errors import FedgazeError, nearest

__all__ = ["resolve_strategy", "restore_memory", "strategy_memory"]

NAMES = (
    "FedAvg",
    "FedAvgM",
    "FedAdagrad",
    "FedAdam",
    "FedYogi",
    "FedProx",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "MultiKrum",
    "Bulyan",
    "QFedAvg",
)
MODULES = ("flwr.serverapp.strategy", "flwr.server.strategy")
# What the arguments of Flower's strategies were called before 1.21, and what they are called now.
OLDER_ARGUMENTS = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
    "num_malicious_clients": "num_malicious_nodes",
    "num_clients_to_keep": "num_nodes_to_select",
    "q_param": "q",
    "qffl_learning_rate": "client_learning_rate",
}
# These are the protocol between fedgaze's own apps, or would call code that a YAML names.
OURS = (
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
    "train_loss_key",
    "train_metrics_aggr_fn",
    "evaluate_metrics_aggr_fn",
)


def resolve_strategy(task: Task) -> tuple[type[FedAvg], dict[str, Any]]:
    """Find the strategy class of a task, and its arguments in Flower's present words.

    Returns:
        The class, and all keyword arguments, those for the number of clients a round among them.

    Raises:
        FedgazeError: There is no such strategy or argument, a value has the wrong type, or the
            arguments and ``clients_per_round`` say different numbers.
    """
    spec = task.server.strategy
    module, _, name = spec.target.rpartition(".")
    known = {each.lower(): each for each in NAMES}
    if name.lower() not in known or (module and module not in MODULES):
        close = nearest(name.lower(), known)
        for lower, proper in known.items():
            close = close.replace(f"'{lower}'", f"'{MODULES[0]}.{proper}'")
        raise FedgazeError(
            f"server.strategy._target_={spec.target}: there is no such strategy; "
            f"there are {', '.join(NAMES)}{close}"
        )
    strategy: type[FedAvg] = getattr(flower, known[name.lower()])
    arguments = _arguments(strategy, spec.arguments)
    _set_clients_per_round(task, arguments)
    return strategy, arguments


def _arguments(strategy: type[FedAvg], given: Mapping[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(strategy).parameters
    allowed = [key for key in signature if key not in OURS]
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        present = OLDER_ARGUMENTS.get(key, key)
        if present not in allowed:
            raise FedgazeError(
                f"server.strategy.{key}={value}: {strategy.__name__} takes {', '.join(allowed)}"
                f"{nearest(present, [*allowed, *OLDER_ARGUMENTS])}"
            )
        if present in arguments:
            raise FedgazeError(f"server.strategy.{present} is given twice, once by its older name")
        whole = signature[present].annotation in (int, "int")
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < float("inf"):
            kind = "a whole number" if whole else "a number"
            raise FedgazeError(f"server.strategy.{key}={value}: {kind} of at least 0 is allowed")
        if present.startswith("fraction") and value > 1:
            raise FedgazeError(f"server.strategy.{key}={value}: a part from 0 to 1 is allowed")
        arguments[present] = value
    needed = [key for key in allowed if signature[key].default is inspect.Parameter.empty]
    if missing := [key for key in needed if key not in arguments]:
        raise FedgazeError(f"server.strategy.{missing[0]} is missing: {strategy.__name__} needs it")
    return arguments


def _set_clients_per_round(task: Task, arguments: dict[str, Any]) -> None:
    """Make Flower's fractions and minimums say exactly how many clients train in a round."""
    clients = task.num_clients
    for key in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
        if arguments.get(key, 0) > clients:
            raise FedgazeError(
                f"server.strategy.{key}={arguments[key]} is more than num_clients={clients}: "
                "the run would wait for ever"
            )
    said = {
        key: arguments[key] for key in ("fraction_train", "min_train_nodes") if key in arguments
    }
    chosen = task.clients_per_round
    if said:
        by_fraction = int(clients * said.get("fraction_train", 1.0 if chosen is None else 0.0))
        meant = max(by_fraction, said.get("min_train_nodes", 0))
        if chosen is not None and meant != chosen:
            words = " and ".join(f"{key}={value}" for key, value in said.items())
            raise FedgazeError(
                f"clients_per_round={chosen} and server.strategy's {words} "
                f"(which makes {meant} of {clients} clients) contradict each other: keep one"
            )
        chosen = meant
    chosen = clients if chosen is None else chosen
    if chosen == 0:
        raise FedgazeError("server.strategy.fraction_train leaves no client to train")
    arguments["min_train_nodes"] = chosen
    arguments["fraction_train"] = chosen / clients
    # fedgaze's clients evaluate when they train, and the server judges on its own images: a second
    # round of messages would only repeat it. Whoever asks for it gets it.
    asked = "min_evaluate_nodes" in arguments
    arguments.setdefault("fraction_evaluate", 1.0 if asked else 0.0)
    arguments.setdefault("min_evaluate_nodes", 1)
    arguments.setdefault("min_available_nodes", clients)


def strategy_memory(strategy: FedAvg) -> dict[str, Tensor]:
    """What a strategy remembers from round to round (momentum and such), as named tensors.

    A name is the attribute's kind, its name, the place and the key: ``dict/m_t/000003/fc.weight``.
    Places matter: FedAvgM pairs arrays by their order.
    """
    memory: dict[str, Tensor] = {}
    for name, value in vars(strategy).items():
        kind, arrays = _arrays(value)
        if all(isinstance(each, np.ndarray | np.generic) for each in arrays.values()):
            for place, (key, array) in enumerate(arrays.items()):
                memory[f"{kind}/{name}/{place:06}/{key}"] = torch.from_numpy(np.array(array))
    return memory


def _arrays(value: Any) -> tuple[str, dict[str, Any]]:
    match value:
        case ArrayRecord():
            return "record", {key: array.numpy() for key, array in value.items()}
        case dict():
            return "dict", value
        case list():
            return "list", {str(place): each for place, each in enumerate(value)}
        case _:
            return "none", {}


def restore_memory(strategy: FedAvg, memory: Mapping[str, Tensor]) -> None:
    """Give a strategy back what :func:`strategy_memory` took down."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(memory):
        kind, name, _, key = path.split("/", 3)
        found.setdefault((kind, name), {})[key] = memory[path].numpy()
    for (kind, name), arrays in found.items():
        restored: Any = arrays
        if kind == "list":
            restored = list(arrays.values())
        elif kind == "record":
            restored = ArrayRecord({key: Array(array) for key, array in arrays.items()})
        setattr(strategy, name, restored)
