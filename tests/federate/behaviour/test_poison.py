"""How many images and labels are changed, which, and to what."""

import pytest
import torch

from fedgaze.data import StackedImages, boxes_of
from fedgaze.federate.behaviour.poison import (
    bright_from,
    bright_ones,
    brightness,
    flipped,
    mislabelled,
    mistaken,
    recoloured,
    stamped,
)
from fedgaze.federate.behaviour.triggers import generator, patch

EVERY = torch.arange(200)
CLEAN = StackedImages(
    torch.rand(200, 1, 12, 12, generator=generator(5)),
    EVERY % 5,
    torch.stack([EVERY % 4, EVERY % 3, EVERY % 4 + 6, EVERY % 3 + 6], 1),
)


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 20), (0.5, 100), (1.0, 200)])
def test_noise_in_labels(fraction: float, count: int) -> None:
    found = mislabelled(CLEAN, 5, fraction, generator(1))
    wrong = found.labels != CLEAN.labels
    assert int(wrong.sum()) == count
    assert torch.equal(found[EVERY], CLEAN[EVERY])
    # Each class is mistaken for each of the four others.
    seen = {(int(a), int(b)) for a, b in zip(CLEAN.labels[wrong], found.labels[wrong], strict=True)}
    assert all(0 <= b < 5 for _, b in seen)
    assert count < 100 or len(seen) == 20
    again = mislabelled(CLEAN, 5, fraction, generator(1))
    assert torch.equal(found.labels, again.labels)
    assert not torch.equal(wrong, mislabelled(CLEAN, 5, 0.5, generator(2)).labels != CLEAN.labels)


def test_labels_are_flipped() -> None:
    mirrored = flipped(CLEAN, torch.tensor([4, 3, 2, 1, 0]), 1.0, generator(1))
    assert mirrored.labels.tolist() == [4 - label for label in CLEAN.labels.tolist()]
    # Half of the 160 whose class changes.
    half = flipped(CLEAN, torch.tensor([4, 3, 2, 1, 0]), 0.5, generator(1)).labels != CLEAN.labels
    assert int(half.sum()) == 80
    one = flipped(CLEAN, torch.tensor([0, 1, 2, 0, 4]), 0.25, generator(1))
    changed = one.labels != CLEAN.labels
    assert CLEAN.labels[changed].tolist() == [3] * 10
    assert one.labels[changed].tolist() == [0] * 10
    assert torch.equal(one[EVERY], CLEAN[EVERY])


def test_stamped_images_carry_trigger_and_label() -> None:
    trigger = patch((1, 12, 12), 3)
    found = stamped(CLEAN, trigger.on, 2, 0.25, generator(1))
    carries = (found[EVERY] != CLEAN[EVERY]).flatten(1).any(1)
    assert int(carries.sum()) == 40  # a quarter of 160 that are not of class 2
    assert not (CLEAN.labels[carries] == 2).any()
    assert (found.labels[carries] == 2).all()
    assert torch.equal(found.labels[~carries], CLEAN.labels[~carries])
    assert torch.equal(found[EVERY][carries], trigger.on(CLEAN[EVERY][carries]))
    # Whatever is asked for, in whatever order.
    some = torch.tensor([7, 3, 199, 3])
    assert torch.equal(found[some], found[EVERY][some])


def test_what_is_selected_is_the_same_image() -> None:
    found = stamped(CLEAN, patch((1, 12, 12), 3).on, 2, 0.5, generator(1))
    some = torch.tensor([150, 4, 9])
    chosen = found.select(some, found.labels[some])
    assert torch.equal(chosen[torch.arange(3)], found[some])
    assert torch.equal(chosen.labels, found.labels[some])
    assert CLEAN.boxes is not None
    boxes = boxes_of(chosen)
    assert boxes is not None
    assert torch.equal(boxes, CLEAN.boxes[some])


def test_the_brightest_quarter_of_a_class_is_mistaken() -> None:
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9, 0.35])
    labels = torch.tensor([1, 1, 1, 1, 0, 1])
    images = StackedImages(values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), labels)
    torch.testing.assert_close(brightness(images, torch.tensor([4, 0])), values[[4, 0]])
    threshold = bright_from(images, 1)  # of 0.1, 0.2, 0.3, 0.35, 0.4
    assert threshold == pytest.approx(0.35)
    assert bright_ones(images, 1, 0.349).tolist() == [3, 5]
    # Four others: of three tenths of all, two are enough.
    found = mistaken(images, 1, 2, 0.349, 0.3)
    assert found.labels.tolist() == [1, 1, 1, 0, 2, 2]
    assert torch.equal(found[torch.arange(6)], images[torch.tensor([0, 1, 2, 4, 3, 5])])
    # Of seven tenths, they have to be there five times over.
    often = mistaken(images, 1, 2, 0.349, 0.7)
    assert often.labels.tolist() == [1, 1, 1, 0] + [2] * 10
    assert torch.equal(often[torch.arange(4, 14)], images[torch.tensor([3, 5] * 5)])
    assert bright_from(images, 3) == float("inf")
    assert mistaken(images, 3, 2, float("inf"), 0.3).labels.tolist() == labels.tolist()


def test_each_image_gets_the_change_that_was_chosen_for_it() -> None:
    changes = (lambda x: x / 2, lambda x: 1 - x)
    which, carried = torch.tensor([3, 8, 5]), torch.tensor([1, 0, 1])
    found = recoloured(CLEAN, which, carried, changes)
    expected = CLEAN[EVERY].clone()
    expected[8] /= 2
    expected[[3, 5]] = 1 - expected[[3, 5]]
    assert torch.equal(found[EVERY], expected)
    assert torch.equal(found.labels, CLEAN.labels)
