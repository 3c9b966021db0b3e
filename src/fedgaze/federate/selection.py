"""Who trains in a round."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedgaze.config import SelectionSpec, Task
from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.ordered import ForwardingGrid
from fedgaze.report.federated.words import MEASURES

__all__ = ["check_selection", "choose", "choose_judges", "last_rounds", "shown_only"]

_BY_CHANCE = SelectionSpec(by="random")


def choose(
    task: Task,
    count: int,
    number: int,
    online: Sequence[int],
    history: Sequence[Mapping[str, Any]],
) -> list[int]:
    """Choose the clients of a round: the same ones whenever it is asked the same.

    By a metric, clients are ordered by the last value that each of them reported, and those that
    never did come first (after Cho et al. 2020, arXiv:2010.01243: with ``prefer: high`` of a loss,
    and ``candidates`` for their ``d``; there clients are asked anew in each round).

    Args:
        task: Its seed and its ``selection``.
        count: How many the strategy wants; fewer where fewer are there.
        number: The round, from 1.
        online: The clients that are there, ascending.
        history: The records of the rounds before.

    Returns:
        The clients, ascending.
    """
    spec = task.selection or _BY_CHANCE
    if spec.by == "explicit":
        return [client for client in online if client in (spec.clients or [])]
    draw = random.Random(f"{task.random_seed} {number}")  # noqa: S311 - a choice, no secret
    if spec.by != "metric":
        return sorted(draw.sample(online, min(count, len(online))))
    drawn = draw.sample(online, min(spec.candidates or len(online), len(online)))
    last = _last_values(history, spec.metric.split("."))
    sign = -1 if spec.prefer == "high" else 1
    # The order of the draw breaks ties.
    drawn.sort(key=lambda client: (client in last, sign * last.get(client, 0.0)))
    return sorted(drawn[:count])


def _last_values(history: Iterable[Mapping[str, Any]], path: Sequence[str]) -> dict[int, float]:
    """The last value of each client's number; what was no finite number is no value."""
    last: dict[int, float] = {}
    for record in history:
        for entry in record["clients"]:
            value: Any = entry
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, int | float):
                last[entry["client"]] = value
    return last


def choose_judges(task: Task, strategy: Strategy, number: int, online: Iterable[int]) -> list[int]:
    """Choose the clients that judge a round's merged model, as ``fraction_evaluate`` says.

    Args:
        task: Its seed.
        strategy: Knows how many it wants.
        number: The round, from 1.
        online: The clients that are there.

    Returns:
        The clients, ascending.
    """
    there = sorted(online)
    samples = inner(strategy)
    count = max(int(len(there) * samples.fraction_evaluate), samples.min_evaluate_nodes)
    draw = random.Random(f"{task.random_seed} {number} judges")  # noqa: S311 - a choice, no secret
    return sorted(draw.sample(there, min(count, len(there))))


def last_rounds(history: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """The last round of each client that counted: its update was there, and there was a merge."""
    return {
        entry["client"]: record["round"]
        for record in history
        if "not_merged" not in record
        for entry in record["clients"]
    }


def check_selection(task: Task, own_test: bool) -> None:
    """Refuse a metric that no client will ever report.

    Args:
        task: The task.
        own_test: Whether the task has a test of its own, whose metrics nobody knows before.

    Raises:
        FedgazeError: There is no such metric.
    """
    spec = task.selection
    if spec is None or spec.by != "metric":
        return
    known = ["samples"]
    known += [f"{part}.{name}" for part in ("train", "validation") for name in ("accuracy", "loss")]
    xai = task.xai
    if xai.enabled and xai.run_location in ("client", "both") and xai.share != "none":
        known += [f"explanation.{name}" for name in MEASURES]
    if xai.enabled and xai.run_location in ("server", "both"):
        known += [f"server_explanation.{name}" for name in MEASURES]
    part, _, name = spec.metric.partition(".")
    own = own_test and part in ("train", "validation") and bool(name)
    if spec.metric not in known and not own:
        raise FedgazeError(
            f"selection.metric={spec.metric}: no client reports it; they report "
            f"{', '.join(known)}{nearest(spec.metric, known)}"
        )


class _Chosen(ForwardingGrid):
    """A grid that shows only some nodes, so that Flower's sampling has nothing left to choose."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        super().__init__(grid)
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """The chosen nodes, were they gone by now: Flower would wait for them for ever."""
        return list(self._nodes)


def inner(strategy: Strategy) -> FedAvg:
    """The strategy inside of Flower's wrappers, which is the one that samples."""
    within: Any = strategy
    while not isinstance(within, FedAvg):
        within = within.strategy
    return within


@contextmanager
def shown_only(strategy: Strategy, grid: Grid, nodes: Sequence[int]) -> Iterator[Grid]:
    """Let a strategy take all nodes of a grid that shows only these, and leave no trace of it.

    Args:
        strategy: Samples with Python's global generator, whose state is kept.
        grid: Where the nodes are.
        nodes: The chosen ones.
    """
    wanted = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": len(nodes),
        "min_evaluate_nodes": len(nodes),
        "min_available_nodes": len(nodes),
    }
    samples = vars(inner(strategy))
    before = {name: samples[name] for name in wanted}
    state = random.getstate()
    samples.update(wanted)
    try:
        yield _Chosen(grid, nodes)
    finally:
        samples.update(before)
        random.setstate(state)
