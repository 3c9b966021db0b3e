"""The evidence: one function each, from what was seen to a number an update, or one a class.

Higher and lower values are compared with those of the other updates of the round
(:mod:`fedgaze.federate.gate.standing`); what a value is by itself decides nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedgaze.federate.gate.merges import Certainty
from fedgaze.federate.gate.peers import others, others_median
from fedgaze.federate.gate.seen import Seen
from fedgaze.measure import gini, mass_overlap, spearman

__all__ = [
    "accuracy",
    "agreement",
    "class_means",
    "confusion",
    "contrast",
    "degenerate",
    "direction",
    "distance",
    "doubt",
    "excess",
    "harm",
    "help_",
    "layers",
    "length",
    "light",
    "loss",
    "pull",
    "recolouring",
    "statistics",
    "unevenness",
]

KNOWN = 0.25
"""How well an update has to know a class, as a mean probability, for its maps of it to count."""


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
    defined = ~values.isnan()
    weights = (seen.known * defined).nan_to_num()
    total = weights @ seen.of_class
    mean = (values.nan_to_num() * weights) @ seen.of_class / total
    return torch.where(total >= KNOWN * seen.of_class.sum(0), mean, torch.nan)


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


def unevenness(seen: Seen) -> Tensor:
    """The Gini index of the maps at their own size, ``(K, N)``: :func:`fedgaze.measure.gini`."""
    return gini(seen.maps.flatten(0, 1)).view(seen.maps.shape[:2])


def loss(seen: Seen) -> Tensor:
    """The mean cross-entropy of the probe's images in nats, ``(K,)``."""
    return -seen.known.clamp(min=1e-6).log().mean(1)


def accuracy(seen: Seen) -> Tensor:
    """The part of the probe's images that an update gets right, ``(K,)``."""
    right = (seen.chances.argmax(2) == seen.labels).float().mean(1)
    return torch.where(seen.chances.isnan().any(2).any(1), torch.nan, right)


def doubt(seen: Seen) -> Tensor:
    """How undecided an update is: the mean entropy of its predictions in nats, ``(K,)``.

    Whoever learned from wrong labels is unsure everywhere; a client with few classes is not, even
    where it errs.
    """
    found: Tensor = torch.special.entr(seen.chances).sum(2).mean(1)
    return found


def confusion(seen: Seen) -> Tensor:
    """To which class an update sends images of another: the most of any class.

    ``max_c mean_(x of class c) p_t(x)`` for c other than t.

    Returns:
        ``(K, classes)``, by t.
    """
    means = torch.einsum("knt,nc->kct", seen.chances, seen.of_class)
    means = means / seen.of_class.sum(0)[:, None]
    own = torch.eye(seen.classes, dtype=torch.bool, device=means.device)
    means = means.masked_fill(own, -1.0)
    return means.amax(1)


def excess(seen: Seen, kind: int) -> Tensor:
    """How much further each mark pulls each update than the median of the others, ``(K, K)``.

    Args:
        seen: The round.
        kind: 0 for patches, 1 for faint patterns.

    Returns:
        By update and mark; NaN where not seen.
    """
    pulls = seen.pulls[:, kind]
    return pulls - others_median(pulls)


def pull(seen: Seen, kind: int) -> Tensor:
    """How much further a mark pulls an update than the others: the mark that does most, ``(K,)``.

    An attacker is given away by its own mark, and by those of who attacks alike.
    """
    found = excess(seen, kind)
    return torch.where(found.isnan().all(1), torch.nan, found.nan_to_num(-torch.inf).amax(1))


def harm(seen: Seen) -> Tensor:
    """By how much an update raises the loss of the merge: with it, minus without it, ``(K,)``.

    In nats, times K - 1: by how much the merge would be worse if it were this update's alone, were
    losses straight lines. It is no comparison: what is above zero harms.
    """
    return _of_merge(seen, lambda sure: -sure.plain.mean())


def help_(seen: Seen) -> Tensor:
    """By how much an update lowers the loss of the merge where it helps most, ``(K,)``.

    The mean over that half of the classes, in nats as :func:`harm`. A client with few classes harms
    the others, and helps its own; who helps nowhere is no such client.
    """
    present = seen.of_class[:, seen.of_class.any(0)]
    gains = _of_merge(seen, lambda sure: sure.plain @ present / present.sum(0))
    return gains.topk((gains.shape[1] + 1) // 2, dim=1).values.mean(1)


def light(seen: Seen) -> Tensor:
    """By how much an update makes the merge surer under other light than it makes it in plain.

    In nats, as :func:`harm`; of models without batch normalisation, for which :func:`recolouring`
    has nothing to say.
    """
    if seen.merges is None or seen.merges.together.light is None:
        return torch.full((len(seen.clients),), torch.nan)
    return _of_merge(seen, _gain_under_light)


def _gain_under_light(sure: Certainty) -> Tensor:
    return torch.tensor(torch.nan) if sure.light is None else sure.light.mean()


def _of_merge(seen: Seen, part: Callable[[Certainty], Tensor]) -> Tensor:
    return seen.merged(part) * (len(seen.clients) - 1)


def recolouring(seen: Seen) -> Tensor:
    """How far batch normalisation counted images as under other light: each change, ``(K, T)``.

    See :attr:`fedgaze.federate.gate.counted.Counted.towards_light`.
    """
    if seen.counted is None:
        return torch.full((len(seen.clients), 1), torch.nan)
    return seen.counted.towards_light


def contrast(seen: Seen) -> Tensor:
    """How much contrast batch normalisation counted: half the mean log variance, ``(K,)``."""
    if seen.counted is None:
        return torch.full((len(seen.clients),), torch.nan)
    spreads = seen.counted.updates.chunk(2, dim=1)[1]
    return spreads.mean(1) / 2


def statistics(seen: Seen) -> Tensor:
    """How far what batch normalisation counted lies from the others' median, ``(K,)``."""
    if seen.counted is None:
        return torch.full((len(seen.clients),), torch.nan)
    told = seen.counted.updates
    distances: Tensor = (told - others_median(told)).norm(dim=1)
    return distances


def layers(seen: Seen) -> Tensor:
    """How unlike the others' a step is divided among the state's tensors, ``(K,)``.

    The mean over tensors of how far the logarithm of the tensor's own step, less the median of all
    the update's, lies from the median of the others. Who does not train does not move what training
    moves (Lin et al. 2019, arXiv:1911.12560).
    """
    moved = seen.moved.double()
    logs: Tensor = moved.clamp(min=1e-6 * float(moved.max()) + 1e-30).log()
    shape: Tensor = logs - logs.median(1, keepdim=True).values
    unlike: Tensor = (shape - others_median(shape)).abs().mean(1)
    return unlike


def distance(seen: Seen) -> Tensor:
    """How far a step lies from the others' coordinate-wise median: the logarithm, ``(K,)``."""
    norms: Tensor = (seen.vectors.double() - seen.middle).norm(dim=1)
    return norms.clamp(min=1e-12).log()


def length(seen: Seen) -> Tensor:
    """How long an update's step is: the natural logarithm of its norm, ``(K,)``."""
    norms: Tensor = seen.vectors.double().norm(dim=1)
    return norms.clamp(min=1e-12).log()


def direction(seen: Seen) -> Tensor:
    """How far a step turns away from the others' coordinate-wise median: 1 - cosine, ``(K,)``."""
    return 1 - torch.cosine_similarity(seen.vectors.double(), seen.middle, dim=1)
