"""What an evaluation says of boxes and groups, worked by hand."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from fedgaze.data import Box
from fedgaze.measure import columns_of, find_metric
from fedgaze.report.evaluation.boxes import Boxes, masks, stacked
from fedgaze.report.evaluation.findings import judged
from fedgaze.report.evaluation.record import EvaluationRecord

PHOTO = Path("in/a.jpg")


def test_boxes_are_seen_in_the_pixels_of_the_part_that_the_model_sees() -> None:
    held = [
        Box("cat", 50, 20, 90, 60),
        # Left of what is seen, and half left of it.
        Box("cat", 0, 0, 19, 99),
        Box("cat", 10, 50, 30, 70),
        Box("dog", 50, 20, 90, 60),
    ]
    boxes = Boxes({PHOTO: held}, {"cat": (3,), "dog": (5,)})
    # Of a picture of 140 × 100 the middle 100 × 100, as 50 × 50.
    found = boxes.seen(PHOTO, 3, (20, 0, 120, 100), (50, 50))
    assert found == [[15, 10, 35, 30], [0, 25, 5, 35]]
    assert boxes.seen(PHOTO, 4, (20, 0, 120, 100), (50, 50)) == []
    assert boxes.seen(Path("in/b.jpg"), 3, (20, 0, 120, 100), (50, 50)) == []
    mask = masks(stacked([found, []]), (50, 50))
    assert mask.sum((1, 2)).tolist() == [20 * 20 + 5 * 10, 0]
    assert mask[0, 10:30, 15:35].all()
    assert mask[0, 25:35, 0:5].all()


def test_the_likeliest_class_of_a_picture_s_boxes() -> None:
    boxes = Boxes({PHOTO: [Box("cat", 0, 0, 1, 1)]}, {"cat": (1, 2)})
    assert boxes.likeliest(PHOTO, torch.tensor([0.7, 0.1, 0.2])) == 2
    assert boxes.likeliest(Path("in/b.jpg"), torch.tensor([0.7, 0.1, 0.2])) is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        # Means differ, intervals meet.
        ([0.2, 0.9, 0.6], "No metric differs between the groups"),
        ([0.95, 0.96, 0.97], "gini of gradcam differs between groups: 0.500 in a (n = 3), 0.960"),
    ],
)
def test_groups_differ_where_their_intervals_do_not_meet(
    tmp_path: Path, other: list[float], says: str
) -> None:
    asked = {
        "makers": [{"name": "gradcam", "baseline": False}],
        "columns": [asdict(each) for each in columns_of([find_metric("gini")])],
        "change": None,
        "labels of no class": [],
        "seed": 0,
    }
    record = EvaluationRecord(tmp_path / "out", asked)
    record.begin()
    record.add(
        {"file": f"{group}{value}", "group": group, "values": {"gradcam": {"gini": value}},
         "reasons": {}}
        for group, values in {"a": [0.1, 0.9, 0.5], "b": other}.items()
        for value in values
    )  # fmt: skip
    notes = judged(record, record.table()).notes
    assert any(each.startswith(says) for each in notes), notes
    assert sum("group" in each for each in notes) == 1
