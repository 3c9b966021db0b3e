"""A table of methods and metrics: means with intervals, ranks, and who beats whom."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgaze.measure.agreement import pearson, spearman, ssim, top_k_overlap
from fedgaze.measure.registry import Axis, Better, Metric, first_line
from fedgaze.measure.statistics import Summary, summarise

__all__ = ["Cell", "Column", "Table", "columns_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """What is measured.

    Attributes:
        name: Of the metric.
        axis: What it is about.
        better: Which end is good.
        span: Its range, for people.
        cost: What it costs, in words.
        paper: Where it comes from.
        meaning: What it says, in a sentence.
    """

    name: str
    axis: Axis
    better: Better
    span: str
    cost: str
    paper: str
    meaning: str


def columns_of(metrics: Iterable[Metric], change: str | None = None) -> list[Column]:
    """The columns of metrics and, where images are changed, of the agreement of heatmaps.

    Args:
        metrics: In their order.
        change: The name of an attack or a corruption.
    """
    found = [
        Column(each.name, each.axis, each.better, each.span, each.cost, each.paper, each.meaning)
        for each in metrics
    ]
    if change is not None:
        alike = {
            "ssim": (ssim, "-1 to 1", "Wang et al., TIP 2004"),
            "spearman": (spearman, "-1 to 1", "Spearman's rank correlation"),
            "pearson": (pearson, "-1 to 1", "Pearson's correlation"),
            "top_k": (top_k_overlap, "0 to 1", "Ghorbani et al., AAAI 2019"),
        }
        for name, (compute, span, paper) in alike.items():
            meaning = f"Before and after {change}: {first_line(compute)}"
            found.append(
                Column(
                    f"{change}_{name}", "robustness", "higher", span, "1 explanation", paper,
                    meaning,
                )
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class Cell:
    """What a metric says of a method, over all images.

    Attributes:
        summary: The mean.
        rank: Among the methods, 1 for the best; methods alike share one. None without a mean.
        best: Whether none is better, and some are worse.
    """

    summary: Summary
    rank: int | None
    best: bool


class Table:
    """Methods by metrics.

    Args:
        makers: Names of the methods and baselines, in their order.
        columns: What was measured.
        values: By maker and column, a number an image, NaN where there is none; images in one
            order everywhere.
        seed: Of the intervals' resampling.
    """

    def __init__(
        self,
        makers: Sequence[str],
        columns: Sequence[Column],
        values: Mapping[tuple[str, str], Sequence[float]],
        *,
        seed: int = 0,
    ) -> None:
        self.makers, self.columns = list(makers), list(columns)
        self._values = {key: np.asarray(each, dtype=np.float64) for key, each in values.items()}
        self._seed = seed
        self.cells: dict[tuple[str, str], Cell] = {}
        for column in self.columns:
            self._fill(column)

    def _fill(self, column: Column) -> None:
        from scipy.stats import rankdata

        keys = [(maker, column.name) for maker in self.makers]
        sums = [summarise(self._values[key].tolist(), seed=self._seed) for key in keys]
        sign = -1 if column.better == "higher" else 1
        # What differs less is alike: the last digits are the machine's.
        means = np.array([round(sign * each.mean, 5) for each in sums])
        known = ~np.isnan(means)
        ranks = np.full(len(means), np.nan)
        ranks[known] = rankdata(means[known], method="min")
        several = len(set(means[known].tolist())) > 1
        for key, total, rank in zip(keys, sums, ranks.tolist(), strict=True):
            place = None if np.isnan(rank) else int(rank)
            self.cells[key] = Cell(total, place, several and place == 1)

    def values(self, maker: str, column: str) -> Array:
        """The numbers ``(images,)``, NaN where there is none."""
        return self._values[maker, column]

    def of_axis(self, axis: str) -> list[Column]:
        """The columns about something."""
        return [each for each in self.columns if each.axis == axis]

    @property
    def axes(self) -> list[str]:
        """What the columns are about, in their order."""
        return list(dict.fromkeys(each.axis for each in self.columns))

    def mean_rank(self, maker: str, axis: str | None = None) -> float:
        """The mean of a maker's ranks over the columns in which it has one; NaN if in none.

        Args:
            maker: Whose.
            axis: Only of these columns.
        """
        columns = self.columns if axis is None else self.of_axis(axis)
        ranks = [self.cells[maker, each.name].rank for each in columns]
        known = [each for each in ranks if each is not None]
        return float(np.mean(known)) if known else float("nan")

    def lead(self, first: str, second: str, column: Column) -> Summary:
        """By how much a maker is better than another on the same images, on average.

        Positive is better, whichever end of the metric is good.
        """
        difference = self._values[first, column.name] - self._values[second, column.name]
        if column.better == "lower":
            difference = -difference
        return summarise(difference.tolist(), seed=self._seed)

    def only(self, chosen: NDArray[np.bool_]) -> "Table":
        """The table of some images.

        Args:
            chosen: bool ``(images,)``.
        """
        values: dict[tuple[str, str], Any] = {
            key: each[chosen] for key, each in self._values.items()
        }
        return Table(self.makers, self.columns, values, seed=self._seed)
