"""Localisation by hand: maps and masks so small that the answers can be counted."""

import pytest
import torch
from torch import Tensor

from fedgaze import measure

HEAT = torch.tensor(
    [
        [
            [0.0, 0.1, 0.2, 0.0],
            [0.3, 1.0, 0.8, 0.0],
            [0.0, 0.6, 0.4, 0.0],
            [0.0, 0.0, 0.0, 0.5],
        ]
    ]
)


def mask(*rows: str) -> Tensor:
    return torch.tensor([[[each == "#" for each in row] for row in rows]])


OBJECT = mask("....", ".##.", ".##.", "....")
BESIDE = mask("##..", "#...", "....", "....")
NOTHING = mask("....", "....", "....", "....")


def test_the_strongest_pixel() -> None:
    assert measure.pointing_game(HEAT, OBJECT).item() == 1
    assert measure.pointing_game(HEAT, BESIDE).item() == 0
    assert measure.pointing_game(HEAT, BESIDE, tolerance=1).item() == 1
    # Two pixels are the strongest, one of them on the object.
    two = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert measure.pointing_game(two, mask("#.", "..")).item() == 0.5


def test_the_strongest_pixels() -> None:
    # 1.0, 0.8, 0.6 | 0.5, 0.4, 0.3
    assert measure.top_k_intersection(HEAT, OBJECT, share=3 / 16).item() == 1
    assert measure.top_k_intersection(HEAT, OBJECT, share=5 / 16).item() == pytest.approx(4 / 5)
    assert measure.relevance_rank_accuracy(HEAT, OBJECT).item() == 3 / 4
    assert measure.relevance_rank_accuracy(HEAT, BESIDE).item() == 0


def test_mass() -> None:
    assert measure.mass_on(HEAT, OBJECT).item() == pytest.approx(2.8 / 3.9)
    signed = HEAT - 0.35
    positive = (0.65 + 0.45 + 0.25 + 0.05) / (0.65 + 0.45 + 0.25 + 0.05 + 0.15)
    assert measure.attribution_localisation(signed, OBJECT).item() == pytest.approx(positive)
    weighted = measure.attribution_localisation(signed, OBJECT, weighted=True)
    assert weighted.item() == pytest.approx(positive * 16 / 4)
    even = torch.linspace(0.999, 1.001, 16).view(1, 4, 4)
    for each in (OBJECT, BESIDE):
        found = measure.attribution_localisation(even, each, weighted=True)
        assert found.item() == pytest.approx(1, abs=0.01)


def test_overlap_of_regions() -> None:
    # At half the maximum: 1.0, 0.8, 0.6 and the 0.5 in the corner.
    assert measure.iou(HEAT, OBJECT).item() == pytest.approx(3 / 5)
    assert measure.iou(HEAT, OBJECT, threshold=0.4).item() == pytest.approx(4 / 5)
    assert measure.iou(HEAT, OBJECT, threshold=1.0).item() == pytest.approx(1 / 4)


def test_overlap_of_boxes() -> None:
    boxes = torch.tensor([[[1.0, 1.0, 3.0, 3.0], [float("nan")] * 4]])
    # At half: the largest part is 1.0, 0.8, 0.6, whose box is the object's.
    assert measure.box_iou(HEAT, boxes, thresholds=(0.5,)).item() == 1
    # At a fifth 0.3 and 0.2 belong to it, too: columns 0 to 2, rows 0 to 2.
    assert measure.box_iou(HEAT, boxes, thresholds=(0.2,)).item() == pytest.approx(4 / 9)
    assert measure.box_iou(HEAT, boxes, thresholds=(0.2, 0.5)).item() == 1
    corner = torch.tensor([[[3.0, 3.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]]])
    assert measure.box_iou(HEAT, corner, thresholds=(0.5,)).item() == pytest.approx(4 / 16)
    assert measure.box_iou(HEAT, torch.full((1, 2, 4), torch.nan)).isnan().item()


WITH_MASKS = [
    each
    for each in measure.list_metrics()
    if each.axis == "localisation" and each.name != "box_iou"
]


@pytest.mark.parametrize("named", WITH_MASKS, ids=lambda each: each.name)
def test_without_an_object_or_an_order_there_is_no_value(named: measure.Metric) -> None:
    metric = named.compute
    maps = torch.cat([HEAT, HEAT, torch.zeros_like(HEAT)])
    masks = torch.cat([OBJECT, NOTHING, OBJECT])
    found = metric(maps, masks)
    assert found.isnan().tolist() == [False, True, True]
    torch.testing.assert_close(found[:1], metric(HEAT, OBJECT))
