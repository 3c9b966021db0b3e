"""Channels that are judged one by one: which, and the map of their weights."""

import torch
from torch import Tensor

from fedgaze.xai.methods.cam import wide

__all__ = ["first_of", "scattered", "weighted_by"]


def first_of(live: Tensor) -> Tensor:
    """List the channels of each image that are worth a run.

    Args:
        live: bool ``(N, K)``: whether they are.

    Returns:
        ``(N, count)``: channels, those that are live first; as many as the image with the most of
        them has, and at least one.

    >>> first_of(torch.tensor([[False, True, True], [False, False, True]]))
    tensor([[1, 2],
            [2, 0]])
    """
    count = max(1, int(live.sum(1).max()))
    return live.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


def scattered(found: Tensor, index: Tensor, live: Tensor, *, rest: float) -> Tensor:
    """Put what was found of some channels in their places.

    Args:
        found: ``(N, S, count)``.
        index: ``(N, count)``: of which channels.
        live: bool ``(N, K)``: which channels count.
        rest: What the others get.

    Returns:
        ``(N, S, K)``.
    """
    places = index[:, None].expand_as(found)
    whole = found.new_full((*found.shape[:2], live.shape[1]), rest)
    return whole.scatter(2, places, found).masked_fill(~live[:, None], rest)


def weighted_by(activations: Tensor, weights: Tensor) -> Tensor:
    """``sum_k w_k A_k`` ``(N, S, *s)``, signed, of ``(N, K, *s)`` and ``(N, S, K)``."""
    return torch.einsum("nsk,nk...->ns...", weights, wide(activations))
