"""A defence in the gatekeeper's place: what it says of updates is what becomes of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federate.bench import Bench

from fedgaze.federate.gatekeeping import Gatekeeper
from fedgaze.federate.lab import DEFENCES, find_defence
from fedgaze.federate.lab.keeper import LabKeeper
from fedgaze.federate.replies import Update

Made = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path) -> Made:
    """A server of the toy model, ``w`` of two weights, which is 0 at first, with a defence."""

    def made(
        defence: str, clients: int, attackers: int = 1, norm: bool = False, **task: Any
    ) -> Bench:
        beside = defence.removeprefix("gate").removeprefix("+") or "none"
        strategy = find_defence(beside).strategy(clients, attackers)
        keys = {"gate": {"floor": 1}, "server": {"strategy": strategy}, **task}
        one = Bench(tmp_path / f"{defence}{clients}", clients, {"norm": norm}, **keys)
        one.server.strategy = one.strategy  # as `main` does
        one.server.keeper = LabKeeper(one.server, defence, attackers)
        return one

    return made


@pytest.fixture
def gate_out(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Whom the gate leaves out, instead of whom it would."""
    out: set[int] = set()

    def pass_on(
        _: Gatekeeper, updates: Sequence[Update], *__: Any
    ) -> tuple[list[Update], dict[str, Any]]:
        said = [{"client": each.client, "evidence": float(each.client in out)} for each in updates]
        return [each for each in updates if each.client not in out], {"clients": said}

    monkeypatch.setattr(Gatekeeper, "pass_on", pass_on)
    return out


def play(one: Bench, answers: Sequence[Any], samples: Sequence[int]) -> None:
    """A round of these answers: weights, a whole state, or None."""
    given = [
        [float(value) for value in each] if isinstance(each, list) else each for each in answers
    ]
    one.round(given, samples)


def said(one: Bench, key: str) -> list[Any]:
    """What the record of the round says of each client."""
    return [each[key] for each in one.server.record["gate"]["lab"]["clients"]]


def test_without_a_defence_all_are_merged_and_every_one_says_what_it_thinks(bench: Made) -> None:
    xai = {"run_location": "server", "pictures": False, "method": "saliency"}
    one = bench("none", 5, xai=xai)
    play(one, [[1, 0], [0, 2], [0, 0], [3, 4], [0, 1]], [10, 10, 20, 40, 20])
    assert one.w == pytest.approx([(10 * 1 + 40 * 3) / 100, (10 * 2 + 40 * 4 + 20 * 1) / 100])
    assert said(one, "factor") == [1.0] * 5
    assert said(one, "factors") == [{}] * 5
    scores = said(one, "scores")
    for each in scores:
        assert set(each) == {"gate", *DEFENCES} - {"none", "oracle"}
    # Norms 1, 2, 0, 5, 1 by their median, 1.
    assert [each["norm_clipping"] for each in scores] == pytest.approx([1, 2, 0, 5, 1])
    # Whatever the weights, half of the probe set is right: all of it is taken for one class.
    assert [each["probe_accuracy"] for each in scores] == [0] * 5
    seconds = one.server.record["gate"]["lab"]["cpu_seconds"]
    assert set(seconds) == set(scores[0])
    assert all(each >= 0 for each in seconds.values())
    # Of the gate's measures, also those that nobody stands out in.
    for each in said(one, "spreads"):
        assert {"length", "direction"} <= set(each)
    assert any(each["direction"] == 0 for each in said(one, "spreads"))


def test_updates_are_multiplied_by_what_a_defence_says(bench: Made) -> None:
    one = bench("norm_clipping", 3)
    play(one, [[3.0, 4.0], [1.0, 0.0], [0.0, -1.0]], [10, 20, 10])
    assert said(one, "factor") == pytest.approx([0.2, 1, 1])
    assert said(one, "factors") == [{"norm_clipping": pytest.approx(each)} for each in (0.2, 1, 1)]
    assert one.w == pytest.approx([(10 * 0.6 + 20) / 40, (10 * 0.8 - 10) / 40])
    assert set(said(one, "scores")[0]) == {"norm_clipping"}
    assert said(one, "spreads") == [{}] * 3
    # The next round's updates are held against the weights that went out.
    received = torch.tensor(one.w)
    play(one, [(received + torch.tensor([0.0, 4.0])).tolist()] * 3, [10, 10, 10])
    assert one.w == pytest.approx([received[0].item(), received[1].item() + 4], abs=1e-6)


def test_a_factor_of_0_leaves_an_update_out(bench: Made) -> None:
    one = bench("krum", 5)
    play(one, [[1, 1], [1.1, 1], [1, 1.2], [9, 9], [5, 1]], [10, 20, 30, 40, 50])
    assert said(one, "factor") == [1, 0, 0, 0, 0]
    assert one.w == pytest.approx([1, 1])
    assert "not_merged" not in one.server.record


def test_fltrust_stretches_what_points_like_the_server_s_own_step(bench: Made) -> None:
    one = bench("fltrust", 3, learning_rate=0.25)
    # The toy model's own training goes a quarter of the way to (4, 4): the root is (1, 1).
    play(one, [[0.5, 0.5], [4.0, 4.0], [-1.0, -1.0]], [10, 10, 30])
    assert said(one, "factor") == pytest.approx([2, 0.25, 0], abs=1e-6)
    assert one.w == pytest.approx([1, 1], abs=1e-6)
    assert [each["fltrust"] for each in said(one, "scores")] == pytest.approx([0, 0, 1], abs=1e-6)


def test_statistics_are_never_stretched(bench: Made) -> None:
    one = bench("fltrust", 3, norm=True, learning_rate=0.25)
    like = one.server.like

    def answer(w: float, mean: float, variance: float) -> Mapping[str, torch.Tensor]:
        # The toy's own training moves w alone, so the root is 0 elsewhere.
        return {
            "w": torch.full_like(like["w"], w),
            "norm.running_mean": torch.full_like(like["norm.running_mean"], mean),
            "norm.running_var": torch.full_like(like["norm.running_var"], variance),
        }

    play(one, [answer(0.5, 8, 0.25), answer(4, 8, 0.2), answer(0.5, 8, 0.25)], [10, 10, 10])
    assert said(one, "factor") == pytest.approx([2, 0.25, 2], abs=1e-6)
    assert one.w == pytest.approx([1, 1], abs=1e-6)
    # 8, a quarter of it, and 8: never 16; variances 0.25, 1 - 0.25 · 0.8 and 0.25: never below 0.
    assert one.state["norm.running_mean"].tolist() == pytest.approx([6, 6])
    assert one.state["norm.running_var"].tolist() == pytest.approx([1.3 / 3] * 2)


def test_foolsgold_remembers_earlier_rounds(bench: Made) -> None:
    one = bench("foolsgold", 3)
    play(one, [[1, 0], [1, 0], [0, 1]], [10, 10, 10])
    assert said(one, "factor") == pytest.approx([0, 0, 1])
    start = torch.tensor(one.w)
    # Now all differ; only the sums of the first two are still alike, (1, 2) and (2, 1).
    steps = torch.tensor([[0.0, 2.0], [1.0, 1.0], [-3.0, 0.0]])
    play(one, [(start + each).tolist() for each in steps], [10, 10, 10])
    weights = [1 - each["foolsgold"] for each in said(one, "scores")]
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)
    assert weights[0] < weights[2]


def test_median_and_trimmed_mean_are_the_strategy_s(bench: Made) -> None:
    answers = [[1, 5], [2, 4], [3, 3], [4, 2], [100, -100]]
    one = bench("median", 5)
    play(one, answers, [10] * 5)
    assert one.w == [3, 3]
    assert said(one, "factor") == [1.0] * 5
    one = bench("trimmed_mean", 5)
    play(one, answers, [10] * 5)
    assert one.w == pytest.approx([3, 3])
    one = bench("trimmed_mean", 7, attackers=2)
    play(one, [[9, 9], *answers, [-50, 9]], [10] * 7)
    assert one.w == pytest.approx([(2 + 3 + 4) / 3, (3 + 4 + 5) / 3])


def test_trimmed_mean_cuts_as_many_where_a_client_did_not_answer(bench: Made) -> None:
    one = bench("trimmed_mean", 5)
    play(one, [[1, 1], None, [2, 2], [3, 9], [100, 3]], [10] * 5)
    assert one.w == pytest.approx([2.5, 2.5])


def test_behind_the_gate_a_defence_sees_what_is_left(bench: Made, gate_out: set[int]) -> None:
    gate_out.add(3)
    one = bench("gate+norm_clipping", 4)
    play(one, [[3, 4], [1, 0], [0, 2], [0, -90]], [10, 20, 10, 10])
    # Norms 5, 1, 2: the median is 2, and not the 3.5 of all four.
    assert said(one, "factor") == pytest.approx([0.4, 1, 1, 0])
    assert said(one, "factors") == [
        {"gate": 1.0, "norm_clipping": pytest.approx(0.4)},
        {"gate": 1.0, "norm_clipping": 1.0},
        {"gate": 1.0, "norm_clipping": 1.0},
        {"gate": 0.0},
    ]
    assert said(one, "scores")[3] == {"gate": 1.0}
    assert said(one, "scores")[2] == {"gate": 0.0, "norm_clipping": pytest.approx(1)}
    assert one.w == pytest.approx([(10 * 1.2 + 20) / 40, (10 * 1.6 + 20) / 40])


def test_whom_the_gate_left_out_is_expected_no_more(bench: Made, gate_out: set[int]) -> None:
    answers = [[1, 1], [2, 2], [3, 3], [6, 6], [-9, -9]]
    one = bench("gate+trimmed_mean", 5)
    play(one, answers, [10, 50, 10, 10, 10])
    assert one.w == pytest.approx([2, 2])  # one of each end is cut: 1, 2 and 3 are left
    gate_out.add(4)
    one = bench("gate+trimmed_mean", 5, learning_rate=0.5)
    play(one, answers, [10, 50, 10, 10, 10])
    assert one.w == pytest.approx([3, 3])  # nothing is cut, and samples do not count
    # Three updates are enough for Krum to expect nobody, but not one.
    gate_out.add(3)
    one = bench("gate+krum", 5)
    play(one, answers, [10] * 5)
    assert one.w == pytest.approx([1, 1])


def test_where_the_gate_leaves_nothing_nothing_is_merged(bench: Made, gate_out: set[int]) -> None:
    gate_out |= {0, 1, 2}
    one = bench("gate+norm_clipping", 3)
    play(one, [[1, 1]] * 3, [10] * 3)
    assert one.w == [0, 0]
    assert said(one, "factor") == [0.0] * 3
    assert one.server.record["not_merged"] == "0 updates are fewer than gate.floor=1"


def test_what_foolsgold_remembers_cannot_be_restored(bench: Made) -> None:
    keeper = bench("foolsgold", 3).server.keeper
    assert keeper is not None
    keeper.restore([])
    with pytest.raises(RuntimeError, match="cannot be gone on with"):
        keeper.restore([{"round": 1}])
