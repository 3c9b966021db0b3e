"""Pictures side by side: how they are laid out."""

import numpy as np
import pytest
from PIL import Image

from fedgaze.report.tiles import Tile, side_by_side


@pytest.mark.parametrize(
    ("count", "columns", "rows", "longest"),
    [(1, 6, 1, 1), (5, 6, 1, 5), (7, 6, 2, 4), (13, 6, 3, 5), (8, 4, 2, 4)],
)
def test_rows_are_of_about_the_same_length(
    count: int, columns: int, rows: int, longest: int
) -> None:
    tile = Tile(Image.new("RGB", (20, 20), "red"), "name")
    sheet = np.asarray(side_by_side([tile] * count, columns))
    red = (sheet == (255, 0, 0)).all(2)
    assert starts(red.any(1)) == rows
    assert starts(red.any(0)) == longest
    assert red.sum() == count * red.any(1).sum() // rows * (red.any(0).sum() // longest)


def starts(line: np.ndarray) -> int:
    """How many runs of true values there are."""
    return int(np.diff(line.astype(int), prepend=0).clip(min=0).sum())
