"""Data sets made smaller."""

from dataclasses import replace

import pytest
import torch

from fedgaze.config import parse_task
from fedgaze.data import Dataset, StackedImages, load_digits
from fedgaze.data.split import balanced
from fedgaze.errors import FedgazeError
from fedgaze.federate.setup import setup_of

# 50, 30, 3 and 17 of four classes, mixed.
LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [3] * 17)[
    torch.randperm(100, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (8, [2, 2, 2, 2]),
        (4, [1, 1, 1, 1]),
        (12, [3, 3, 3, 3]),
        (30, [9, 9, 3, 9]),
        (54, [17, 17, 3, 17]),
        (84, [34, 30, 3, 17]),
    ],
)
def test_classes_get_the_same_as_far_as_there_are_so_many(count: int, expected: list[int]) -> None:
    chosen = balanced(LABELS, count, seed=3)
    assert LABELS[chosen].bincount(minlength=4).tolist() == expected
    assert torch.equal(chosen, chosen.unique())  # each once, ascending
    assert torch.equal(chosen, balanced(LABELS, count, seed=3))
    assert not torch.equal(chosen, balanced(LABELS, count, seed=4))


def test_a_rest_goes_to_some_of_the_classes() -> None:
    for seed in range(10):
        counts = LABELS[balanced(LABELS, 10, seed)].bincount(minlength=4)
        assert int(counts.sum()) == 10
        assert set(counts.tolist()) == {2, 3}


def test_all_are_kept_where_there_are_no_more() -> None:
    for count in (None, 100, 101):
        assert torch.equal(balanced(LABELS, count, 0), torch.arange(100))


def test_images_labels_and_groups_stay_together() -> None:
    numbers = torch.arange(100)
    images = StackedImages(numbers.float().view(-1, 1, 1, 1) / 100, LABELS)
    few = StackedImages(torch.zeros(6, 1, 1, 1), torch.arange(6) % 4)
    groups = [f"writer {i}" for i in range(100)]
    whole = Dataset("ours", images, few, ("a", "b", "c", "d"), groups=groups)
    small = whole.limited(20, 4, seed=1)
    kept = (small.train[torch.arange(20)].flatten() * 100).round().long()
    assert torch.equal(small.train.labels, LABELS[kept])
    assert small.groups == [f"writer {i}" for i in kept.tolist()]
    assert small.test.labels.sort().values.tolist() == [0, 1, 2, 3]
    assert (small.name, small.classes) == (whole.name, whole.classes)
    same = whole.limited(None, 4, seed=1)
    assert same.train is images  # nothing is copied that is kept whole
    assert replace(whole, groups=None).limited(20, None, seed=1).groups is None


def test_a_task_limits_what_is_split() -> None:
    data = {"partition": "iid", "limit": 90, "test_limit": 30, "classes": ["1", "4", "7"]}
    model = {"_target_": "fedgaze.models.DigitsNet"}
    setup = setup_of(parse_task({"model": model, "num_clients": 3, "dataset": data}))
    assert setup.dataset.train.labels.bincount().tolist() == [30, 30, 30]
    assert setup.dataset.test.labels.bincount().tolist() == [10, 10, 10]
    assert [len(part) for part in setup.parts] == [30, 30, 30]
    whole = load_digits(seed=42).keep(["1", "4", "7"]).train
    every = whole[torch.arange(len(whole.labels))].flatten(1)
    found = torch.cdist(setup.dataset.train[torch.arange(90)].flatten(1), every)
    assert torch.equal(whole.labels[found.argmin(1)], setup.dataset.train.labels)


@pytest.mark.parametrize("key", ["limit", "test_limit"])
def test_nothing_is_no_limit(key: str) -> None:
    with pytest.raises(FedgazeError, match=f"dataset.{key}=0: .*greater than or equal to 1"):
        parse_task({"model": {"_target_": "fedgaze.models.DigitsNet"}, "dataset": {key: 0}})
