"""What a strategy's numbers may be, and how many updates its arithmetic needs."""

import math
from collections.abc import Mapping
from typing import Any

from fedgaze.errors import FedgazeError

__all__ = ["check_number", "lacking"]

_RATES = ("eta", "eta_l", "tau", "server_learning_rate", "client_learning_rate")
_DECAYS = ("beta_1", "beta_2", "server_momentum")


def check_number(name: str, value: Any, *, whole: bool, said: str) -> None:
    """Refuse a value that a strategy's argument cannot have.

    Args:
        name: The argument, in Flower's present words.
        value: What was given.
        whole: Whether only whole numbers make sense.
        said: The argument as the task says it.

    Raises:
        FedgazeError: It is no number, or lies outside of what the strategy's formula allows.
    """
    kind = "a whole number" if whole else "a number"
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if name.startswith("fraction"):
        fits, words = number and 0 <= value <= 1, "a part from 0 to 1"
    elif name in _RATES:
        fits, words = number and 0 < value < math.inf, f"{kind} above 0"
    elif name in _DECAYS:
        fits, words = number and 0 <= value < 1, f"{kind} of at least 0 and below 1"
    elif name == "beta":  # of FedTrimmedAvg: cut off at both ends
        fits, words = number and 0 <= value < 0.5, f"{kind} of at least 0 and below 0.5"
    elif name == "num_nodes_to_select":
        fits, words = number and value >= 1, f"{kind} of at least 1"
    else:
        fits, words = number and 0 <= value < math.inf, f"{kind} of at least 0"
    if not fits:
        raise FedgazeError(f"server.strategy.{said}={value}: {words} is allowed")


def lacking(name: str, arguments: Mapping[str, Any], updates: int) -> str:
    """What keeps a strategy from doing what it promises with so many updates.

    Krum and Multi-Krum need ``n >= 2f + 3`` (Blanchard et al. 2017, arXiv:1703.02757, Proposition
    4.2), Bulyan ``n >= 4f + 3`` (El Mhamdi et al. 2018, arXiv:1802.07927, section 4). Below that
    Flower's Krum scores by too few neighbours, and its Bulyan merges nothing. A trimmed mean cuts
    ``int(beta · n)`` values off at each end, which is none where updates are few.

    Args:
        name: The strategy.
        arguments: In Flower's present words.
        updates: How many there are in a round.

    Returns:
        Half a sentence, or nothing where they are enough.
    """
    bad = arguments.get("num_malicious_nodes", 0)
    factor = {"Krum": 2, "MultiKrum": 2, "Bulyan": 4}.get(name)
    if factor and updates < factor * bad + 3:
        return (
            f"{name} with num_malicious_nodes={bad} needs {factor * bad + 3} updates "
            f"({factor}·{bad} + 3), and a round has {updates}"
        )
    keep = arguments.get("num_nodes_to_select", 1)
    if name == "MultiKrum" and keep > updates - bad:
        return (
            f"num_nodes_to_select={keep} is more than the {updates - bad} that are honest among "
            f"{updates} updates of which num_malicious_nodes={bad} are not"
        )
    beta = arguments.get("beta", 0.2)
    if name == "FedTrimmedAvg" and beta and int(beta * updates) < 1:
        return f"beta={beta:g} cuts nobody off {updates} updates: it takes at least 1/{updates}"
    return ""
