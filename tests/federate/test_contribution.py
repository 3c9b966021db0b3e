"""What each client adds: games with known answers, then real merges."""

import random
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federate.bench import Bench
from torch import Tensor
from typer.testing import CliRunner

from fedgaze.cli.app import app
from fedgaze.config import ContributionSpec, parse_task
from fedgaze.data import load_digits
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare
from fedgaze.federate.contribution import contributions
from fedgaze.models import DigitsNet
from fedgaze.report import write_federated_report
from fedgaze.store import Run, load_tensors
from fedgaze.train import evaluate

CarryOut = Callable[..., Run]
Game = Callable[[frozenset[int]], Tensor]
LEAVE_ONE_OUT, SHAPLEY = ContributionSpec(by="leave_one_out"), ContributionSpec(by="shapley")
WEIGHTS = {0: 0.5, 1: -0.25, 2: 2.0}


def gloves(coalition: frozenset[int]) -> Tensor:
    """Clients 0 and 1 have a left glove, 2 a right one: a pair is worth 1; losses simply add up."""
    pair = 2 in coalition and bool(coalition & {0, 1})
    return torch.tensor([float(pair), sum(WEIGHTS[i] for i in coalition)], dtype=torch.float64)


def table(size: int, seed: int) -> Game:
    """A game without any order in it."""
    draw = random.Random(seed)
    values: dict[frozenset[int], Tensor] = {}

    def value(coalition: frozenset[int]) -> Tensor:
        return values[coalition]

    for mask in range(2**size):
        members = frozenset(i for i in range(size) if mask >> i & 1)
        values[members] = torch.tensor([draw.random(), draw.random()], dtype=torch.float64)
    return value


def by_definition(size: int, value: Game) -> dict[int, Tensor]:
    """The mean over all orders of what a client adds to those before it."""
    total = {i: torch.zeros(2, dtype=torch.float64) for i in range(size)}
    orders = list(permutations(range(size)))
    for order in orders:
        for place, i in enumerate(order):
            before = frozenset(order[:place])
            total[i] += (value(before | {i}) - value(before)) / len(orders)
    return total


def close(found: Any, expected: Iterable[float]) -> bool:
    return bool(torch.allclose(found.mean, torch.tensor(list(expected), dtype=torch.float64)))


def test_gloves() -> None:
    """Shapley: 1/6, 1/6 and 4/6. Leaving one out: nobody misses one of two left gloves."""
    found = contributions(SHAPLEY, [0, 1, 2], gloves, "s")
    assert close(found[0], [1 / 6, 0.5])
    assert close(found[1], [1 / 6, -0.25])
    assert close(found[2], [4 / 6, 2.0])
    assert all(each.error is None for each in found.values())
    left = contributions(LEAVE_ONE_OUT, [0, 1, 2], gloves, "s")
    assert [each.mean.tolist() for each in left.values()] == [[0, 0.5], [0, -0.25], [1, 2]]


def test_one_client_adds_everything() -> None:
    for spec in (SHAPLEY, LEAVE_ONE_OUT):
        assert close(contributions(spec, [2], gloves, "s")[2], [0.0, 2.0])


@pytest.mark.parametrize("size", [2, 5])
def test_exact_values_are_those_of_the_definition(size: int) -> None:
    game = table(size, size)
    found = contributions(SHAPLEY, range(size), game, "s")
    for i, expected in by_definition(size, game).items():
        assert close(found[i], expected.tolist())


def test_estimates_are_right_within_their_errors() -> None:
    """Seven clients, of whom the exact values are known from all 5,040 orders."""
    game = table(7, 3)
    spec = ContributionSpec(by="shapley", permutations=800, truncation=0)
    found = contributions(spec, range(7), game, "seed")
    for i, expected in by_definition(7, game).items():
        share = found[i]
        assert share.error is not None
        assert ((share.mean - expected).abs() < 4 * share.error).all()
        assert (share.error < 0.02).all()
    total = torch.stack([share.mean for share in found.values()]).sum(0)
    torch.testing.assert_close(total, game(frozenset(range(7))) - game(frozenset()))
    again = contributions(spec, range(7), game, "seed")
    assert all(torch.equal(found[i].mean, again[i].mean) for i in range(7))


def test_an_order_ends_where_nothing_is_left_to_gain() -> None:
    """Client 0 alone makes the loss; who comes after it is not asked about."""
    asked = []

    def value(coalition: frozenset[int]) -> Tensor:
        asked.append(coalition)
        return torch.tensor([0.0, 1.0 - 0.999 * (0 in coalition)], dtype=torch.float64)

    spec = ContributionSpec(by="shapley", permutations=30, truncation=0.01)
    found = contributions(spec, range(8), value, "s")
    assert close(found[0], [0.0, -0.999])
    assert all(close(found[i], [0.0, 0.0]) for i in range(1, 8))
    assert len(asked) == len(set(asked))  # each coalition once
    beyond = [each for each in asked if 0 in each and len(each) < 8]
    assert len(beyond) <= 30


def judged(state: dict[str, Tensor]) -> tuple[float, float]:
    model = DigitsNet(num_classes=3)
    model.load_state_dict(state)
    score = evaluate(model, load_digits(seed=42).keep(["1", "4", "7"]).test)
    return score.accuracy, score.loss


def test_leaving_one_out_of_a_real_mean(carry_out: CarryOut) -> None:
    run = carry_out(contribution="leave_one_out", num_epochs=2, xai={"enabled": False})
    record = run.summary["rounds"][1]
    pattern = "clients/client_*/local_model/small/*_V2.safetensors"
    models = [load_tensors(path) for path in sorted(run.path.glob(pattern))]
    samples = [entry["samples"] for entry in record["clients"]]
    whole = record["global"]
    for out, entry in enumerate(record["clients"]):
        rest = [i for i in range(3) if i != out]
        total = sum(samples[i] for i in rest)
        merged = {
            name: sum(
                (models[i][name].double() * samples[i] / total for i in rest),
                start=torch.zeros((), dtype=torch.float64),
            )
            for name in models[0]
        }
        like = models[0]
        state = {
            name: (value if like[name].is_floating_point() else value.round()).to(like[name].dtype)
            for name, value in merged.items()
        }
        accuracy, loss = judged(state)
        assert entry["contribution"]["accuracy"] == pytest.approx(
            whole["accuracy"] - accuracy, abs=0.006
        )
        assert entry["contribution"]["loss"] == pytest.approx(whole["loss"] - loss, abs=1e-4)
    assert record["contribution"] == {"by": "leave_one_out"}


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "scaffold"])
def test_shares_add_up_to_what_the_round_gained_and_change_nothing(
    carry_out: CarryOut, strategy: str
) -> None:
    """Also with strategies that remember: their memory is as if nobody had asked."""
    keys: dict[str, Any] = {
        "strategy": strategy,
        "optimizer": "sgd" if strategy == "scaffold" else "adam",
        "xai": {"enabled": False},
    }
    asked = carry_out(name="asked", contribution="shapley", **keys)
    plain = carry_out(name="plain", **keys)
    before = asked.summary["initial"]
    for record in asked.summary["rounds"]:
        for name in ("accuracy", "loss"):
            shares = sum(entry["contribution"][name] for entry in record["clients"])
            gained = record["global"][name] - before[name]
            assert shares == pytest.approx(gained, abs=1e-5)
        before = record["global"]
    for file in ("round_2", "strategy_2"):
        paths = [run.path / "checkpoints" / f"{file}.safetensors" for run in (asked, plain)]
        if paths[1].exists():
            left, right = map(load_tensors, paths)
            assert all(torch.equal(left[name], right[name]) for name in right)
    assert "contribution" not in plain.summary["rounds"][0]


def test_a_coalition_too_small_for_the_strategy_merges_nothing(tmp_path: Path) -> None:
    """Krum with f = 1 needs five: without any one of them the model stays as it was received."""
    made = Bench(
        tmp_path,
        5,
        {},
        contribution="leave_one_out",
        strategy={"_target_": "krum", "num_malicious_clients": 1},
    )
    made.server.learner.set_parameters(made.server.like)
    test = made.server.setup.dataset.test
    before = made.server.learner.evaluate(test)
    made.round([[float(n), 0.0] for n in range(5)], [1] * 5)
    made.server.learner.set_parameters(made.state)
    after = made.server.learner.evaluate(test)
    assert after.loss != before.loss
    for entry in made.server.record["clients"]:
        assert entry["contribution"]["loss"] == pytest.approx(after.loss - before.loss)


def test_more_clients_than_can_all_be_tried_get_errors(tmp_path: Path) -> None:
    made = Bench(tmp_path, 8, {}, contribution={"by": "shapley", "permutations": 5})
    made.round([[float(n), 0.0] for n in range(8)], [1] * 8)
    for entry in made.server.record["clients"]:
        assert set(entry["contribution"]) == {"accuracy", "loss", "error"}
        assert entry["contribution"]["error"]["loss"] >= 0


def test_a_failure_is_told_and_ends_no_training(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("fedgaze.federate.contribution.contributions", broken)
    run = carry_out(num_rounds=1, contribution="shapley", xai={"enabled": False})
    assert run.summary["rounds"][0]["contribution"] == {"failed": "RuntimeError: no memory"}
    page = write_federated_report(run.path).read_text()
    assert "What each client adds could not be computed: RuntimeError: no memory" in page
    assert "Adds to accuracy" not in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contribution": "shaply"}, "contribution.by=shaply: .*did you mean 'shapley'"),
        ({"contribution": {"by": "shapley", "permutations": 1}}, "greater than or equal to 2"),
        ({"contribution": "shapley", "strategy": "fedbn"}, "with FedBN it has no whole model"),
        (
            {
                "contribution": "shapley",
                "server": {"privacy": {"clipping_norm": 1, "noise_multiplier": 1}},
                "xai": {"share": "none"},
            },
            "contribution=shapley and server.privacy do not go together",
        ),
    ],
)
def test_what_cannot_be_computed_is_said(
    small: Callable[..., dict[str, Any]], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(FedgazeError, match=said):
        prepare(parse_task(small(**changes)))


def test_table_and_report_have_it_only_where_it_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(
        "{task_id: t, model: {_target_: fedgaze.models.DigitsNet}, num_clients: 2, num_rounds: 1,"
        " dataset: {classes: ['1', '7']}, xai: {enabled: false}}"
    )
    for contribution, there in (("leave_one_out", True), ("none", False)):
        words = ["run", "task.yaml", f"contribution={contribution}", "--output", contribution]
        result = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        page = (tmp_path / contribution / "report.html").read_text()
        assert ("Adds to accuracy, points (leave-one-out)" in page) == there
        assert ("adds" in result.output) == there
