"""The evidence: one function each, from what was seen to a number an update, or one a class.

Higher and lower values are compared with those of the other updates of the round
(:mod:`fedgaze.federate.gate.standing`); what a value is by itself decides nothing.
"""

import torch
from torch import Tensor

from fedgaze.federate.gate.seen import Seen
from fedgaze.measure import mass_overlap, spearman

__all__ = [
    "accuracy",
    "agreement",
    "changed",
    "class_means",
    "confusion",
    "degenerate",
    "direction",
    "length",
    "loss",
    "others",
    "others_median",
    "pull",
]

KNOWN = 0.25
"""How well an update has to know a class, as a mean probability, for its maps of it to count."""


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


def class_means(seen: Seen, values: Tensor) -> Tensor:
    """The mean of each class, over the images that the update knows.

    Each image is weighted by the probability that the update gives to its class: what a client
    without a class shows there is no evidence of anything.

    Args:
        seen: The round.
        values: ``(K, N)``, NaN where one is not defined.

    Returns:
        ``(K, classes)``; NaN where the update knows the class too little.
    """
    of_class = seen.labels[:, None] == torch.arange(seen.classes, device=values.device)
    defined = ~values.isnan()
    weights = (seen.known * defined).nan_to_num()
    total = weights @ of_class.float()
    count = of_class.sum(0)
    mean = (values.nan_to_num() * weights) @ of_class.float() / total
    return torch.where(total >= KNOWN * count, mean, torch.nan)


def agreement(seen: Seen, *, ranks: bool, with_received: bool) -> Tensor:
    """How much the maps are like others: those of the weights that went out, or the others' mean.

    Args:
        seen: The round.
        ranks: Spearman's correlation; otherwise the mass in common.
        with_received: Compare with the received weights' maps; otherwise with the mean of the
            other updates' maps, each scaled to mass 1.

    Returns:
        ``(K, N)``.
    """
    maps, count = seen.maps, len(seen.clients)
    alike = spearman if ranks else mass_overlap
    if with_received:
        reference = seen.received_maps.expand_as(maps)
    elif count < 2:
        return torch.full(maps.shape[:2], torch.nan, device=maps.device)
    else:
        shares = maps / maps.sum((2, 3), keepdim=True)
        reference = torch.stack([shares[others(count, k)].nanmean(0) for k in range(count)])
    found = alike(maps.flatten(0, 1), reference.flatten(0, 1))
    return found.float().view(maps.shape[:2])


def degenerate(seen: Seen) -> Tensor:
    """Whether a map says nothing: it is zero, the same everywhere, or a single cell, ``(K, N)``."""
    maps = seen.maps.flatten(2)
    peak, least, total = maps.amax(2), maps.amin(2), maps.sum(2)
    empty = (total <= 0) | (peak == least) | (peak > 0.99 * total)
    return torch.where(maps.isnan().any(2), torch.nan, empty.float())


def loss(seen: Seen) -> Tensor:
    """The mean cross-entropy of the probe's images in nats, ``(K,)``."""
    return -seen.known.clamp(min=1e-6).log().mean(1)


def accuracy(seen: Seen) -> Tensor:
    """The part of the probe's images that an update gets right, ``(K,)``."""
    right = (seen.chances.argmax(2) == seen.labels).float().mean(1)
    return torch.where(seen.chances.isnan().any(2).any(1), torch.nan, right)


def confusion(seen: Seen) -> Tensor:
    """To which class an update sends images of another: the most of any class.

    ``max_c mean_(x of class c) p_t(x)`` for c other than t.

    Returns:
        ``(K, classes)``, by t.
    """
    of_class = (seen.labels[:, None] == torch.arange(seen.classes)).float()
    means = torch.einsum("knt,nc->kct", seen.chances, of_class) / of_class.sum(0)[:, None]
    means = means.masked_fill(torch.eye(seen.classes, dtype=torch.bool), -1.0)
    return means.amax(1)


def pull(seen: Seen) -> Tensor:
    """How much more the patch found for an update pulls it than it pulls the others, ``(K,)``."""
    own = seen.pulls.diagonal()
    return own - others_median(seen.pulls).diagonal()


def changed(seen: Seen) -> Tensor:
    """How much more changes of whole images pull an update towards a class than the others.

    Returns:
        ``(K, classes)``: of each class the largest excess over the others' median.
    """
    return (seen.changes - others_median(seen.changes)).amax(1)


def length(seen: Seen) -> Tensor:
    """How long an update's step is: the natural logarithm of its norm, ``(K,)``."""
    norms: Tensor = seen.vectors.double().norm(dim=1)
    return norms.clamp(min=1e-12).log()


def direction(seen: Seen) -> Tensor:
    """How far an update's step turns away from the others' coordinate-wise median: 1 - cosine."""
    vectors = seen.vectors.double()
    count = len(vectors)
    if count < 2:
        return torch.full((count,), torch.nan, dtype=torch.float64)
    middle = torch.stack([vectors[others(count, k)].median(0).values for k in range(count)])
    return 1 - torch.cosine_similarity(vectors, middle, dim=1)
