"""Each defence against its paper: numbers worked by hand, loops spelled from it, Flower's own."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.federate.bench import Bench
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.federate.lab import DEFENCES, FoolsGold, Opinion, RoundView, find_defence, merged
from fedgaze.federate.lab.defences import (
    cosine,
    distance_to_median,
    fltrust,
    fools_gold_weights,
    krum,
    multi_krum,
    none,
    norm_clipping,
    probe_accuracy,
)

NAN = math.nan
SEEDS = st.integers(0, 2**32 - 1)
SLOW_MACHINE = settings(deadline=None, max_examples=50)


def a_round(
    vectors: Sequence[Sequence[float]] | Tensor,
    samples: Sequence[int] | None = None,
    root: Sequence[float] | Tensor | None = None,
    clients: Sequence[int] | None = None,
    accuracies: Sequence[float] | None = None,
    received: float = 0.9,
    attackers: int = 1,
) -> RoundView:
    """A round of so many updates, with what is not said the same for each."""
    given = torch.as_tensor(vectors, dtype=torch.float32)
    count = len(given)
    return RoundView(
        vectors=given,
        clients=tuple(range(count) if clients is None else clients),
        samples=torch.tensor([1] * count if samples is None else samples),
        probe_accuracy=torch.tensor([received] * count if accuracies is None else accuracies),
        received_accuracy=received,
        root=None if root is None else torch.as_tensor(root, dtype=torch.float32),
        attackers=attackers,
    )


def on_a_line(*places: float) -> list[list[float]]:
    return [[place] for place in places]


def drawn(seed: int, count: int, size: int = 6) -> RoundView:
    """A round without any order in it, but that updates and root lean to one side."""
    draw = np.random.default_rng(seed)
    return a_round(
        torch.from_numpy(draw.normal(0.3, 1, (count, size))),
        samples=[int(n) for n in draw.integers(1, 500, count)],
        root=torch.from_numpy(draw.normal(0.3, 1, size)),
        clients=[int(c) for c in draw.permutation(20)[:count]],
        accuracies=[float(a) for a in draw.uniform(0.2, 1, count)],
    )


def close(found: Tensor | None, expected: Any) -> bool:
    assert found is not None
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    return found.shape == wanted.shape and torch.allclose(
        found.double(), wanted, rtol=1e-6, atol=1e-7, equal_nan=True
    )


def test_none_merges_as_fedavg() -> None:
    view = a_round([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], samples=[1, 1, 2])
    opinion = none(view)
    assert close(opinion.scores, [NAN] * 3)
    assert close(merged(view, opinion.factors), [6.0, 11.5])  # (1 + 3 + 2·10) / 4, (2 + 4 + 40) / 4


def test_what_is_left_out_does_not_count() -> None:
    view = a_round([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], samples=[1, 1, 2])
    # (0.5·1 + 2·10) / 3, (0.5·2 + 2·20) / 3
    factors = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    assert close(merged(view, factors), [20.5 / 3, 41 / 3])
    assert merged(view, torch.zeros(3, dtype=torch.float64)) is None


def contents(view: RoundView, factors: Tensor) -> list[RecordDict]:
    """Replies as Flower's strategies get them, without those whose factor is 0."""
    factored = (factors[:, None] * view.vectors.double()).numpy()
    return [
        RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(factored[i])}),
                "metrics": MetricRecord({"num-examples": int(view.samples[i]), "place": i}),
            }
        )
        for i in range(len(factors))
        if factors[i] != 0
    ]


@given(seed=SEEDS, count=st.integers(1, 8))
@SLOW_MACHINE
def test_merging_is_flowers_fedavg_of_factored_updates(seed: int, count: int) -> None:
    view = drawn(seed, count)
    factors = (
        torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    )
    factors[1::3] = 0
    flowers = aggregate_arrayrecords(contents(view, factors), "num-examples")
    assert close(merged(view, factors), flowers["w"].numpy())


def test_norm_clipping() -> None:
    """Lengths 5, 10 and 1."""
    opinion = norm_clipping(a_round([[3.0, 4.0], [-6.0, 8.0], [0.0, 1.0]]))
    assert close(opinion.scores, [1.0, 2.0, 0.2])
    assert close(opinion.factors, [1.0, 0.5, 1.0])
    # Of lengths 1, 5, 7 and 10 the median is 6.
    opinion = norm_clipping(a_round(on_a_line(5.0, -10.0, 1.0, 7.0)))
    assert close(opinion.scores, [5 / 6, 10 / 6, 1 / 6, 7 / 6])
    assert close(opinion.factors, [1.0, 0.6, 1.0, 6 / 7])


def test_norm_clipping_where_most_updates_are_empty() -> None:
    view = a_round(on_a_line(0.0, 3.0, 0.0))
    opinion = norm_clipping(view)
    assert close(opinion.scores, [NAN] * 3)
    assert close(opinion.factors, [1.0, 0.0, 1.0])
    assert close(merged(view, opinion.factors), [0.0])


FAN = [[5.0, 0.0], [4.0, 3.0], [3.0, 4.0], [4.0, -3.0]]
"""With a fifth update of which neither coordinate is in the middle, the median is (4, 0)."""


def test_cosine_to_the_median() -> None:
    """Scores 0, 0.2, 0.4, 0.2 and 2: median 0.2, deviations 0.2, 0, 0.2, 0 and 1.8, so MAD 0.2.

    Beyond 0.2 + 3 · 1.4826 · 0.2 = 1.08956 lies what points backwards.
    """
    opinion = cosine(a_round([*FAN, [-5.0, 0.0]]))
    assert close(opinion.scores, [0.0, 0.2, 0.4, 0.2, 2.0])
    assert close(opinion.factors, [1.0, 1.0, 1.0, 1.0, 0.0])


def test_a_right_angle_is_within_the_threshold_of_cosine() -> None:
    opinion = cosine(a_round([*FAN, [0.0, -5.0]]))
    assert close(opinion.scores, [0.0, 0.2, 0.4, 0.2, 1.0])
    assert close(opinion.factors, [1.0] * 5)


def test_cosine_does_not_take_rounding_for_a_difference() -> None:
    """More than half point exactly the same way, the last ones nearly so: 0.0005² / 2 is tiny."""
    opinion = cosine(a_round([[1.0, 0.0]] * 4 + [[1.0, 0.0005], [1.0, 0.02]]))
    assert 0 < opinion.scores[4] < 3e-6 < opinion.scores[5]
    assert close(opinion.factors, [1.0, 1.0, 1.0, 1.0, 1.0, 0.0])


def test_probe_accuracy() -> None:
    """Drops 0, 0.02, -0.02, 0.04 and x: median 0.02, MAD 0.02, threshold 0.10896."""
    others = [0.9, 0.88, 0.92, 0.86]
    vectors = on_a_line(1.0, 2.0, 3.0, 4.0, 5.0)
    opinion = probe_accuracy(a_round(vectors, accuracies=[*others, 0.78]))
    assert close(opinion.scores, [0.0, 0.02, -0.02, 0.04, 0.12])
    assert close(opinion.factors, [1.0, 1.0, 1.0, 1.0, 0.0])
    opinion = probe_accuracy(a_round(vectors, accuracies=[*others, 0.8]))
    assert close(opinion.scores, [0.0, 0.02, -0.02, 0.04, 0.1])
    assert close(opinion.factors, [1.0] * 5)
    # A rise of the others does not excuse: what counts is the peers' drop.
    opinion = probe_accuracy(a_round(vectors, accuracies=[*others, 0.78], received=0.5))
    assert close(opinion.factors, [1.0, 1.0, 1.0, 1.0, 0.0])


def test_equal_accuracies_of_most_do_not_condemn_the_rest() -> None:
    """The MAD is 0: it counts as one point, and 3 of these above the median are allowed."""
    vectors = on_a_line(1.0, 2.0, 3.0, 4.0, 5.0)
    opinion = probe_accuracy(a_round(vectors, accuracies=[0.9, 0.9, 0.9, 0.88, 0.86]))
    assert close(opinion.factors, [1.0, 1.0, 1.0, 1.0, 0.0])


@given(accuracies=st.lists(st.floats(0, 1), min_size=1, max_size=12))
@SLOW_MACHINE
def test_a_threshold_leaves_out_the_worst_and_at_most_half(accuracies: list[float]) -> None:
    view = a_round(torch.zeros(len(accuracies), 1), accuracies=accuracies)
    opinion = probe_accuracy(view)
    out = opinion.factors == 0
    assert 2 * int(out.sum()) <= len(accuracies)
    if out.any():
        assert opinion.scores[out].min() > opinion.scores[~out].max()


def test_krum() -> None:
    """Places 0, 1, 3, 5 and 20, f = 1: squared distances to the 2 nearest.

    0: 1 + 9; 1: 1 + 4; 3: 4 + 4; 5: 4 + 16; 20: 225 + 289.
    """
    view = a_round(on_a_line(0.0, 1.0, 3.0, 5.0, 20.0), samples=[10, 20, 30, 40, 50])
    opinion = krum(view)
    assert close(opinion.scores, [10.0, 5.0, 8.0, 20.0, 514.0])
    assert close(opinion.factors, [0.0, 1.0, 0.0, 0.0, 0.0])
    assert close(merged(view, opinion.factors), [1.0])
    opinion = multi_krum(view)
    assert close(opinion.scores, [10.0, 5.0, 8.0, 20.0, 514.0])
    assert close(opinion.factors, [1.0, 1.0, 1.0, 1.0, 0.0])
    assert close(merged(view, opinion.factors), [3.1])  # (0 + 20 + 90 + 200) / 100


def test_krum_keeps_the_first_of_equal_ones() -> None:
    opinion = krum(a_round(on_a_line(7.0, 2.0, 2.0, 2.0, 2.0)))
    assert close(opinion.factors, [0.0, 1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("defend", [krum, multi_krum])
def test_krum_has_no_opinion_where_it_promises_nothing(defend: Any) -> None:
    """5 = 2·1 + 3 updates are enough for one attacker, 4 are not, nor 6 for two."""
    assert krum(a_round(on_a_line(0.0, 1.0, 3.0, 5.0, 20.0))).factors.any()
    for count, attackers in ((4, 1), (6, 2), (1, 0)):
        view = a_round(torch.rand(count, 3), attackers=attackers)
        opinion = defend(view)
        assert close(opinion.scores, [NAN] * count)
        assert merged(view, opinion.factors) is None


@given(seed=SEEDS, attackers=st.integers(0, 3), more=st.integers(0, 4))
@SLOW_MACHINE
def test_krum_chooses_and_merges_as_flower_does(seed: int, attackers: int, more: int) -> None:
    # Of three, f = 0, two are each other's only neighbours, and tie.
    count = max(4, 2 * attackers + 3) + more
    draw = drawn(seed, count)
    view = RoundView(**{**vars(draw), "attackers": attackers})
    replies = contents(view, torch.ones(count))
    for defend, keep in ((krum, 1), (multi_krum, count - attackers)):
        chosen = select_multikrum(replies, attackers, keep)
        places = {int(content["metrics"]["place"]) for content in chosen}
        factors = defend(view).factors
        assert {i for i in range(count) if factors[i]} == places
        flowers = aggregate_arrayrecords(chosen, "num-examples")
        assert close(merged(view, factors), flowers["w"].numpy())


def test_distance_to_the_median() -> None:
    """The median of (0, 0), (3, 4), (1, 9), (5, 1) is (2, 2.5)."""
    opinion = distance_to_median(a_round([[0.0, 0.0], [3.0, 4.0], [1.0, 9.0], [5.0, 1.0]]))
    expected = [math.hypot(2, 2.5), math.hypot(1, 1.5), math.hypot(1, 6.5), math.hypot(3, 1.5)]
    assert close(opinion.scores, expected)
    assert close(opinion.factors, [1.0] * 4)


def test_a_trimmed_mean_cuts_as_many_as_there_are_attackers() -> None:
    for updates in range(1, 61):
        values = np.arange(updates, dtype=np.float64) ** 2
        for attackers in range((updates + 1) // 2):
            spec = DEFENCES["trimmed_mean"].strategy(updates, attackers)
            expected = values[attackers : updates - attackers].mean()
            assert trim_mean(values[::-1], spec["beta"]) == pytest.approx(expected)
    with pytest.raises(FedgazeError, match="leaves nothing of 4 updates with 2 cut"):
        DEFENCES["trimmed_mean"].strategy(4, 2)


COLUMNS = [[0.0, 9.0], [1.0, 8.0], [2.0, -70.0], [6.0, 7.0], [50.0, 3.0]]


@pytest.mark.parametrize(
    ("name", "attackers", "expected"),
    [
        ("median", 1, [2.0, 7.0]),
        ("trimmed_mean", 1, [3.0, 6.0]),  # (1 + 2 + 6) / 3, (3 + 7 + 8) / 3
        ("trimmed_mean", 0, [11.8, -8.6]),
        ("none", 1, [11.8, -8.6]),
    ],
)
def test_a_task_takes_the_strategy(
    tmp_path: Path, name: str, attackers: int, expected: list[float]
) -> None:
    strategy = DEFENCES[name].strategy(5, attackers)
    made = Bench(tmp_path, 5, {}, strategy=strategy)
    made.round(COLUMNS, [1] * 5)
    assert made.w == pytest.approx(expected)


def test_fools_gold_without_pardoning() -> None:
    """Cosines: ab 0.6, bd 0.48, cd 0.8, the others 0; so v is 0.6, 0.6, 0.8 and 0.8.

    ``bd`` seen from b becomes 0.48 · 0.6 / 0.8 = 0.36, which is below ab. α is 0.4, 0.4, 0.2, 0.2,
    scaled 1, 1, 0.5, 0.5; the logit of one half is 0.
    """
    histories = [[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0], [0.0, 0.6, 0.8]]
    weights = fools_gold_weights(torch.tensor(histories, dtype=torch.float64))
    assert close(weights, [1.0, 1.0, 0.5, 0.5])
    # κ multiplies: 2 · (0 + 0.5), 0.5 · (0 + 0.5).
    assert close(FoolsGold(2.0)(a_round(histories)).scores, [0.0] * 4)
    assert close(FoolsGold(0.5)(a_round(histories)).scores, [0.0, 0.0, 0.75, 0.75])


def test_fools_gold_pardons_who_resembles_a_sybil() -> None:
    """a and b are the same; c resembles them by 0.8, d resembles c by 0.36.

    v is 1, 1, 0.8, 0.36. For c: 0.8 · 0.8 / 1 = 0.64, so α = 0.36; for d: 0.36 · 0.36 / 0.8 =
    0.162, so α = 0.838. Scaled, c has 0.36 / 0.838 and 1 - that is 0.478 / 0.838.
    """
    histories = [[2.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.6, 0.8]]
    weights = fools_gold_weights(torch.tensor(histories, dtype=torch.float64))
    assert close(weights, [0.0, 0.0, math.log(0.36 / 0.478) + 0.5, 1.0])


def fools_gold_loop(histories: np.ndarray) -> np.ndarray:
    """Algorithm 1, line by line."""
    count = len(histories)
    cs = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                lengths = np.linalg.norm(histories[i]) * np.linalg.norm(histories[j])
                cs[i, j] = histories[i] @ histories[j] / lengths
    v = [max(0.0, *(cs[i, j] for j in range(count) if j != i)) for i in range(count)]
    alpha = np.zeros(count)
    for i in range(count):
        for j in range(count):
            if v[j] > v[i]:
                cs[i, j] *= v[i] / v[j]
        alpha[i] = 1 - max(0.0, *cs[i])
    alpha = alpha / max(alpha)
    weights = []
    for a in alpha:
        logit = math.inf if a == 1 else (math.log(a / (1 - a)) if a > 0 else -math.inf)
        weights.append(min(1.0, max(0.0, logit + 0.5)))
    return np.array(weights)


@given(seed=SEEDS, count=st.integers(2, 8))
@SLOW_MACHINE
def test_fools_gold_over_rounds_is_its_papers_mean(seed: int, count: int) -> None:
    defend, history = FoolsGold(), np.zeros((20, 6))
    for number in range(3):
        view = drawn(seed // 3 + number, count)  # other clients of the twenty each time
        opinion = defend(view)
        vectors = view.vectors.double().numpy()
        for client, vector in zip(view.clients, vectors, strict=True):
            history[client] += vector
        weights = fools_gold_loop(history[list(view.clients)])
        assert close(opinion.scores, 1 - weights)
        assert close(merged(view, opinion.factors), weights @ vectors / weights.sum())


def test_fools_gold_sees_over_two_rounds_what_no_round_shows() -> None:
    """Clients 5 and 9 take turns: at right angles in each round, the same after both.

    Sums: (2, 0, 0, 0) of both, (0, 0, 2, 0) and (0, 0, 0, 2) of the honest clients 1 and 2.
    """
    left, right = [1.0, 1.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]
    one, two = [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    defend = FoolsGold()
    first = a_round([left, right, one, two], clients=[5, 9, 1, 2])
    assert close(defend(first).scores, [0.0] * 4)
    second = a_round([two, right, left, one], clients=[2, 5, 9, 1], samples=[1, 50, 50, 3])
    opinion = defend(second)
    assert close(opinion.scores, [0.0, 1.0, 1.0, 0.0])
    assert close(opinion.factors, [2.0, 0.0, 0.0, 2 / 3])  # n · f is 2 for both: a plain mean
    assert close(merged(second, opinion.factors), [0.0, 0.0, 0.5, 0.5])
    # Another run remembers nothing of it.
    assert close(find_defence("foolsgold").new()(second).scores, [0.0] * 4)


@given(seed=SEEDS, copies=st.integers(2, 5))
@SLOW_MACHINE
def test_fools_gold_merges_nothing_where_all_point_the_same_way(seed: int, copies: int) -> None:
    """Rounding leaves a cosine of a hair less than 1, which scaling would make a full weight."""
    update = drawn(seed, 1, size=50).vectors
    view = a_round(torch.cat([2**i * update for i in range(copies)]))
    opinion = FoolsGold()(view)
    assert close(opinion.scores, [1.0] * copies)
    assert merged(view, opinion.factors) is None


def test_fltrust() -> None:
    """Root (2, 0). (3, 4) has the cosine 0.6 and is cut to (1.2, 1.6), (1, 0) is doubled.

    (0.6 · (1.2, 1.6) + 1 · (2, 0)) / 1.6 = (1.7, 0.6). The two in between are not trusted.
    """
    vectors = [[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]
    view = a_round(vectors, samples=[10, 99, 7, 30], root=[2.0, 0.0])
    opinion = fltrust(view)
    assert close(opinion.scores, [0.4, 1.0, 1.0, 0.0])
    assert close(opinion.factors, [0.6, 0.0, 0.0, 5 / 3])
    assert close(merged(view, opinion.factors), [1.7, 0.6])


@given(seed=SEEDS, count=st.integers(1, 8))
@SLOW_MACHINE
def test_fltrust_is_its_papers_mean(seed: int, count: int) -> None:
    """Algorithm 2, line by line."""
    view = drawn(seed, count)
    assert view.root is not None
    root = view.root.double().numpy()
    trusts, total = [], np.zeros_like(root)
    for update in view.vectors.double().numpy():
        cos = update @ root / (np.linalg.norm(update) * np.linalg.norm(root))
        trusts.append(max(0.0, cos))
        total += trusts[-1] * np.linalg.norm(root) / np.linalg.norm(update) * update
    opinion = fltrust(view)
    assert close(opinion.scores, 1 - np.array(trusts))
    found = merged(view, opinion.factors)
    if sum(trusts) == 0:
        assert found is None
    else:
        assert close(found, total / sum(trusts))


def test_fltrust_needs_a_root_and_trusts_nobody_by_an_empty_one() -> None:
    with pytest.raises(FedgazeError, match="root"):
        fltrust(a_round([[1.0, 0.0]]))
    view = a_round([[1.0, 0.0], [2.0, 1.0]], root=[0.0, 0.0])
    opinion = fltrust(view)
    assert close(opinion.scores, [1.0, 1.0])
    assert merged(view, opinion.factors) is None


ALONE = {
    "none": (NAN, 1.0),
    "oracle": (NAN, 1.0),
    "norm_clipping": (1.0, 1.0),
    "cosine": (0.0, 1.0),
    "probe_accuracy": (0.4, 1.0),
    "krum": (NAN, 0.0),
    "multi_krum": (NAN, 0.0),
    "trimmed_mean": (0.0, 1.0),
    "median": (0.0, 1.0),
    "foolsgold": (0.0, 1.0),
    "fltrust": (0.4, 0.4),  # (3, 4) cut to the length 2; the mean of one is itself
}
EMPTY: dict[str, tuple[float, list[float]]] = {
    "none": (NAN, [1.0] * 5),
    "oracle": (NAN, [1.0] * 5),
    "norm_clipping": (NAN, [1.0] * 5),
    "cosine": (1.0, [1.0] * 5),
    "probe_accuracy": (0.0, [1.0] * 5),
    "krum": (0.0, [1.0, 0.0, 0.0, 0.0, 0.0]),
    "multi_krum": (0.0, [1.0, 1.0, 1.0, 1.0, 0.0]),
    "trimmed_mean": (0.0, [1.0] * 5),
    "median": (0.0, [1.0] * 5),
    "foolsgold": (0.0, [1.0] * 5),
    "fltrust": (1.0, [0.0] * 5),
}


@pytest.mark.parametrize("name", DEFENCES)
def test_a_round_of_one(name: str) -> None:
    view = a_round([[3.0, 4.0]], samples=[17], root=[2.0, 0.0], accuracies=[0.5])
    opinion = DEFENCES[name].new()(view)
    score, factor = ALONE[name]
    assert close(opinion.scores, [score])
    assert close(opinion.factors, [factor])


@pytest.mark.parametrize("name", DEFENCES)
def test_a_round_in_which_nothing_moves(name: str) -> None:
    opinion = DEFENCES[name].new()(a_round(torch.zeros(5, 3), root=[1.0, 0.0, 0.0]))
    score, factors = EMPTY[name]
    assert close(opinion.scores, [score] * 5)
    assert close(opinion.factors, factors)


def reordered(view: RoundView, order: list[int]) -> RoundView:
    return RoundView(
        vectors=view.vectors[order],
        clients=tuple(view.clients[i] for i in order),
        samples=view.samples[order],
        probe_accuracy=view.probe_accuracy[order],
        received_accuracy=view.received_accuracy,
        root=view.root,
        attackers=view.attackers,
    )


@pytest.mark.parametrize("name", DEFENCES)
@given(seed=SEEDS, order=st.integers(5, 9).flatmap(lambda n: st.permutations(range(n))))
@settings(deadline=None, max_examples=25)
def test_the_order_of_clients_does_not_matter(name: str, seed: int, order: list[int]) -> None:
    straight, turned = DEFENCES[name].new(), DEFENCES[name].new()
    for number in range(2):
        view = drawn(seed // 2 + number, len(order))
        expected: Opinion = straight(view)
        opinion = turned(reordered(view, order))
        assert close(opinion.scores, expected.scores[order])
        assert close(opinion.factors, expected.factors[order])


@pytest.mark.parametrize("name", DEFENCES)
def test_an_opinion_leaves_the_round_as_it_was(name: str) -> None:
    view, same = drawn(3, 6), drawn(3, 6)
    DEFENCES[name].new()(view)
    assert torch.equal(view.vectors, same.vectors)
    assert torch.equal(view.probe_accuracy, same.probe_accuracy)


def test_an_unknown_defence_names_the_nearest() -> None:
    assert find_defence("krum") is DEFENCES["krum"]
    with pytest.raises(FedgazeError, match="did you mean 'fltrust'"):
        find_defence("fl_trust")
