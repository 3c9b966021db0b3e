"""Which pixels a trigger changes, and to what."""

import pytest
import torch
from torch import Tensor

from fedgaze.federate.behaviour.triggers import Trigger, bars, blend, patch


def whereabouts(changed: Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is true in ``(H, W)``, all inclusive."""
    rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize(
    ("shape", "cell"),
    [
        ((1, 24, 24), 2),
        ((1, 28, 28), 2),
        ((3, 32, 32), 2),
        ((1, 8, 12), 1),
        ((3, 224, 224), 15),
        ((1, 6, 6), 1),
    ],
)
def test_a_patch_is_nine_cells_in_a_corner(shape: tuple[int, int, int], cell: int) -> None:
    _, height, width = shape
    side = 3 * cell
    corners, patterns = set(), set()
    for seed in range(60):
        trigger = patch(shape, seed)
        grey = torch.full((2, *shape), 0.5)
        shown = trigger.on(grey)
        assert (grey == 0.5).all()  # the given images are left alone
        changed = (shown != 0.5).all(1)
        assert torch.equal(changed, (shown != 0.5).any(1))
        assert int(changed[0].sum()) == side * side
        top, bottom, left, right = whereabouts(changed[1])
        assert top in (1, height - 1 - side)
        assert left in (1, width - 1 - side)
        assert (bottom - top + 1, right - left + 1) == (side, side)
        corners.add((top > 1, left > 1))
        inside = shown[1, :, top : bottom + 1, left : right + 1]
        cells = inside[:, ::cell, ::cell]
        assert torch.equal(cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2), inside)
        assert set(cells.unique().tolist()) == {0.0, 1.0}  # never all alike
        patterns.add(tuple(cells.flatten().tolist()))
        if shape[0] == 3:  # a saturated colour has a channel at 0 and one at 1
            assert (cells.amax(0) == 1).all()
            assert (cells.amin(0) == 0).all()
    if height - 2 - side > 1:
        assert len(corners) == 4
    assert len(patterns) > 45


def same(one: Trigger, other: Trigger) -> bool:
    return torch.equal(one.pattern, other.pattern) and torch.equal(one.opacity, other.opacity)


def test_a_seed_draws_one_trigger() -> None:
    shape = (3, 24, 24)
    assert same(patch(shape, 7), patch(shape, 7))
    assert not same(patch(shape, 7), patch(shape, 8))
    assert same(blend(shape, 0.2, 7), blend(shape, 0.2, 7))
    assert not same(blend(shape, 0.2, 7), blend(shape, 0.2, 8))
    assert all(map(same, bars(shape, 7), bars(shape, 7)))


def test_a_blend_covers_each_pixel_by_its_opacity() -> None:
    shape = (3, 10, 12)
    black, white = torch.zeros(2, *shape), torch.ones(2, *shape)
    trigger = blend(shape, 0.2, 3)
    pattern = trigger.on(black)[0] / 0.2
    assert pattern.min() >= 0
    assert pattern.max() <= 1 + 1e-6
    assert pattern.std() > 0.25  # as uniform numbers have it, 0.289
    torch.testing.assert_close(trigger.on(white)[1], 0.8 + 0.2 * pattern)
    assert torch.equal(blend(shape, 1.0, 3).on(black)[0], blend(shape, 1.0, 3).on(white)[0])


@pytest.mark.parametrize(("shape", "cell"), [((1, 24, 24), 2), ((3, 32, 32), 2), ((1, 8, 9), 1)])
def test_four_bars_make_one_trigger(shape: tuple[int, int, int], cell: int) -> None:
    _, height, width = shape
    for seed in range(20):
        parts = bars(shape, seed)
        grey = torch.full((1, *shape), 0.5)
        shown = [part.on(grey) for part in parts]
        changed = [(each != 0.5).any(1)[0] for each in shown]
        assert len(parts) == 4
        for each in changed:  # two cells in a row
            top, bottom, left, right = whereabouts(each)
            assert (bottom - top + 1, right - left + 1) == (cell, 2 * cell)
            assert int(each.sum()) == 2 * cell * cell
        together = torch.stack(changed).int().sum(0)
        assert int(together.max()) == 1  # no two of them meet
        top, bottom, left, right = whereabouts(together > 0)
        assert (bottom - top + 1, right - left + 1) == (3 * cell, 5 * cell)
        assert top in (1, height - 1 - 3 * cell)
        assert left in (1, width - 1 - 5 * cell)
        whole = grey
        for part in parts:
            whole = part.on(whole)
        for each, own in zip(changed, shown, strict=True):
            assert torch.equal(whole[..., each], own[..., each])
        assert torch.equal((whole != 0.5).any(1)[0], together > 0)
