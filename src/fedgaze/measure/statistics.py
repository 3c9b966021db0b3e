"""Means that say over how many, and how sure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Summary", "summarise"]

RESAMPLES = 2000


class Summary(NamedTuple):
    """A mean over images.

    Attributes:
        mean: Over the images that have a value; NaN if none has.
        low: Lower end of the 95 % interval; NaN for less than two values.
        high: Its upper end.
        n: How many images have a value.
        missing: How many have none.
    """

    mean: float
    low: float
    high: float
    n: int
    missing: int


def summarise(values: Sequence[float], *, seed: int = 0) -> Summary:
    """The mean with its 95 % bootstrap interval (percentiles of the means of 2,000 resamples).

    Args:
        values: One an image; NaN where there is none.
        seed: Of the resampling.
    """
    from scipy.stats import bootstrap

    found = np.asarray(values, dtype=np.float64)
    known = found[~np.isnan(found)]
    missing = len(found) - len(known)
    if not len(known):
        return Summary(np.nan, np.nan, np.nan, 0, missing)
    mean = float(known.mean())
    if len(known) < 2:
        return Summary(mean, np.nan, np.nan, 1, missing)
    if known.min() == known.max():
        return Summary(mean, mean, mean, len(known), missing)
    interval = bootstrap(
        (known,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=256,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Summary(mean, float(interval.low), float(interval.high), len(known), missing)
