"""The measures in plain words, and numbers as a person reads them."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["GATE_MEASURES", "MEASURES", "Measure", "join", "shown"]

Unit = Literal["share", "points", "plain"]


@dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Attributes:
        name: Its key in the record.
        title: What it is called on the page.
        meaning: One sentence for somebody who never met it.
        unit: ``share`` of a whole, ``points`` of probability, or a ``plain`` number.
        suspect: Which end tells of a model that looks at the wrong place; None where neither does.
    """

    name: str
    title: str
    meaning: str
    unit: Unit = "share"
    suspect: Literal["high", "low"] | None = None


MEASURES = {
    each.name: each
    for each in (
        Measure(
            "mark_drop",
            "Hangs on the mark",
            "How many points of probability the right class loses when the mark is taken away.",
            "points",
            "high",
        ),
        Measure(
            "mark_mass",
            "Heat on the mark",
            "The share of the heat that lies on the mark, on images with it stamped in.",
            "share",
            "high",
        ),
        Measure(
            "object_mass",
            "Heat on the object",
            "The share of the heat that lies on the object itself; for digits, on the strokes.",
            "share",
            "low",
        ),
        Measure(
            "object_drop",
            "Hangs on the object",
            "How many points of probability the right class loses when the object is taken away.",
            "points",
            "low",
        ),
        Measure(
            "border_mass",
            "Heat along the border",
            "The share of the heat in a narrow frame along the image’s edge.",
            "share",
            "high",
        ),
        Measure(
            "region_drop",
            "Hangs on the hottest tenth",
            "How many points the right class loses when the hottest tenth of the image is removed: "
            "a check that the heat means something.",
            "points",
        ),
        Measure(
            "agreement",
            "Agreement with before",
            "How far a client’s maps before and after its own training overlap.",
        ),
        Measure(
            "entropy",
            "Spread of the heat",
            "0 is a single hot spot, 1 is heat spread evenly over the image.",
            "plain",
        ),
    )
}
"""Every measure that has words, the most telling first."""

GATE_MEASURES = {
    "harm": "loss that it adds to the merge",
    "help": "loss that it takes off the merge where it helps most",
    "pull": "pull of a patch that was sought",
    "pattern": "pull of a faint pattern that was sought",
    "light": "certainty that it adds under other light",
    "recolouring": "likeness of its images to some under other light",
    "contrast": "contrast of its images",
    "statistics": "unlikeness of its images to the others’",
    "confusion": "other classes taken for one",
    "object_mass": "heat on the object",
    "object_drop": "drop without the object",
    "region_drop": "drop without the hottest tenth",
    "border_mass": "heat along the border",
    "entropy": "spread of the heat",
    "gini": "unevenness of the heat",
    "agreement": "agreement with the received model’s maps",
    "rank_agreement": "ranks in agreement with the received model’s maps",
    "peer_agreement": "agreement with the others’ maps",
    "peer_rank_agreement": "ranks in agreement with the others’ maps",
    "degenerate": "heatmaps that say nothing",
    "loss": "loss on the server’s images",
    "doubt": "indecision on the server’s images",
    "accuracy": "accuracy on the server’s images",
    "length": "length of its step",
    "direction": "direction of its step",
    "distance": "distance of its step from the others’",
    "layers": "division of its step among layers",
    "own_object_mass": "heat on the object, by its own word",
    "own_border_mass": "heat along the border, by its own word",
    "own_entropy": "spread of the heat, by its own word",
    "own_agreement": "agreement with the received model’s maps, by its own word",
}
"""What the gate compares updates by; another package's measure is called by its name."""


def shown(value: float | None, unit: Unit = "share", *, bare: bool = False, digits: int = 1) -> str:
    """A number as the page writes it; the space before its unit does not break.

    Args:
        value: In [0, 1] for shares and points; None is a dash.
        unit: See :class:`Measure`.
        bare: Leave out the word for points, where the surroundings say it.
        digits: After the point, of shares and points.

    >>> shown(0.3244, "points", bare=True), shown(0.81, "plain"), shown(None)
    ('32.4', '0.810', '–')
    >>> shown(0.9916).split()
    ['99.2', '%']
    """
    if value is None:
        return "–"
    if unit == "plain":
        return f"{value:.3f}"
    number = f"{100 * value:.{digits}f}"
    if unit == "points":
        return number if bare else f"{number}\N{NO-BREAK SPACE}points"
    return f"{number}\N{NO-BREAK SPACE}%"


def join(words: list[str]) -> str:
    """Words as a sentence lists them.

    >>> join(["1"]), join(["1", "2"]), join(["1", "2", "3"])
    ('1', '1 and 2', '1, 2 and 3')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
