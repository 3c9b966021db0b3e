"""Which of Flower's strategies a task means, and with which arguments."""

import inspect
from collections.abc import Mapping
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from fedgaze.config import Task
from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.limits import check_number, lacking
from fedgaze.federate.scaffold import Scaffold

__all__ = ["NAMES", "FedBN", "resolve_strategy"]


class FedBN(FedAvg):
    """FedAvg of all but normalisation layers, which stay at each client.

    Li et al. 2021, arXiv:2102.07623, Algorithm 1. What stays is the learner's to know
    (:meth:`fedgaze.train.LearnerProtocol.get_kept`), and the client's to keep.
    """


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
    "FedBN",
    "Scaffold",
)
OWN: dict[str, type[FedAvg]] = {"FedBN": FedBN, "Scaffold": Scaffold}
MODULES = ("flwr.serverapp.strategy", "flwr.server.strategy", "fedgaze.federate")
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
# Left out, Flower takes a value with which the strategy is another one.
TELLING = {
    "FedAvgM": ("server_momentum", "FedAvg"),
    "FedProx": ("proximal_mu", "FedAvg"),
    "MultiKrum": ("num_nodes_to_select", "Krum"),
}
# These are the protocol between fedgaze's own apps, or would call code that a YAML names.
OURS = (
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
    "population",
    "selection_rule",
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
            arguments and ``clients_per_round`` or ``selection`` say different numbers.
    """
    spec = task.server.strategy
    module = spec.target.rpartition(".")[0]
    known = {each.lower(): each for each in NAMES}
    if spec.short not in known or (module and module not in MODULES):
        close = nearest(spec.short, known)
        for lower, proper in known.items():
            close = close.replace(f"'{lower}'", f"'{proper}'")
        raise FedgazeError(
            f"server.strategy._target_={spec.target}: there is no such strategy; "
            f"there are {', '.join(NAMES)}{close}"
        )
    name = known[spec.short]
    strategy: type[FedAvg] = OWN[name] if name in OWN else getattr(flower, name)
    arguments = _arguments(strategy, spec.arguments)
    rate = arguments.get("eta_l", task.learning_rate)
    if rate != task.learning_rate:
        raise FedgazeError(
            f"server.strategy.eta_l={rate} and learning_rate={task.learning_rate} contradict each "
            "other: clients train with learning_rate, and Flower does nothing with eta_l; leave it "
            "out"
        )
    _set_clients_per_round(task, arguments)
    training = arguments["min_train_nodes"]
    if why := lacking(strategy.__name__, arguments, training):
        raise FedgazeError(f"server.strategy: {why}")
    if strategy is flower.QFedAvg:
        arguments["train_loss_key"] = "received_loss"
    if strategy is Scaffold:
        if task.optimizer != "sgd":
            raise FedgazeError(
                f"server.strategy=Scaffold and optimizer={task.optimizer} do not go together: its "
                "controls are differences of gradients, and only plain SGD steps along them; set "
                "optimizer=sgd"
            )
        arguments["population"] = task.num_clients
    if strategy is FedBN and not arguments["fraction_evaluate"]:
        raise FedgazeError(
            "server.strategy.fraction_evaluate=0 leaves nobody to judge the merged model: with "
            "FedBN only clients can, since normalisation layers stay with them"
        )
    return strategy, arguments


def _arguments(strategy: type[FedAvg], given: Mapping[str, Any]) -> dict[str, Any]:
    signature = {**inspect.signature(FedAvg).parameters, **inspect.signature(strategy).parameters}
    signature.pop("options", None)
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
        check_number(present, value, whole=whole, said=key)
        arguments[present] = value
    needed = [key for key in allowed if signature[key].default is inspect.Parameter.empty]
    if missing := [key for key in needed if key not in arguments]:
        raise FedgazeError(f"server.strategy.{missing[0]} is missing: {strategy.__name__} needs it")
    own, plain = TELLING.get(strategy.__name__, ("", ""))
    if own and own not in arguments:
        raise FedgazeError(
            f"server.strategy.{own} is missing: without it {strategy.__name__} is {plain}"
        )
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
    chosen = task.selected
    if said:
        by_fraction = int(clients * said.get("fraction_train", 1.0 if chosen is None else 0.0))
        meant = max(by_fraction, said.get("min_train_nodes", 0))
        if chosen is not None and meant != chosen:
            words = " and ".join(f"{key}={value}" for key, value in said.items())
            task_says = f"clients_per_round={chosen}"
            if task.selection is not None:
                task_says = f"selection, by which {chosen} clients train,"
            raise FedgazeError(
                f"{task_says} and server.strategy's {words} "
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
    asked = "min_evaluate_nodes" in arguments or task.server.strategy.short == "fedbn"
    arguments.setdefault("fraction_evaluate", 1.0 if asked else 0.0)
    arguments.setdefault("min_evaluate_nodes", 1)
    arguments.setdefault("min_available_nodes", clients)
