"""Tables: ranks, ties, gaps, and who beats whom."""

import math

import numpy as np
import pytest

from fedgaze.measure import Column, Table, columns_of, find_metric

NAN = float("nan")


def column(name: str, better: str) -> Column:
    return Column(name, "faithfulness", better, "0 to 1", "none", "", "")  # type: ignore[arg-type]


def made() -> Table:
    values = {
        ("a", "up"): [0.9, 0.7, 0.8],
        ("b", "up"): [0.5, 0.6, NAN],
        ("c", "up"): [NAN, NAN, NAN],
        ("a", "down"): [0.4, 0.4, 0.4],
        ("b", "down"): [0.4, 0.5, 0.3],
        ("c", "down"): [0.1, 0.2, 0.3],
    }
    return Table(["a", "b", "c"], [column("up", "higher"), column("down", "lower")], values)


def test_ranks_follow_the_good_end_and_ties_share_one() -> None:
    cells = made().cells
    assert [cells[each, "up"].rank for each in "abc"] == [1, 2, None]
    assert [cells[each, "down"].rank for each in "abc"] == [2, 2, 1]
    assert [cells[each, "down"].best for each in "abc"] == [False, False, True]
    assert cells["b", "up"].summary.n == 2
    assert cells["b", "up"].summary.missing == 1
    assert cells["b", "up"].summary.mean == pytest.approx(0.55)


def test_where_all_are_alike_none_is_best() -> None:
    values = {("a", "up"): [0.5, 0.5], ("b", "up"): [0.5, 0.5 + 1e-12]}
    table = Table(["a", "b"], [column("up", "higher")], values)
    assert [table.cells[each, "up"].rank for each in "ab"] == [1, 1]
    assert not any(table.cells[each, "up"].best for each in "ab")


def test_mean_ranks_are_over_the_metrics_that_have_a_value() -> None:
    table = made()
    assert table.mean_rank("a") == 1.5
    assert table.mean_rank("c") == 1
    assert math.isnan(table.mean_rank("c", "complexity"))


def test_a_lead_is_on_the_same_pictures_and_positive_is_better() -> None:
    table = made()
    up, down = table.columns
    lead = table.lead("a", "b", up)
    assert lead.mean == pytest.approx((0.4 + 0.1) / 2)
    assert lead.n == 2
    assert table.lead("c", "b", down).mean == pytest.approx(0.2)
    assert math.isnan(table.lead("a", "c", up).mean)


def test_a_part_of_the_images() -> None:
    part = made().only(np.array([True, False, True]))
    assert part.cells["a", "up"].summary.mean == pytest.approx(0.85)
    assert part.cells["b", "up"].summary.n == 1


def test_columns_say_what_a_metric_says_of_itself() -> None:
    first, *alike = columns_of([find_metric("deletion")], "pgd")
    assert (first.name, first.better, first.span) == ("deletion", "lower", "0 to 1")
    assert first.meaning.startswith("The area under the probability")
    assert [each.name for each in alike] == ["pgd_ssim", "pgd_spearman", "pgd_pearson", "pgd_top_k"]
