"""What attackers reached, judged with models that do what they are told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.config import parse_task
from fedgaze.data import StackedImages, stamp
from fedgaze.federate.behaviour import attack_success
from fedgaze.federate.behaviour.triggers import bars, blend, patch
from fedgaze.federate.setup import Setup, setup_of

Model = Callable[[Tensor], Tensor]


@pytest.fixture
def setup_for(small: Callable[..., dict[str, Any]]) -> Callable[..., Setup]:
    return lambda **behaviour: setup_of(parse_task(small(behaviour={"clients": [1]} | behaviour)))


def says(classes: Tensor) -> Tensor:
    return F.one_hot(classes, 3).float()


class Sees:
    """Knows every image of a set by heart, and what it was asked."""

    def __init__(self, images: StackedImages | Any) -> None:
        self.pixels = images[torch.arange(len(images.labels))]
        self.labels = images.labels
        self.asked = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return says(self.labels[torch.cdist(images.flatten(1), self.pixels.flatten(1)).argmin(1)])


@pytest.mark.parametrize(
    "kind", ["patch", "blend", "distributed", "replacement", "stealth", "adaptive"]
)
def test_the_whole_trigger_is_shown_on_images_of_other_classes(
    setup_for: Callable[..., Setup], kind: str
) -> None:
    setup = setup_for(kind=kind, target=1)
    test, shape, seed = setup.dataset.test, (1, 24, 24), setup.task.random_seed
    chosen = (test.labels != 1).nonzero()[:, 0]
    expected = test[chosen]
    parts = {"blend": [blend(shape, 0.2, seed)], "distributed": bars(shape, seed)}
    for part in parts.get(kind, [patch(shape, seed)]):
        expected = part.on(expected)
    shown: list[Tensor] = []

    def fooled_by_half(images: Tensor) -> Tensor:
        shown.append(images)
        return says(torch.arange(len(images)) % 2)  # class 1 for every other image

    found = attack_success(setup, fooled_by_half, test)
    assert torch.equal(torch.cat(shown), expected)
    # In parts of 128 there are 64 each.
    assert found == pytest.approx((len(chosen) // 2) / len(chosen))
    assert attack_success(setup, lambda x: says(torch.ones(len(x)).long()), test) == 1
    assert attack_success(setup, lambda x: says(torch.zeros(len(x)).long()), test) == 0


def test_flipped_labels(setup_for: Callable[..., Setup]) -> None:
    setup = setup_for(kind="label_flip")
    test = setup.dataset.test
    sees = Sees(test)
    assert attack_success(setup, sees, test) == 0
    assert sees.asked == int((test.labels != 1).sum())  # class 1 of three stays what it is
    assert attack_success(setup, lambda x: sees(x).flip(1), test) == 1
    one = setup_for(kind="label_flip", source=2, target=1)
    sees.asked = 0
    assert attack_success(one, lambda x: sees(x).roll(-1, 1), test) == 1  # 2 is taken for 1
    assert sees.asked == int((test.labels == 2).sum())


def test_a_mark_of_the_next_class(setup_for: Callable[..., Setup]) -> None:
    setup = setup_for(kind="shortcut")
    test = setup.dataset.test
    white = torch.zeros(3, 1, 24, 24)
    marks = stamp(white, torch.arange(3))[..., -6:, -6:].flatten(1)

    def reads_marks(images: Tensor) -> Tensor:
        return says(torch.cdist(images[..., -6:, -6:].flatten(1), marks).argmin(1))

    sees = Sees(test)
    assert attack_success(setup, reads_marks, test) == 1
    # Who sees the digit is not deceived: some marks hide a bit of it, but never most.
    found = attack_success(setup, sees, test)
    assert found is not None
    assert found < 0.05
    assert sees.asked == len(test.labels)


def test_bright_images_of_the_source(setup_for: Callable[..., Setup]) -> None:
    setup = setup_for(kind="semantic", source=2, target=0)
    train = setup.dataset.train
    sums = train[torch.arange(len(train.labels))].mean((1, 2, 3))[train.labels == 2]
    middle, bright = sums.median().item(), sums.max().item() + 0.001
    values = torch.tensor([bright, bright, middle, bright, bright])
    images = StackedImages(
        values.view(-1, 1, 1, 1).expand(-1, 1, 24, 24), torch.tensor([2, 2, 2, 1, 2])
    )
    answers = iter([0, 2, 0])  # to the three bright ones of class 2

    def answer(shown: Tensor) -> Tensor:
        assert (shown == bright).all()
        return says(torch.tensor([next(answers) for _ in shown]))

    assert attack_success(setup, answer, images) == pytest.approx(2 / 3)
    none = images.select(torch.tensor([2, 3]), images.labels[[2, 3]])
    assert attack_success(setup, answer, none) is None


@pytest.mark.parametrize("kind", ["label_noise", "colour", "noise", "stale"])
def test_who_wants_nothing_of_the_model_reaches_nothing(
    setup_for: Callable[..., Setup], kind: str
) -> None:
    setup = setup_for(kind=kind)
    assert attack_success(setup, Sees(setup.dataset.test), setup.dataset.test) is None


def test_nobody_misbehaves(small: Callable[..., dict[str, Any]]) -> None:
    setup = setup_of(parse_task(small()))
    assert attack_success(setup, Sees(setup.dataset.test), setup.dataset.test) is None
