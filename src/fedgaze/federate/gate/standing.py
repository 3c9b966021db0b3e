"""How far an update stands from its peers."""

from typing import Literal

import torch
from torch import Tensor

from fedgaze.federate.gate.peers import others, others_median

__all__ = ["LIMIT", "Against", "Suspect", "spread_of", "standing", "worst"]

Suspect = Literal["high", "low", "both"]
Against = Literal["others", "zero"]
LIMIT = 10.0
"""Further away than so many spreads is as far as that."""
FEW, POWER = 7.0, 1.75
"""How much wider a spread of n others is taken to be: ``1 + (7 / n)^1.75`` times."""
WORST = 2
"""Of how many classes the mean is taken, the worst ones."""
_NORMAL = 1.4826  # a normal distribution's standard deviation in MADs


def standing(
    values: Tensor, floor: float, spread: Tensor | float = 0.0, against: Against = "others"
) -> Tensor:
    """How many spreads each value is above the median of the others.

    ``(v_i - m_i) / (s_i (1 + (7 / n)^1.75))``, with ``m_i`` the median of the n others and ``s_i``
    1.4826 times the median of their distances from it: an attacker has no part in what it is held
    against, and a minority of them little. The fewer the others, the less their spread is known,
    and the wider it is taken to be. Of values by class, a spread is at least the median of all
    classes'.

    Args:
        values: ``(K,)`` or ``(K, classes)``; NaN where there is none.
        floor: The least spread.
        spread: What the spread was in earlier rounds; the larger one counts.
        against: ``zero`` takes 0 for ``m_i``, but for the spread.

    Returns:
        As values; NaN where there is none, or fewer than two others to compare with.
    """
    count = len(values)
    if count < 3:
        return torch.full_like(values, torch.nan)
    middle = others_median(values)
    distances = _NORMAL * torch.stack(
        [(values[others(count, k)] - middle[k]).abs().nanquantile(0.5, dim=0) for k in range(count)]
    )
    scale = torch.maximum(distances, torch.as_tensor(spread, dtype=values.dtype)).nan_to_num(0.0)
    if values.dim() == 2:
        scale = torch.maximum(scale, distances.nanmedian(1, keepdim=True).values.nan_to_num(0.0))
    known = ~values.isnan()
    rest = known.sum(0) - known.int()
    scale = scale.clamp(min=floor) * (1 + (FEW / rest.clamp(min=1).to(values)) ** POWER)
    apart = values if against == "zero" else values - middle
    return torch.where(rest >= 2, apart / scale, torch.nan)


def spread_of(values: Tensor) -> Tensor:
    """The spread of a round's values, ``(*)``: 1.4826 MAD of all; NaN where fewer than three are.

    Args:
        values: ``(K, *)``.
    """
    middle = values.nanquantile(0.5, dim=0)
    found = _NORMAL * (values - middle).abs().nanquantile(0.5, dim=0)
    return torch.where((~values.isnan()).sum(0) >= 3, found, torch.nan)


def worst(standings: Tensor, suspect: Suspect, *, signed: bool = False) -> Tensor:
    """One number an update: how suspicious it stands, in spreads, 0 to ``LIMIT``.

    Args:
        standings: ``(K,)``, or ``(K, classes)``, of which the worst two are averaged: a back door
            leads to one class, and one class alone may be chance.
        suspect: Which end is the suspicious one.
        signed: Whether the other end counts, too: to ``-LIMIT``.

    Returns:
        ``(K,)``; 0 where nothing is known.
    """
    oriented = {"high": standings, "low": -standings, "both": standings.abs()}[suspect]
    beyond = oriented.nan_to_num(0.0).clamp(-LIMIT if signed else 0, LIMIT)
    if beyond.dim() == 1:
        return beyond
    return beyond.topk(min(WORST, beyond.shape[1]), dim=1).values.mean(1)
