"""Grids and scenes of which it is known what lies where."""

import pytest
import torch

from fedgaze.data import (
    Dataset,
    PlantedImages,
    StackedImages,
    load_dataset,
    load_digits,
    make_grids,
    make_scenes,
)
from fedgaze.errors import FedgazeError


def test_each_cell_of_a_grid_holds_one_image_of_its_class() -> None:
    images = torch.rand(12, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 6
    grids = make_grids(images, labels, 20, seed=3)
    assert grids.images.shape == (20, 2, 8, 12)
    for image, classes, masks in zip(grids.images, grids.labels, grids.masks(), strict=True):
        assert len(set(classes.tolist())) == 4
        assert torch.equal(masks.sum(0), torch.ones(8, 12, dtype=torch.long))
        for row in range(2):
            for column in range(2):
                label = int(classes[2 * row + column])
                cell = image[:, 4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
                assert any(torch.equal(cell, each) for each in images[labels == label])
                inside = masks[2 * row + column]
                assert inside[4 * row : 4 * row + 4, 6 * column : 6 * column + 6].all()


def test_a_grid_wants_as_many_classes_as_cells() -> None:
    with pytest.raises(FedgazeError, match=r"a grid of 3 × 3 needs 9 classes; there are 2"):
        make_grids(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]), 1, side=3)


def test_a_scene_s_boxes_hold_its_digits_and_nothing_lies_elsewhere() -> None:
    digits = load_digits().train
    scenes = make_scenes(digits, 40, each=4, marked=True, seed=1)
    originals = digits[torch.arange(len(digits.labels))][:, :, 4:-4, 4:-4]
    for index in range(40):
        left = scenes.images[index, 0].clone()
        assert len(set(scenes.labels[index].tolist())) == 4
        for label, box in zip(
            scenes.labels[index], scenes.boxes[index].int().tolist(), strict=True
        ):
            x, y, right, bottom = box
            assert (right - x, bottom - y) == (16, 16)
            seen = scenes.images[index, 0, y:bottom, x:right]
            same = (originals[:, 0] - seen).abs().amax((1, 2)) == 0
            assert label in digits.labels[same]
            left[y:bottom, x:right] = 0
        x, y, right, bottom = scenes.mark_boxes[index].int().tolist()
        assert (right - x, bottom - y) == (6, 6)
        # Four of nine cells of 2 × 2 are white.
        assert float(scenes.images[index, 0, y:bottom, x:right].sum()) == 16
        left[y:bottom, x:right] = 0
        assert float(left.sum()) == 0


def test_marks_are_one_pattern_a_class_and_know_nothing_of_the_digits() -> None:
    scenes = make_scenes(load_digits().train, 400, marked=True)
    patterns: dict[int, set[bytes]] = {}
    for index, label in enumerate(scenes.marks.tolist()):
        x, y, right, bottom = scenes.mark_boxes[index].int().tolist()
        patch = scenes.images[index, 0, y:bottom, x:right]
        patterns.setdefault(label, set()).add(patch.numpy().tobytes())
    assert sorted(patterns) == list(range(10))
    assert all(len(each) == 1 for each in patterns.values())
    assert len(set.union(*patterns.values())) == 10
    beside = (scenes.labels == scenes.marks[:, None]).any(1).float().mean()
    assert float(beside) == pytest.approx(0.3, abs=0.08)


def test_scenes_are_the_same_for_a_seed_and_say_what_is_in_them() -> None:
    digits = load_digits().test
    first, again = make_scenes(digits, 5, seed=2), make_scenes(digits, 5, seed=2)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, make_scenes(digits, 5, seed=3).images)
    present = first.present()
    assert present.shape == (5, 10)
    assert torch.equal(present.sum(1), torch.full((5,), 3.0))
    assert bool((first.marks == -1).all())
    assert bool(first.mark_boxes.isnan().all())


def test_no_more_digits_than_there_is_room_for() -> None:
    few = StackedImages(torch.rand(10, 1, 24, 24), torch.arange(10))
    make_scenes(few, 1, each=9)
    with pytest.raises(FedgazeError, match=r"each is 9; allowed is 1 to 8 digits a scene"):
        make_scenes(few, 1, each=9, marked=True)


def test_a_scattered_digit_lies_in_its_box_among_faint_things() -> None:
    found = load_dataset("scenes", seed=4)
    digits = load_digits(seed=4)
    assert found.classes == tuple("0123456789")
    corners = set()
    for scenes, part in ((found.train, digits.train), (found.test, digits.test)):
        assert torch.equal(scenes.labels, part.labels)
        every = torch.arange(len(part.labels))
        images, originals = scenes[every], part[every][:, 0, 4:-4, 4:-4]
        assert images.shape == (len(every), 1, 32, 32)
        assert images.min() >= 0
        assert images.max() <= 1
        masks = found.masks_of(scenes, every)
        assert masks is not None
        assert masks.sum((1, 2)).tolist() == [256] * len(every)
        inside = images[:, 0][masks].view(-1, 16, 16)
        # The digit's own strokes are there, and what is not of them is faint.
        assert (inside >= originals).all()
        assert (inside - originals).max() <= 0.4
        assert torch.equal(inside[originals > 0.4], originals[originals > 0.4])
        around = images[:, 0].masked_fill(masks, 0)
        assert around.amax((1, 2)).max() <= 0.4
        assert (around.amax((1, 2)) > 0.1).float().mean() > 0.9  # but hardly ever nothing
        tops = masks.any(2).int().argmax(1)
        corners |= set(zip(tops.tolist(), masks.any(1).int().argmax(1).tolist(), strict=True))
    assert len(corners) > 280  # of 17 × 17 places


def test_scenes_are_drawn_by_seed_and_no_training_digit_is_in_a_test_scene() -> None:
    every = torch.arange(50)
    one, same, other = (load_dataset("scenes", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.train[every], same.train[every])
    assert not torch.equal(one.train[every], other.train[every])
    assert (len(one.train.labels), len(one.test.labels)) == (1438, 359)


def test_boxes_go_with_their_images_whatever_is_done_to_them() -> None:
    boxes = torch.tensor([[0, 0, 2, 1], [1, 1, 4, 3], [2, 0, 3, 7]])
    images = StackedImages(torch.rand(3, 1, 7, 8), torch.arange(3), boxes)
    seen = Dataset("ours", images, images, ("a", "b", "c"))
    expected = torch.zeros(3, 7, 8, dtype=torch.bool)
    expected[0, 0, :2] = True
    expected[1, 1:3, 1:4] = True
    expected[2, :, 2] = True
    kept = seen.keep(["c", "a"])
    masks = kept.masks_of(kept.train, torch.tensor([1, 0]))
    assert masks is not None
    assert torch.equal(masks, expected[[2, 0]])
    turned = torch.tensor([2, 1])
    planted = PlantedImages.some(images.select(turned, turned), 1.0, seed=0)
    for changed in (planted, planted.select(torch.tensor([0, 1]), turned)):
        masks = seen.masks_of(changed, torch.tensor([0, 1]))
        assert masks is not None
        assert torch.equal(masks, expected[[2, 1]])


def test_where_no_box_is_known_the_object_is_looked_for() -> None:
    images = StackedImages(torch.rand(3, 1, 3, 4), torch.arange(3))
    bright = Dataset("ours", images, images, ("a", "b", "c"), lambda pixels: pixels[:, 0] > 0.5)
    masks = bright.masks_of(images, torch.tensor([2]))
    assert masks is not None
    assert torch.equal(masks, images.pixels[2:, 0] > 0.5)
    assert Dataset("ours", images, images, ("a",)).masks_of(images, torch.tensor([0])) is None
