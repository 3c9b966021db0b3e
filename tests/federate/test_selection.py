"""Who trains in a round."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.federate.bench import Bench
from tests.federate.conftest import Silent
from tests.federate.test_resume import Stop, StopsIn

from fedgaze.config import Task, parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare, resume, start
from fedgaze.federate.selection import choose
from fedgaze.store import Run

Small = Callable[..., dict[str, Any]]
MODEL = {"model": {"_target_": "fedgaze.models.DigitsNet"}, "num_clients": 6}


def task(**keys: Any) -> Task:
    return parse_task(MODEL | keys)


def record(**losses: float | None) -> dict[str, Any]:
    """A round in which client ``c1`` and so on had these losses."""
    return {
        "clients": [
            {"client": int(name[1:]), "samples": 10 - int(name[1:]), "validation": {"loss": loss}}
            for name, loss in losses.items()
        ]
    }


def test_all_and_explicit() -> None:
    everybody = task(selection={"by": "all"})
    assert choose(everybody, 6, 1, range(6), []) == [0, 1, 2, 3, 4, 5]
    assert choose(everybody, 6, 1, [0, 4], []) == [0, 4]  # the others are not there
    named = task(selection={"by": "explicit", "clients": [5, 0, 3]})
    assert choose(named, 3, 2, range(6), []) == [0, 3, 5]
    assert choose(named, 3, 2, [1, 3], []) == [3]


def test_at_random_every_group_is_as_likely() -> None:
    """20 groups of 3 of 6 clients in 4,000 rounds: 200 each, give or take."""
    drawn = task(clients_per_round=3)
    counts: dict[tuple[int, ...], int] = {}
    for number in range(1, 4001):
        chosen = tuple(choose(drawn, 3, number, range(6), []))
        counts[chosen] = counts.get(chosen, 0) + 1
    assert len(counts) == 20
    chi = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi < 43.8  # the 0.1 % quantile at 19 degrees of freedom


def test_a_choice_depends_on_seed_and_round_alone() -> None:
    drawn, other = task(clients_per_round=3), task(clients_per_round=3, random_seed=1)
    spelled = task(selection={"by": "random", "count": 3})
    first = [choose(drawn, 3, number, range(6), []) for number in range(1, 9)]
    random.seed(5)
    assert first == [choose(drawn, 3, number, range(6), [record(c1=3.0)]) for number in range(1, 9)]
    assert first == [choose(spelled, 3, number, range(6), []) for number in range(1, 9)]
    assert first != [choose(other, 3, number, range(6), []) for number in range(1, 9)]
    assert len({tuple(each) for each in first}) > 1


def test_by_metric_the_highest_train_and_the_unseen_first() -> None:
    worst = task(selection={"by": "metric", "count": 2})
    history = [record(c0=9.0, c1=0.1, c2=0.5), record(c0=0.3, c3=0.4, c4=None)]
    # Client 0 has 0.3 by now; 4 and 5 have no finite loss yet.
    assert choose(worst, 2, 3, range(6), history) == [4, 5]
    assert choose(worst, 2, 3, [0, 1, 2, 3], history) == [2, 3]
    assert choose(worst, 2, 3, [0, 1, 3, 5], history) == [3, 5]
    best = task(selection={"by": "metric", "count": 2, "prefer": "low"})
    assert choose(best, 2, 3, [0, 1, 2, 3], history) == [0, 1]
    samples = task(selection={"by": "metric", "count": 1, "metric": "samples"})
    assert choose(samples, 1, 3, [1, 2, 3], history) == [1]


def test_power_of_choice_looks_at_candidates_only() -> None:
    """With one candidate a client it is the draw; with all it is the order of losses."""
    history = [record(c0=6.0, c1=5.0, c2=4.0, c3=3.0, c4=2.0, c5=1.0)]
    few = task(selection={"by": "metric", "count": 2, "candidates": 2})
    drawn = task(clients_per_round=2)
    some = task(selection={"by": "metric", "count": 2, "candidates": 4})
    every = task(selection={"by": "metric", "count": 4, "candidates": 4})
    for number in range(2, 40):
        assert choose(few, 2, number, range(6), history) == choose(
            drawn, 2, number, range(6), history
        )
        four = choose(every, 4, number, range(6), history)
        assert choose(some, 2, number, range(6), history) == four[:2]
    assert len({tuple(choose(every, 4, n, range(6), history)) for n in range(2, 40)}) > 5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"by": "rnadom"}, "selection.by=rnadom: .*did you mean 'random'"),
        ({"by": "random"}, "selection.by=random needs selection.count"),
        ({"by": "metric"}, "selection.by=metric needs selection.count"),
        ({"by": "random", "count": 7}, "selection.count=7 is more than num_clients=6"),
        ({"by": "all", "count": 3}, "'count' belongs to by=random and by=metric, not to by=all"),
        ({"by": "explicit"}, "by=explicit needs 'clients'"),
        ({"by": "explicit", "clients": [0, 6]}, "selection.clients=.*counted from 0 to 5"),
        ({"by": "explicit", "clients": [1, 1]}, "names a client twice"),
        ({"by": "random", "count": 2, "clients": [1]}, "'clients' belongs to by=explicit"),
        ({"by": "random", "count": 2, "metric": "samples"}, "'metric' belongs to by=metric"),
        (
            {"by": "metric", "count": 3, "candidates": 2},
            "selection.candidates=2 are fewer than the 3 that train",
        ),
        ({"cuont": 3}, "unknown key 'selection.cuont'=3; did you mean 'count'"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError) as caught:
        task(selection=keys)
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)


def test_what_contradicts_the_short_forms_is_said() -> None:
    with pytest.raises(FedgazeError, match="clients_per_round=2 and selection, by which 3 clients"):
        task(clients_per_round=2, selection={"by": "random", "count": 3})
    with pytest.raises(FedgazeError, match="clients_per_round=2 and selection, by which 6 clients"):
        task(clients_per_round=2, selection={"by": "all"})
    strategy = {"_target_": "fedavg", "fraction_fit": 0.5}
    with pytest.raises(
        FedgazeError, match=r"selection, by which 1 clients train, and .*makes 3 of"
    ):
        prepare(task(selection={"by": "explicit", "clients": [4]}, strategy=strategy))
    spelled = task(clients_per_round=2, selection={"by": "metric", "count": 2})
    assert spelled.selected == task(clients_per_round=2, selection={"by": "metric"}).selected == 2


@pytest.mark.parametrize(
    ("metric", "keys", "said"),
    [
        (
            "validation.los",
            {},
            "validation.los: no client reports it; .*did you mean 'validation.l",
        ),
        ("explanation.entropy", {"xai": {"share": "none"}}, "no client reports it"),
        ("server_explanation.entropy", {}, "no client reports it"),
        ("validation.f1", {}, "no client reports it"),
    ],
)
def test_a_metric_that_nobody_reports(
    small: Small, metric: str, keys: dict[str, Any], said: str
) -> None:
    selection = {"by": "metric", "count": 1, "metric": metric}
    with pytest.raises(FedgazeError, match=said):
        prepare(parse_task(small(selection=selection, **keys)))


def chosen(run: Run) -> list[list[int]]:
    return [[entry["client"] for entry in each["clients"]] for each in run.summary["rounds"]]


def test_a_run_by_metric_and_its_resumption(small: Small, tmp_path: Path) -> None:
    """Each round's clients have the highest losses that were known before it."""
    values = small(
        num_clients=4,
        num_rounds=5,
        selection={"by": "metric", "count": 2},
        xai={"enabled": False},
    )
    run = start(parse_task(values), tmp_path / "whole", Silent())
    known: dict[int, float] = {}
    for each in run.summary["rounds"]:
        clients = [entry["client"] for entry in each["clients"]]
        left = [client for client in range(4) if client not in clients]
        assert all(
            known.get(client, 99.0) >= known.get(other, 99.0)
            for client in clients
            for other in left
        )
        known |= {entry["client"]: entry["validation"]["loss"] for entry in each["clients"]}
    first, second, *_ = chosen(run)
    assert sorted(first + second) == [0, 1, 2, 3]  # who never trained comes first
    with pytest.raises(Stop):
        start(parse_task(values), tmp_path / "cut", StopsIn(4))
    assert chosen(resume(tmp_path / "cut", None, Silent())) == chosen(run)


def test_named_clients_train(small: Small, tmp_path: Path) -> None:
    values = small(selection={"by": "explicit", "clients": [2, 0]}, xai={"enabled": False})
    assert chosen(start(parse_task(values), tmp_path / "r", Silent())) == [[0, 2], [0, 2]]


def test_nobody_waits_for_clients_that_are_gone(tmp_path: Path) -> None:
    """Flower's own sampling would wait for ever for the two that left."""
    made = Bench(tmp_path, 4, {}, join_timeout=0.3)
    del made.nodes.there[1:3]
    assert made.send() == [0, 3]
    made.nodes.there.clear()
    with pytest.raises(FedgazeError, match=r"0 of num_clients=4 .* needed; missing: 0, 1, 2, 3"):
        made.send()


def test_flowers_generator_is_left_as_it_was(tmp_path: Path) -> None:
    made = Bench(tmp_path, 4, {}, clients_per_round=2)
    random.seed(3)
    before = random.getstate()
    made.send()
    assert random.getstate() == before
    assert made.strategy.min_available_nodes == 4
