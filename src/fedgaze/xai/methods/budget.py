"""A budget of channels: few are judged, and from their scores those of all others foretold."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.masks import unit

__all__ = ["Guess", "Judge", "foretold", "read_budget"]

Judge = Callable[[Tensor], Tensor]
"""From channels ``(N, count)`` to their scores ``(N, S, count)``."""

_LEAST = 8
_ROUNDS = 3
_MEANS_STEPS = 3
_NOISE = 1e-2


def read_budget(channels: int) -> int:
    """Check how many channels are to be judged.

    Raises:
        FedgazeError: It is no number from 8 on.
    """
    if not isinstance(channels, int) or channels < _LEAST:
        raise FedgazeError(
            f"channels is {channels!r}; allowed is {_LEAST} and more, or None for all"
        )
    return channels


def foretold(activations: Tensor, live: Tensor, judge: Judge, channels: int) -> Tensor:
    """Judge some channels of each image, and foretell the scores of the others.

    The score is taken for a function of the mask: a Gaussian process whose covariance falls with
    the squared distance of two masks, by ``exp(-d^2 / 2 l^2)``, where l is the mean distance of
    masks of this image. Three eighths of the budget go to the channels with the highest sums of
    absolute activations, three eighths to masks that stand for all others: the members next to the
    centres of clusters (k-means, begun with masks far from each other). The last quarter goes, in
    three rounds, to masks whose foretold score is highest when one standard deviation is added
    (the upper confidence bound of Srinivas et al., "Gaussian Process Optimization in the Bandit
    Setting", ICML 2010), for the softmax over channels gives nearly all weight to the highest
    scores. These are thus found and exact; the others get the mean of the process.

    Nothing is random, and each image is treated alone.

    Args:
        activations: ``(N, K, *s)``.
        live: bool ``(N, K)``: which channels have a mask.
        judge: Runs the model.
        channels: How many are judged, of each image: less than K.

    Returns:
        ``(N, S, K)``; without meaning where a channel is not live.
    """
    known = wide(activations).flatten(2)
    masks = unit(known.flatten(0, 1)).view(*live.shape, -1)
    strength = known.abs().sum(2).masked_fill(~live, -1)
    index = strength.topk(3 * channels // 8, dim=1).indices
    others = live.scatter(1, index, False)
    index = torch.cat([index, _representatives(masks, others, 3 * channels // 8)], 1)
    scores = wide(judge(index))
    left = channels - index.shape[1]
    for at in range(_ROUNDS):
        step = left * (at + 1) // _ROUNDS - left * at // _ROUNDS
        guess = Guess.of(masks, live, index, scores)
        # Of several targets each has its say; of one, the order is that of its own bounds.
        bound = (guess.mean + guess.deviation).masked_fill(~live[:, None], -torch.inf)
        wanted = bound.log_softmax(2).amax(1).scatter(1, index, -torch.inf)
        more = wanted.nan_to_num(nan=-torch.inf).topk(step, dim=1).indices
        index, scores = torch.cat([index, more], 1), torch.cat([scores, wide(judge(more))], 2)
    mean = Guess.of(masks, live, index, scores).mean
    return mean.scatter(2, index[:, None].expand_as(scores), scores)


class Guess(NamedTuple):
    """What is believed of all scores: mean and standard deviation, ``(N, S, K)``."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, masks: Tensor, live: Tensor, index: Tensor, scores: Tensor) -> "Guess":
        """Foretell from the scores of some channels those of all.

        Args:
            masks: ``(N, K, P)``.
            live: bool ``(N, K)``.
            index: ``(N, b)``: which channels were judged.
            scores: ``(N, S, b)``: their scores.
        """
        near = masks.gather(1, index[..., None].expand(-1, -1, masks.shape[2]))
        distance = torch.cdist(masks, near)
        # Channels without a mask, of images that have fewer than others, tell nothing.
        sound = live.gather(1, index)
        pairs = (live[:, :, None] & sound[:, None]).to(distance.dtype)
        length = (distance * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
        length = torch.where(length > 0, length, 1)[:, None, None]
        between = torch.exp(-0.5 * (distance / length) ** 2) * sound[:, None]
        among = between.gather(1, index[..., None].expand(-1, -1, index.shape[1]))
        among = among * sound[..., None] + torch.diag_embed(
            torch.where(sound, _NOISE, 1.0).to(among.dtype)
        )
        weight = (sound / sound.sum(1, keepdim=True).clamp(min=1))[:, None].to(scores.dtype)
        middle = (scores * weight).sum(2, keepdim=True)
        spread = ((scores - middle) ** 2 * weight).sum(2, keepdim=True).sqrt()
        factor = torch.linalg.cholesky(among)
        solved = torch.cholesky_solve(between.mT, factor)
        unexplained = (1 - (solved.mT * between).sum(2)).clamp(min=0).sqrt()
        mean = middle + torch.matmul(scores - middle, solved.to(scores.dtype))
        return cls(mean, spread * unexplained[:, None].to(scores.dtype))


def _representatives(masks: Tensor, live: Tensor, count: int) -> Tensor:
    """The masks next to the centres of so many clusters of each image: ``(N, count)``."""
    rows = torch.arange(len(masks), device=masks.device)
    # Far from all that were taken: first the largest, then always the one most alone.
    taken = [torch.where(live, masks.sum(2), -1).argmax(1)]
    alone = torch.full_like(live, torch.inf, dtype=masks.dtype)
    for _ in range(1, count):
        alone = torch.minimum(alone, (masks - masks[rows, taken[-1]][:, None]).norm(dim=2))
        taken.append(torch.where(live, alone, -1).argmax(1))
    index = torch.stack(taken, 1)
    centres = masks[rows[:, None], index]
    for _ in range(_MEANS_STEPS):
        nearest = torch.cdist(masks, centres).argmin(2)
        member = F.one_hot(nearest, count) * live[..., None]
        sizes = member.sum(1)[..., None]
        means = torch.bmm(member.mT.to(masks.dtype), masks) / sizes.clamp(min=1)
        centres = torch.where(sizes > 0, means, centres)
    distance = torch.cdist(masks, centres)
    own = distance.argmin(2, keepdim=True) == torch.arange(count, device=masks.device)
    inside = distance.masked_fill(~(own & live[..., None]), torch.inf)
    # A cluster that has lost all its members keeps the one that it began with.
    return torch.where(inside.amin(1).isfinite(), inside.argmin(1), index)
