"""What each client adds to a round's merged model, by what is lost without it.

A coalition's value is how well the model does that is merged from its updates alone, by the round's
own strategy, on the server's held-out images. Values are pairs: accuracy and loss.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

from fedgaze.config import ContributionSpec, Task
from fedgaze.federate.replies import Update, finite
from fedgaze.federate.setup import reason

__all__ = ["Contribution", "contributions", "weigh"]

Value = Callable[[frozenset[int]], Tensor]

EXACT = 6
"""Up to so many clients every coalition is tried, which takes 64 of them at most."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """What a client adds.

    Attributes:
        mean: ``(2,)``: to accuracy and to loss; of a client that helps, the second is negative.
        error: The standard error of the mean, where it is an estimate.
    """

    mean: Tensor
    error: Tensor | None = None


def weigh(task: Task, record: dict[str, Any], updates: Sequence[Update], value: Value) -> None:
    """Write what each client of a round adds into its entry of the round's record.

    Args:
        task: Says by which rule; its seed.
        record: The round's; where it fails, it says so here and ends no training.
        updates: At least one.
        value: Of a coalition.
    """
    spec = task.contribution
    seed = f"{task.random_seed} {record['round']} contribution"
    record["contribution"] = {"by": spec.by}
    try:
        found = contributions(spec, [update.client for update in updates], value, seed)
    except Exception as error:  # noqa: BLE001 - no training ends for this
        record["contribution"] = {"failed": reason(error)}
        return
    for update in updates:
        share = found[update.client]
        update.entry["contribution"] = _pair(share.mean)
        if share.error is not None:
            update.entry["contribution"]["error"] = _pair(share.error)


def _pair(values: Tensor) -> dict[str, Any]:
    accuracy, loss = values.tolist()
    return {"accuracy": finite(accuracy), "loss": finite(loss)}


def contributions(
    spec: ContributionSpec, clients: Sequence[int], value: Value, seed: str
) -> dict[int, Contribution]:
    """What each client of a round adds.

    Args:
        spec: By which rule.
        clients: Whose updates there are, at least one.
        value: Of a coalition; asked once for each.
        seed: Orders are drawn from it, where not all are tried.
    """
    known = cache(value)
    if spec.by == "leave_one_out":
        return _leave_one_out(clients, known)
    if len(clients) <= EXACT:
        return _shapley(clients, known)
    return _sampled_shapley(spec, clients, known, seed)


def _leave_one_out(clients: Sequence[int], value: Value) -> dict[int, Contribution]:
    """``v(N) - v(N without i)``."""
    everybody = frozenset(clients)
    return {i: Contribution(value(everybody) - value(everybody - {i})) for i in clients}


def _shapley(clients: Sequence[int], value: Value) -> dict[int, Contribution]:
    """``φ_i = Σ_S (v(S + i) - v(S)) / (n · C(n-1, |S|))`` over all S without i (Shapley 1953)."""
    found = {}
    for i in clients:
        others = [client for client in clients if client != i]
        mean = torch.zeros(2, dtype=torch.float64)
        for size in range(len(clients)):
            share = 1 / (len(clients) * comb(len(others), size))
            for each in combinations(others, size):
                mean += share * (value(frozenset({*each, i})) - value(frozenset(each)))
        found[i] = Contribution(mean)
    return found


def _sampled_shapley(
    spec: ContributionSpec, clients: Sequence[int], value: Value, seed: str
) -> dict[int, Contribution]:
    """The mean over random orders of what each client adds to those before it.

    Truncated Monte Carlo (Ghorbani and Zou 2019, arXiv:1904.02868, Algorithm 1): once a coalition's
    loss is as good as everybody's, within ``truncation`` of what the round gained, the rest of the
    order adds nothing.
    """
    draw = random.Random(seed)  # noqa: S311 - an estimate, no secret
    nobody, everybody = value(frozenset()), value(frozenset(clients))
    near = spec.truncation * (everybody[1] - nobody[1]).abs()
    added = torch.zeros(spec.permutations, len(clients), 2, dtype=torch.float64)
    for row in added:
        before, coalition = nobody, frozenset[int]()
        for place in draw.sample(range(len(clients)), len(clients)):
            if (everybody[1] - before[1]).abs() < near:
                break
            coalition |= {clients[place]}
            after = value(coalition)
            row[place] = after - before
            before = after
    means = added.mean(0)
    errors = added.std(0) / spec.permutations**0.5
    return {i: Contribution(means[k], errors[k]) for k, i in enumerate(clients)}
