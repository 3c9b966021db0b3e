"""What a table of defences says: each column, its meaning and how its numbers are written."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["COLUMNS", "Column", "Shown", "shown"]


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: Of the number, in ``summary.json``.
        title: Its heading.
        meaning: In a sentence.
        write: A number as text.
    """

    name: str
    title: str
    meaning: str
    write: Callable[[float], str]


@dataclass(frozen=True)
class Shown:
    """A cell.

    Attributes:
        mean: As text; a dash where there is none.
        interval: As text; empty where there is none.
    """

    mean: str
    interval: str


def _area(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _count(value: float) -> str:
    return f"{value:.1f}"


COLUMNS = (
    Column(
        "auc",
        "ROC-AUC, same updates",
        "How often an attacker’s update is more suspect than an honest client’s, of any rounds; "
        "0.5 is chance. On the updates of the run without a defence, so that all judge the same.",
        _area,
    ),
    Column(
        "tpr_1",
        "found at 1 %",
        "The attackers’ updates above the threshold that 1 % of the honest ones, of all seeds "
        "together, lie above; on the same updates.",
        _percent,
    ),
    Column("tpr_5", "found at 5 %", "The same at 5 %.", _percent),
    Column(
        "benign_rejected_honest",
        "benign left out, nobody attacks",
        "The updates that are left out where all clients are honest.",
        _percent,
    ),
    Column(
        "benign_rejected",
        "benign left out",
        "The updates of honest clients that are left out where others attack.",
        _percent,
    ),
    Column(
        "attack_success",
        "attack success",
        "The held-out images, with the trigger where there is one, that the final model takes for "
        "what the attackers want.",
        _percent,
    ),
    Column("accuracy", "accuracy", "Of the final model on clean held-out images.", _percent),
    Column(
        "accuracy_lost",
        "accuracy lost, points",
        "Against the run of the same seed in which nobody attacks and nothing defends.",
        _points,
    ),
    Column(
        "cost",
        "cost",
        "CPU time as a part of what the rounds take without any defence; of the gate, with the "
        "server’s look at each update.",
        _percent,
    ),
    Column("detected", "attackers left out", "The attackers that are left out at all.", _percent),
    Column(
        "rounds_to_detection",
        "after rounds",
        "In which round of their attack these are left out first, in the mean.",
        _count,
    ),
    Column(
        "own_auc",
        "ROC-AUC, own runs",
        "As above, in the runs in which this defence is at work, where what it let through before "
        "has changed the model.",
        _area,
    ),
    Column("own_tpr_1", "found at 1 %, own runs", "As above, in its own runs.", _percent),
    Column("own_tpr_5", "found at 5 %, own runs", "As above, in its own runs.", _percent),
)


def shown(numbers: Mapping[str, Mapping[str, Any]], column: Column) -> Shown:
    """A cell of a row.

    Args:
        numbers: The row's, by name: ``mean``, ``low`` and ``high``.
        column: Which.
    """
    found = numbers.get(column.name)
    if found is None or not math.isfinite(found["mean"]):
        return Shown("–", "")
    sure = found["low"] is not None and found["low"] < found["high"]
    low, high = (column.write(found[end]) for end in ("low", "high")) if sure else ("", "")
    ends = f"{low.removesuffix(' %')} … {high}" if sure else ""
    return Shown(column.write(found["mean"]), ends)
