"""The gate at work in runs: who is kept out, by how much, and what it does not go with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.federate.bench import Bench
from tests.federate.conftest import Silent
from tests.federate.test_scaffold import answer as control_answer
from tests.federate.test_scaffold import sent_control

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare, resume, start
from fedgaze.federate.gate import Decision, Gate, Seen, Trial, measures
from fedgaze.federate.gate.marks import chances_of, pull_of
from fedgaze.federate.gatekeeping import Gatekeeper, towards

ATTACKERS = [1, 4]


def task_of(**more: Any) -> Any:
    values: dict[str, Any] = {
        "task_id": "gate",
        "model": {"_target_": "fedgaze.models.DigitsNet"},
        "dataset": {"name": "digits", "partition": "iid"},
        "learning_rate": 2e-3,
        "num_epochs": 2,
        "num_clients": 6,
        "num_rounds": 6,
        "xai": {"layer": "conv3", "run_location": "server", "pictures": False},
        "gate": {"policy": "reject"},
    }
    return parse_task(values | more)


def patched(**more: Any) -> Any:
    return task_of(behaviour={"kind": "patch", "clients": ATTACKERS}, **more)


def kept_out(record: dict[str, Any]) -> list[int]:
    return [each["client"] for each in record["gate"]["clients"] if each["factor"] == 0]


def test_towards_is_a_part_of_the_way() -> None:
    received = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    trained = {"w": torch.tensor([3.0, 0.0]), "n": torch.tensor(7)}
    found = towards(received, trained, 0.25)
    assert found["w"].tolist() == [1.5, 1.5]
    assert found["n"].item() == 7
    assert towards(received, trained, 0.0)["w"].tolist() == [1.0, 2.0]


def decide(monkeypatch: pytest.MonkeyPatch, *factors: float) -> None:
    """Let the gate merge these parts of the updates, in the order of their clients."""

    def judge(gate: Gate, seen: Seen) -> list[Decision]:
        return [Decision(c, 0.5, 0.0, f, ()) for c, f in zip(seen.clients, factors, strict=True)]

    monkeypatch.setattr(Gate, "judge", judge)


@pytest.mark.parametrize(
    ("factors", "merged"),
    [((1, 1, 1), 4.0), ((1, 1, 0), 2.0), ((1, 0.5, 0.25), (1 + 0.5 * 3 + 0.25 * 8) / 3)],
)
def test_what_is_merged_is_the_part_that_the_gate_lets_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factors: tuple[float, ...], merged: float
) -> None:
    """FedAvg of weights 1, 3 and 8 from 0, each client with as many images."""
    made = Bench(tmp_path, 3, {})
    made.server.keeper = Gatekeeper(made.server.onlooker, made.server.run)
    decide(monkeypatch, *factors)
    made.round([[1.0, 0.0], [3.0, 0.0], [8.0, 0.0]], [7, 7, 7])
    assert made.w == pytest.approx([merged, 0.0])


def test_of_a_control_the_same_part_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCAFFOLD: ``c = 0 + mean(0.5 · 2, 4)``."""
    made = Bench(tmp_path, 2, {}, optimizer="sgd", strategy="scaffold")
    made.server.keeper = Gatekeeper(made.server.onlooker, made.server.run)
    decide(monkeypatch, 0.5, 1.0)
    made.send()
    replies = [
        control_answer(message, {**made.state, "w": torch.ones(2)}, {"w": torch.full((2,), change)})
        for message, change in zip(made.sent, (2.0, 4.0), strict=True)
    ]
    made.strategy.aggregate_train(1, replies)
    made.number = 1
    made.send()
    assert sent_control(made.sent[0]) == [2.5, 2.5]


def test_a_back_door_is_kept_out_and_said_why(tmp_path: Path) -> None:
    record = start(patched(), tmp_path / "run", Silent()).summary
    last = record["rounds"][-1]
    assert kept_out(last) == ATTACKERS
    assert last["global"]["accuracy"] > 0.9
    said: dict[int, str] = {}
    for each in record["rounds"]:
        for one in each["gate"]["clients"]:
            if one["factor"] == 0:
                said[one["client"]] = said.get(one["client"], "") + " ".join(one["reasons"])
    assert set(said) == {*ATTACKERS}
    assert all("pulls it to class 0" in text for text in said.values())
    assert 0 < last["system"]["gate_cpu_seconds"] < last["system"]["cpu_seconds"]
    reported = start(patched(gate={"policy": "report"}), tmp_path / "report", Silent()).summary
    assert reported["rounds"][-1]["global"]["attack_success"] > 0.8, "the attack is none"
    assert all(kept_out(each) == [] for each in reported["rounds"])


@pytest.mark.parametrize("strategy", ["fedmedian", {"_target_": "FedTrimmedAvg", "beta": 0.2}])
def test_robust_strategies_stand_behind_it(tmp_path: Path, strategy: Any) -> None:
    task = patched(strategy=strategy, num_rounds=6)
    record = start(task, tmp_path / "run", Silent()).summary
    assert kept_out(record["rounds"][-1]) == ATTACKERS


def test_a_resumed_gate_decides_as_without_an_interruption(tmp_path: Path) -> None:
    whole = start(patched(num_rounds=4), tmp_path / "whole", Silent()).summary
    start(patched(num_rounds=2), tmp_path / "parts", Silent())
    parts = resume(tmp_path / "parts", patched(num_rounds=4), Silent()).summary

    def decided(record: dict[str, Any]) -> list[Any]:
        return [each["gate"]["clients"] for each in record["rounds"]]

    assert decided(whole) == decided(parts)


def test_without_the_servers_look_it_judges_steps_and_words(tmp_path: Path) -> None:
    task = task_of(
        behaviour={"kind": "stale", "clients": [2]},
        gate={"policy": "report"},
        num_rounds=3,
        xai={"layer": "conv3", "run_location": "client", "samples_per_class": 1},
    )
    last = start(task, tmp_path / "run", Silent()).summary["rounds"][-1]
    suspicion = {each["client"]: each["suspicion"] for each in last["gate"]["clients"]}
    assert max(suspicion, key=suspicion.__getitem__) == 2
    assert "direction" in last["gate"]["clients"][2]["spreads"]


def test_without_explanations_there_is_no_gate(tmp_path: Path) -> None:
    task = task_of(xai={"enabled": False}, gate={"policy": "report"}, num_rounds=1)
    assert "gate" not in start(task, tmp_path / "run", Silent()).summary["rounds"][0]


@pytest.mark.parametrize("policy", ["report", "reject"])
def test_a_gate_that_fails_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    def broken(gate: Gate, seen: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Gate, "judge", broken)
    task = task_of(gate={"policy": policy}, num_rounds=1)
    [record] = start(task, tmp_path / "run", Silent()).summary["rounds"]
    assert record["gate"]["failed"] == "ZeroDivisionError: by zero"
    assert ("not_merged" in record) == (policy == "reject"), "what nobody judged was merged"


def test_fewer_than_the_floor_are_not_merged(tmp_path: Path) -> None:
    task = patched(num_rounds=5, gate={"policy": "reject", "floor": 5})
    rounds = start(task, tmp_path / "run", Silent()).summary["rounds"]
    few = [each for each in rounds if kept_out(each) == ATTACKERS]
    assert few
    assert all(each["not_merged"] == "4 updates are fewer than gate.floor=5" for each in few)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"strategy": "SecAggPlus"}, "no single update can be seen"),
        (
            {"server": {"privacy": {"clipping_norm": 1.0, "noise_multiplier": 1.0}}},
            "gate.policy=reject and server.privacy do not go together",
        ),
        ({"gate": {"measures": ["pul"]}}, r"no measure 'pul'.*did you mean.*pull"),
    ],
)
def test_what_it_does_not_go_with(more: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError, match=said):
        prepare(task_of(**more))


def test_pictures_that_are_not_written_cannot_be_shared() -> None:
    with pytest.raises(FedgazeError, match="share=overlays needs pictures"):
        task_of(xai={"pictures": False, "share": "overlays"})


def test_marks_are_tried_and_merges_made_as_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the gate is shown is worked out again, one mark, update and merge at a time."""
    given: list[Any] = []
    see = Gatekeeper._see

    def watched(keeper: Gatekeeper, *more: Any) -> Seen:
        seen = see(keeper, *more)
        if not given:
            given.append(seen)
            _again(keeper, seen, *more)
        return seen

    def _again(keeper: Gatekeeper, seen: Seen, updates: Any, looks: Any, received: Any) -> None:
        onlooker = keeper._onlooker
        draw = np.random.SeedSequence((keeper._seed, onlooker.number)).generate_state(1)[0]
        trial = Trial.drawn(onlooker.probe, int(draw))
        for k, update in enumerate(updates):
            onlooker.learner.set_parameters(update.state)
            before = chances_of(onlooker.learner.predict, trial.images)
            for kind, found in enumerate(seen.found[2]):
                pull = pull_of(
                    onlooker.learner.predict, [found.mark], trial.images, trial.labels, before
                )
                expected = pytest.approx(float(pull[0, found.target]), abs=1e-5)
                assert float(seen.pulls[k, kind, 2]) == expected
        # Of three, one shows nothing: it is in no merge, and the others are all there is.
        explanation = looks[1].explanation
        nothing = replace(explanation, logits=explanation.logits * torch.nan)
        blind = {**looks, 1: replace(looks[1], explanation=nothing)}
        again = see(keeper, updates, blind, received)
        merges, counted = again.merges, again.counted
        assert merges is not None
        assert merges.together.light is None, "batch normalisation says more"
        assert merges.without[1] is None
        for state, found in ((updates[0].state, merges.without[2]), (None, merges.together)):
            half = {
                name: (value + updates[2].state[name]) / 2 if value.is_floating_point() else value
                for name, value in updates[0].state.items()
            }
            onlooker.learner.set_parameters(state or half)
            chances = chances_of(onlooker.learner.predict, onlooker.probe.images)
            sure = chances.gather(1, onlooker.probe.labels[:, None])[:, 0].clamp(min=1e-3).log()
            assert found is not None
            assert torch.allclose(found.plain, sure, atol=1e-4)
        counts = onlooker.learner.count(onlooker.probe.images)  # of the merge of both
        assert counts is not None
        assert counted is not None
        middle = counts.means.mean(0)
        spread = (counts.variances + counts.means**2).mean(0) - middle**2
        for k in (0, 2):
            expected = (updates[k].state["norm1.running_mean"] - middle) / spread.sqrt()
            assert torch.allclose(counted.updates[k, :16].float(), expected, atol=1e-3)
        assert counted.updates[1].isnan().all()

    monkeypatch.setattr(Gatekeeper, "_see", watched)
    task = task_of(num_clients=3, num_rounds=1, num_epochs=1, gate={"policy": "report"})
    record = start(task, tmp_path / "run", Silent()).summary["rounds"][0]
    assert "failed" not in record["gate"], record["gate"]
    assert given


def test_a_model_that_counts_nothing_is_tried_under_other_light(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Seen] = []
    see = Gatekeeper._see

    def watched(keeper: Gatekeeper, *more: Any) -> Seen:
        given.append(see(keeper, *more))
        return given[-1]

    monkeypatch.setattr(Gatekeeper, "_see", watched)
    (tmp_path / "models.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),\n"
        "                         nn.Flatten(), nn.Linear(16, 10))\n"
    )
    values = task_of(num_clients=3, num_rounds=1, num_epochs=1).public()
    values["model"], values["xai"]["layer"] = {"_target_": "models.Net"}, "0"
    task = parse_task(values, tmp_path)
    start(task, tmp_path / "run", Silent())
    assert given[0].counted is None
    assert given[0].merges is not None
    assert given[0].merges.together.light is not None
    assert measures.light(given[0]).isfinite().all()
    assert measures.recolouring(given[0]).isnan().all()
