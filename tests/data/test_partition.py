"""Splits over clients: worked out by hand, and what must hold for any of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgaze.data import Dataset, StackedImages, partition
from fedgaze.data.split import Scheme
from fedgaze.errors import FedgazeError

FOUR = torch.arange(4).repeat_interleave(20)
"""Four classes of twenty."""


def letters(**sizes: int) -> list[str]:
    """Groups in turns, as they come in a set that nobody sorted."""
    every = [(i / size, name) for name, size in sizes.items() for i in range(size)]
    return [name for _, name in sorted(every)]


def held(parts: Sequence[Tensor], groups: Sequence[Any]) -> list[set[Any]]:
    return [{groups[i] for i in own.tolist()} for own in parts]


@st.composite
def splits(draw: st.DrawFn) -> dict[str, Any]:
    scheme = draw(st.sampled_from(["dirichlet", "iid", "shards", "quantity", "natural"]))
    clients = draw(st.integers(1, 6))
    each = draw(st.integers(1, 4))
    # A shard more or less of one sample each must not bring a client below ten.
    count = draw(st.integers(clients * (10 + each), 400))
    classes = draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    groups = None
    if scheme == "natural":
        # Every client can have a group of ten of its own.
        sure = np.arange(clients).repeat(10)
        groups = np.concatenate([sure, random.integers(0, clients + 5, count - len(sure))])
        groups = random.permutation(groups).tolist()
    return {
        "labels": torch.from_numpy(random.integers(0, classes, count)),
        "clients": clients,
        "scheme": scheme,
        "alpha": draw(st.sampled_from([1e-3, 0.1, 1.0, 100.0])),
        "seed": seed,
        "shards_per_client": each,
        "groups": groups,
    }


@given(splits())
@settings(deadline=None, max_examples=150)
def test_each_sample_goes_to_one_client_and_nobody_starves(how: dict[str, Any]) -> None:
    parts = partition(**how)
    assert len(parts) == how["clients"]
    assert torch.cat(parts).sort().values.tolist() == list(range(len(how["labels"])))
    assert all(torch.equal(own, own.sort().values) for own in parts)
    assert min(map(len, parts)) >= 10
    assert all(map(torch.equal, parts, partition(**how)))
    sizes = {len(own) for own in parts}
    if how["scheme"] in ("iid", "dirichlet"):
        assert max(sizes) - min(sizes) <= 1
    if how["scheme"] == "shards":
        assert max(sizes) - min(sizes) <= how["shards_per_client"]
        # A cut between two classes, and only that, puts both into one shard.
        labels, classes = how["labels"], len(how["labels"].unique())
        shards = how["clients"] * how["shards_per_client"]
        assert sum(len(labels[own].unique()) for own in parts) <= shards + classes - 1
    if how["scheme"] == "natural":
        assert sum(map(len, held(parts, how["groups"]))) == len(set(how["groups"]))


@pytest.mark.parametrize("seed", range(5))
def test_shards_of_one_class_each(seed: int) -> None:
    parts = partition(FOUR, 4, "shards", seed=seed, shards_per_client=2)
    counts = [FOUR[own].bincount(minlength=4).tolist() for own in parts]
    # Eight shards of ten, two of each class: a client has twice ten, or twenty of one.
    assert all(set(row) <= {0, 10, 20} and sum(row) == 20 for row in counts)
    assert np.array(counts).sum(0).tolist() == [20] * 4


def test_shards_are_cut_from_a_mixed_class_and_dealt_by_seed() -> None:
    parts = partition(FOUR, 4, "shards", seed=0, shards_per_client=2)
    halves = [own[FOUR[own] == label] for own in parts for label in range(4)]
    assert any(len(own) == 10 and int(own[-1] - own[0]) > 9 for own in halves)
    others = [partition(FOUR, 4, "shards", seed=seed) for seed in range(1, 5)]
    assert not all(all(map(torch.equal, parts, other)) for other in others)


def test_a_shard_at_the_border_of_two_classes_has_both() -> None:
    labels = torch.tensor([0] * 30 + [1] * 50)
    parts = partition(labels, 2, "shards", seed=0, shards_per_client=1)
    counts = sorted(labels[own].bincount(minlength=2).tolist() for own in parts)
    assert counts == [[0, 40], [30, 10]]


def sizes_of(shares: Sequence[float], count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    class Drawn:
        def dirichlet(self, _: object) -> Any:
            return np.array(shares)

    monkeypatch.setattr("fedgaze.data.split.np.random.default_rng", lambda _: Drawn())
    labels = torch.zeros(count, dtype=torch.int64)
    return [len(own) for own in partition(labels, len(shares), "quantity")]


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ([0.5, 0.3, 0.2], 1000, [500, 300, 200]),
        # 33.3, 33.3, 33.4: the odd one goes to the largest remainder.
        ([0.333, 0.333, 0.334], 100, [33, 33, 34]),
        ([0.9, 0.08, 0.02], 100, [80, 10, 10]),
        # Who gets 5.9 is lifted to 10; of the other 90 the second would get 9.66: lifted, too.
        ([0.84, 0.101, 0.059], 100, [80, 10, 10]),
        ([1.0, 0.0, 0.0], 60, [40, 10, 10]),
        ([0.7, 0.2, 0.1], 30, [10, 10, 10]),
    ],
)
def test_sizes_by_drawn_shares(
    shares: list[float], count: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sizes_of(shares, count, monkeypatch) == expected


SORTED = torch.arange(4).repeat_interleave(2500)


@pytest.mark.parametrize("scheme", ["iid", "quantity"])
def test_classes_are_those_of_the_whole(scheme: Scheme) -> None:
    for own in partition(SORTED, 5, scheme, 2.0, seed=0):
        share = SORTED[own].bincount(minlength=4) / len(own)
        assert (share - 0.25).abs().max() < 4 * (0.25 * 0.75 / len(own)) ** 0.5


def test_sizes_vary_as_a_dirichlet_distribution_says() -> None:
    alpha, clients = 2.0, 5
    sizes = torch.tensor(
        [
            [len(own) for own in partition(SORTED, clients, "quantity", alpha, seed)]
            for seed in range(300)
        ]
    )
    variance = (sizes / 10_000).var().item()
    mean = 1 / clients
    assert variance == pytest.approx(mean * (1 - mean) / (clients * alpha + 1), rel=0.15)


def test_whole_groups_are_dealt_out_evenly() -> None:
    groups = letters(a=50, b=30, c=19, d=18, e=3)
    parts = partition(torch.zeros(120, dtype=torch.int64), 2, "natural", groups=groups)
    # 50 | 30, then 19 to the second (49), 18 to it again (67), and 3 to the first.
    assert held(parts, groups) == [{"a", "e"}, {"b", "c", "d"}]
    assert list(map(len, parts)) == [53, 67]


def test_equal_groups_are_dealt_out_by_seed() -> None:
    groups = letters(**dict.fromkeys("abcdef", 20))
    labels = torch.zeros(120, dtype=torch.int64)
    deals = [held(partition(labels, 3, "natural", seed=s, groups=groups), groups) for s in range(9)]
    assert all(len(own) == 2 for deal in deals for own in deal)
    assert len({str(sorted(map(sorted, deal))) for deal in deals}) > 1


def test_as_many_groups_as_clients_are_numbered_in_their_order() -> None:
    groups = letters(c=20, a=12, b=40)
    labels = torch.zeros(72, dtype=torch.int64)
    assert held(partition(labels, 3, "natural", seed=1, groups=groups), groups) == [
        {"a"}, {"b"}, {"c"},
    ]  # fmt: skip
    numbers = [{"c": 100, "a": 2, "b": 11}[name] for name in groups]
    assert held(partition(labels, 3, "natural", groups=numbers), numbers) == [{2}, {11}, {100}]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"scheme": "shards", "shards_per_client": 41}, "shards_per_client=41 .*at most 40"),
        ({"scheme": "natural"}, "needs to know what each image belongs to.*dataset.partition_by"),
        (
            {"scheme": "natural", "groups": letters(x=80)},
            r"num_clients=2 is too many .*there are 1 \(x\)",
        ),
        (
            {"scheme": "natural", "groups": letters(x=75, y=5)},
            "num_clients=2 is too many .*client 1 would get 5 images.*at least 10",
        ),
    ],
)
def test_what_cannot_be_split(how: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError, match=said):
        partition(FOUR, 2, **how)


def test_groups_follow_the_classes_that_are_kept() -> None:
    images = StackedImages(torch.zeros(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
    data = Dataset("x", images, images, ("a", "b", "c"), groups=["p", "q", "r", "s", "t", "u"])
    kept = data.keep(["c", "a"])
    assert kept.groups == ["p", "r", "s", "u"]
    assert kept.train.labels.tolist() == [1, 0, 1, 0]
    for groups, known in (([1, 2], 2), ([1, 2, None, 3, None, 4], 4)):
        with pytest.raises(FedgazeError, match=f"6 training images and says of {known} what"):
            Dataset("x", images, images, ("a", "b", "c"), groups=groups)  # type: ignore[arg-type]
