"""How far updates stand apart, worked by hand."""

import math

import pytest
import torch

from fedgaze.federate.gate.peers import others_median
from fedgaze.federate.gate.standing import LIMIT, spread_of, standing, worst

NAN = math.nan
WIDE = 1 + (7 / 3) ** 1.75
"""By how much the spread of three others is widened."""


def test_the_median_of_the_others() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 100.0])
    assert others_median(values).tolist() == [4.0, 4.0, 2.0, 2.0]


def test_the_median_leaves_out_what_is_not_known() -> None:
    values = torch.tensor([[1.0, NAN], [3.0, NAN], [NAN, 7.0]])
    assert others_median(values)[:, 0].tolist() == [3.0, 1.0, 2.0]
    assert others_median(values)[:2, 1].tolist() == [7.0, 7.0]
    assert others_median(values)[2, 1].isnan()


def test_a_single_update_has_no_others() -> None:
    assert others_median(torch.tensor([1.0])).isnan().all()
    assert standing(torch.tensor([1.0]), 0.1).isnan().all()


def test_an_outlier_is_held_against_the_others_alone() -> None:
    # Without the last: 1, 2, 4; median 2, distances 1, 0, 2, of which the median is 1.
    found = standing(torch.tensor([1.0, 2.0, 4.0, 10.0]), floor=0.1)
    assert found[3].item() == pytest.approx((10 - 2) / (WIDE * 1.4826), rel=1e-6)


def test_the_spread_is_no_less_than_the_floor_nor_than_it_usually_is() -> None:
    alike = torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert standing(alike, floor=0.5)[3].item() == pytest.approx(2.0 / WIDE)
    assert standing(alike, floor=0.1, spread=4.0)[3].item() == pytest.approx(0.25 / WIDE)


def test_a_class_in_which_all_are_alike_has_the_spread_of_the_others() -> None:
    """Three classes with spreads of 1, 1 and 0 MADs: the last takes their median."""
    rows = [[1.0, 1.0, 5.0], [2.0, 2.0, 5.0], [4.0, 4.0, 5.0], [2.0, 2.0, 6.0]]
    found = standing(torch.tensor(rows), floor=0.01)
    assert found[3, 2].item() == pytest.approx(1 / (WIDE * 1.4826), rel=1e-6)


def test_the_more_others_the_narrower() -> None:
    few, many = torch.tensor([0.0, 1, 2, 9]), torch.tensor([0.0, 1, 2, 0, 1, 2, 9])
    ratio = standing(many, 0.1)[-1] / standing(few, 0.1)[-1]
    assert ratio.item() == pytest.approx(WIDE / (1 + (7 / 6) ** 1.75), rel=1e-6)


def test_with_fewer_than_two_others_nothing_is_compared() -> None:
    assert standing(torch.tensor([1.0, 5.0]), 0.1).isnan().all()
    assert standing(torch.tensor([1.0, 5.0, NAN]), 0.1).isnan().all()


def test_the_spread_of_a_round() -> None:
    assert spread_of(torch.tensor([1.0, 2.0, 4.0])).item() == pytest.approx(1.4826)
    assert spread_of(torch.tensor([1.0, 2.0, NAN])).isnan()


def test_the_worst_two_classes_count() -> None:
    apart = torch.tensor([[1.0, 5.0, -8.0, NAN], [NAN, NAN, NAN, NAN]])
    assert worst(apart, "high").tolist() == [3.0, 0.0]
    assert worst(apart, "low").tolist() == [4.0, 0.0]
    assert worst(apart, "both").tolist() == [6.5, 0.0]


def test_very_far_is_as_far_as_the_limit() -> None:
    assert worst(torch.tensor([1e9, -3.0]), "high").tolist() == [LIMIT, 0.0]
