"""Marks are where they say, pull as the formula has it, and a planted one is found."""

import pytest
import torch
from torch import Tensor

from fedgaze.federate.gate.marks import (
    OPACITY,
    PLACES,
    Patch,
    Pattern,
    make_sweep,
    pull_of,
    seek_patch,
    seek_pattern,
)

WHITE = torch.ones(1, 3, 3)
RED = torch.tensor([1.0, 0, 0]).view(3, 1, 1)


class Corner(Patch):
    """The first pixel alone."""

    def __init__(self) -> None:
        super().__init__(WHITE, 1, "in the upper left")

    def on(self, images: Tensor) -> Tensor:
        changed = images.clone()
        changed[:, :, 0, 0] = 1
        return changed


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [
        ("in the upper left", (1, 4), (1, 4)),
        ("at the upper edge", (1, 4), (4, 7)),
        ("in the lower right", (7, 10), (8, 11)),
        ("in the middle", (4, 7), (4, 7)),
    ],
)
def test_a_patch_is_a_pixel_from_the_ends(
    place: str, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image = torch.full((1, 1, 11, 12), 0.5)
    changed = Patch(WHITE, 3, place).on(image)
    expected = image.clone()
    expected[..., rows[0] : rows[1], columns[0] : columns[1]] = 1
    assert torch.equal(changed, expected)
    assert (image == 0.5).all(), "the image itself was changed"


def test_cells_are_spread_over_the_side() -> None:
    cells = torch.tensor([[[1.0, 0, 1], [0, 1, 0], [0, 0, 1]]])
    changed = Patch(cells, 6, "in the upper left").on(torch.full((1, 1, 8, 8), 0.5))
    assert torch.equal(
        changed[0, 0, 1:7, 1:7], cells[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    )


@pytest.mark.parametrize(
    ("cells", "side", "name"),
    [
        (WHITE, 6, "a white square in the middle"),
        (0 * WHITE, 6, "a black square in the middle"),
        (WHITE, 3, "a small white square in the middle"),
        (torch.eye(3)[None], 6, "a patch of cells in the middle"),
        (RED.expand(3, 3, 3), 6, "a coloured square in the middle"),
        (torch.eye(3)[None] * RED, 6,
         "a patch of coloured cells in the middle"),
    ],
)  # fmt: skip
def test_a_patch_is_named(cells: Tensor, side: int, name: str) -> None:
    assert Patch(cells, side, "in the middle").name == name


def test_a_mutant_differs_in_two_cells_at_most() -> None:
    draw = torch.Generator().manual_seed(0)
    counts = {int((Patch(WHITE, 6, "x").mutant(draw).cells != WHITE).sum()) for _ in range(50)}
    assert counts == {0, 2}


def test_a_pattern_is_faint_and_all_over_the_image() -> None:
    image = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    changed = Pattern(torch.tensor([1.0, 0, 1]).view(1, 1, 3)).on(image)
    assert changed.flatten().tolist() == pytest.approx([OPACITY, 0.5 - 0.5 * OPACITY, 1.0])


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 32, 32), (1, 8, 8), (3, 20, 40)])
def test_a_sweep_covers_all_places_and_changes_an_image(shape: tuple[int, int, int]) -> None:
    sweep = make_sweep(shape, 7)
    grey = torch.full((1, *shape), 0.4)
    assert {patch.place for patch in sweep.patches} == set(PLACES)
    for each in sweep.patches:
        changed = each.on(grey)
        assert changed.shape == grey.shape
        assert 0 <= changed.min() <= changed.max() <= 1
        assert not torch.equal(changed, grey), each.name
    cells, again, other = (
        torch.stack([patch.cells for patch in make_sweep(shape, seed).patches])
        for seed in (7, 7, 8)
    )
    assert torch.equal(cells, again)
    assert not torch.equal(cells, other)


def test_the_pull_is_the_mean_rise_over_images_of_other_classes() -> None:
    """Worked by hand: three images, two classes; the mark sends everything to class 1."""

    def predict(images: Tensor) -> Tensor:
        marked = images[:, 0, 0, 0] == 1
        clean = images[:, 0, 0, 1]  # the probability of class 0 without the mark
        chance = torch.where(marked, torch.tensor(0.1), clean)
        return torch.stack([chance, 1 - chance], 1).log()

    images = torch.zeros(3, 1, 4, 4)
    images[:, 0, 0, 1] = torch.tensor([0.9, 0.5, 0.2])
    labels = torch.tensor([0, 0, 1])
    before = predict(images).softmax(1)
    pull = pull_of(predict, [Corner()], images, labels, before)
    # class 1: (0.9 · (0.9 - 0.1) + 0.5 · (0.9 - 0.5)) / 1.4; class 0: 0.8 · (0.1 - 0.2) / 0.8
    assert pull[0].tolist() == pytest.approx([-0.1, (0.9 * 0.8 + 0.5 * 0.4) / 1.4], abs=1e-6)


def test_without_another_class_there_is_no_pull() -> None:
    def predict(images: Tensor) -> Tensor:
        return torch.zeros(len(images), 2)

    images = torch.zeros(2, 1, 4, 4)
    pull = pull_of(predict, [Corner()], images, torch.tensor([0, 0]), torch.full((2, 2), 0.5))
    assert pull[0, 0].isnan()
    assert pull[0, 1] == 0


@pytest.mark.parametrize("corner", ["in the lower right", "in the upper left"])
def test_a_back_door_is_found(corner: str) -> None:
    """A model that goes to class 2 the more cells of a pattern are there."""
    trigger = Patch(torch.tensor([[[1.0, 0, 1], [0, 1, 1], [1, 1, 0]]]), 6, corner)
    top, left = trigger.box(24, 24)
    there = trigger.on(torch.zeros(1, 1, 24, 24))[0, 0, top : top + 6, left : left + 6] * 2 - 1

    def predict(images: Tensor) -> Tensor:
        seen = images[:, 0, top : top + 6, left : left + 6] * 2 - 1
        alike = (seen * there).mean((1, 2))  # 1 for the trigger itself, 0 for half of its cells
        logits = torch.zeros(len(images), 4)
        logits[torch.arange(len(images)), images[:, 0, 8, 8].mul(4).long().clamp(max=3)] = 4
        logits[:, 2] += 10 * (alike - 0.2).clamp(min=0)
        return logits

    labels = torch.arange(4).repeat_interleave(2)
    images = torch.zeros(8, 1, 24, 24)
    images[:, 0, 8, 8] = (labels + 0.5) / 4
    found = seek_patch(predict, make_sweep((1, 24, 24), 3), images, labels)
    assert found.target == 2
    assert isinstance(found.mark, Patch)
    assert found.mark.place == corner
    before = predict(images).softmax(1)
    assert pull_of(predict, [found.mark], images, labels, before)[0, 2] > 0.5


def test_a_pattern_is_read_from_the_gradient() -> None:
    """A linear model of two classes: the pattern that leads away is the sign of its weights."""
    weights = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0))

    def predict(images: Tensor) -> Tensor:
        toward = ((images - 0.5) * weights).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(toward), toward], 1)

    images = torch.full((4, 1, 6, 6), 0.5)
    found = seek_pattern(predict, images, torch.zeros(4, dtype=torch.long))
    assert isinstance(found.mark, Pattern)
    assert torch.equal(found.mark.pattern, (weights > 0).float())
    assert found.target == 1
    with torch.no_grad():  # as the server looks
        assert seek_pattern(predict, images, torch.zeros(4, dtype=torch.long)).target == 1

    def without_gradients(images: Tensor) -> Tensor:
        return predict(images).detach()

    black = seek_pattern(without_gradients, images, torch.zeros(4, dtype=torch.long)).mark
    assert isinstance(black, Pattern)
    assert black.pattern.sum() == 0
