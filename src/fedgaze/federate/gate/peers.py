"""What each update is held against: all but itself."""

import torch
from torch import Tensor

__all__ = ["others", "others_median"]


def others_median(values: Tensor) -> Tensor:
    """The median of the others, for each update.

    Args:
        values: ``(K, *)``; NaN where there is none.

    Returns:
        As values; NaN where the others have none. With a single update all is NaN.
    """
    count = len(values)
    if count < 2:
        return torch.full_like(values, torch.nan)
    return torch.stack([values[others(count, k)].nanquantile(0.5, dim=0) for k in range(count)])


def others(count: int, one: int) -> Tensor:
    """The indices of all but one."""
    index = torch.arange(count)
    return index[index != one]
