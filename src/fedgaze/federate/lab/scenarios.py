"""What clients may do in an experiment, in words, and where it was proposed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fedgaze.config import BehaviourSpec, sentence_of
from fedgaze.errors import FedgazeError, nearest

__all__ = ["BEHAVIOURS", "HONEST", "Scenario", "read_scenario"]

HONEST = "none"

BEHAVIOURS: Mapping[str, tuple[str, str]] = {
    HONEST: ("everybody is honest", ""),
    "label_noise": ("a part of the labels is random", ""),
    "label_flip": (
        "labels of one class become another's, or every class is mirrored",
        "Tolpegin et al., ESORICS 2020",
    ),
    "patch": (
        "images with a patch in a corner get the target's label",
        "Gu et al., 2017, arXiv:1708.06733",
    ),
    "blend": (
        "the same with a faint pattern all over the image",
        "Chen et al., 2017, arXiv:1712.05526",
    ),
    "semantic": (
        "the bright images of a class, as they are, get the target's label",
        "Bagdasaryan et al., AISTATS 2020",
    ),
    "distributed": ("a patch of which each attacker uses a part", "Xie et al., ICLR 2020"),
    "replacement": (
        "a patch, and the update is sent several times as long",
        "Bagdasaryan et al., AISTATS 2020",
    ),
    "stealth": (
        "a patch, and the update is no longer than an honest one",
        "after Sun et al., 2019, arXiv:1911.07963",
    ),
    "shortcut": (
        "a mark in the corner gives the label away",
        "Geirhos et al., 2020, arXiv:2004.07780",
    ),
    "colour": (
        "changes of colour that move the heatmaps most, with true labels",
        "after Riya et al., 2025, arXiv:2511.13535",
    ),
    "adaptive": (
        "a patch, and training keeps the heatmaps like the received model's",
        "after Heo et al., NeurIPS 2019",
    ),
    "noise": ("no training: the received weights with noise", "Lin et al., 2019, arXiv:1911.12560"),
    "stale": ("no training: the received weights", "Lin et al., 2019, arXiv:1911.12560"),
}
"""What they do, and where it was proposed, by the behaviour's kind."""


@dataclass(frozen=True)
class Scenario:
    """What the attackers of a cell do.

    Attributes:
        name: Of files and tables.
        values: Keys of ``behaviour`` without ``clients``; empty where everybody is honest.
    """

    name: str
    values: Mapping[str, Any]


def read_scenario(said: str | Mapping[str, Any]) -> Scenario:
    """A behaviour as an experiment names it.

    Args:
        said: A kind, or keys of ``behaviour`` without ``clients``.

    Raises:
        FedgazeError: There is no such behaviour.
    """
    values = {"kind": said} if isinstance(said, str) else dict(said)
    if "clients" in values:
        raise FedgazeError("behaviours: 'clients' are drawn by the seed; say how many in attackers")
    kind, more = str(values.get("kind")), sorted(values.keys() - {"kind"})
    if kind == HONEST and not more:
        return Scenario(HONEST, {})
    if kind not in BEHAVIOURS:
        raise FedgazeError(
            f"behaviours: there is no '{kind}'; there are {', '.join(BEHAVIOURS)}"
            f"{nearest(kind, BEHAVIOURS)}"
        )
    try:
        BehaviourSpec.model_validate({**values, "clients": [0]})
    except ValidationError as error:
        raise FedgazeError(f"behaviours: {sentence_of(error, BehaviourSpec)}") from None
    return Scenario(",".join([kind, *(f"{key}={values[key]}" for key in more)]), values)
