"""Who gets which images: over clients, for validation, for the probe set. All by seed."""

from collections.abc import Sequence
from heapq import heapreplace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgaze.errors import FedgazeError

__all__ = ["Scheme", "balanced", "hold_back", "hold_out", "partition", "probe_indices"]

Scheme = Literal["dirichlet", "iid", "shards", "quantity", "natural"]

MIN_SAMPLES = 10
TEST_FRACTION = 0.2


def partition(
    labels: Tensor,
    clients: int,
    scheme: Scheme = "dirichlet",
    alpha: float = 1.0,
    seed: int = 0,
    shards_per_client: int = 2,
    groups: Sequence[str | int] | None = None,
) -> list[Tensor]:
    """Split samples over clients.

    ``dirichlet``: each client draws its class proportions from a symmetric Dirichlet distribution;
    then the clients take turns, each drawing a class by its proportions among those that are left
    (Hsu, Qi and Brown 2019, arXiv:1909.06335, section 3). Classes are skewed, sizes are even.
    ``iid``: evenly, in random order.
    ``shards``: sorted by class and cut into even shards, of which each client is dealt the same
    number (McMahan et al. 2017, arXiv:1602.05629, section 3). Few classes a client, sizes are even.
    ``quantity``: in random order, in sizes whose shares are drawn from a symmetric Dirichlet
    distribution (Li et al. 2022, arXiv:2102.02079). A client that would get fewer than
    10 samples gets 10, at the cost of the others in proportion.
    ``natural``: by whole groups. Each goes, the largest first, to the client that has the fewest
    samples so far. With as many groups as clients, clients are numbered as the groups are ordered.

    Args:
        labels: ``(N,)``, the class of each sample.
        clients: How many there are.
        scheme: One of these.
        alpha: Concentration of ``dirichlet`` and ``quantity``; small is skewed, large is even.
        seed: Same seed, same split.
        shards_per_client: Of ``shards``.
        groups: Of ``natural``: what each sample belongs to, such as a writer or a hospital.

    Returns:
        For each client the indices of its samples, ascending; each sample belongs to one client.

    Raises:
        FedgazeError: There are too few samples, or too few groups.
    """
    if len(labels) < clients * MIN_SAMPLES:
        raise FedgazeError(
            f"num_clients={clients} is too many for {len(labels)} training images: "
            f"each client needs at least {MIN_SAMPLES}, so at most {len(labels) // MIN_SAMPLES}"
        )
    match scheme:
        case "iid":
            parts = list(_mixed(labels, seed).tensor_split(clients))
        case "dirichlet":
            parts = _dirichlet(labels, clients, alpha, seed)
        case "shards":
            parts = _shards(labels, clients, shards_per_client, seed)
        case "quantity":
            parts = list(_mixed(labels, seed).split(_sizes(len(labels), clients, alpha, seed)))
        case "natural":
            parts = _natural(groups, clients, seed)
    for client, own in enumerate(parts):
        if len(own) < MIN_SAMPLES:
            raise FedgazeError(
                f"num_clients={clients} is too many for dataset.partition={scheme}: client "
                f"{client} would get {len(own)} images, and each needs at least {MIN_SAMPLES}"
            )
    return [own.sort().values for own in parts]


def _mixed(labels: Tensor, seed: int) -> Tensor:
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))


def _dirichlet(labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    # NumPy: torch's Dirichlet takes no generator, and one draw a sample would be slow in torch.
    random = np.random.default_rng(seed)
    known = labels.numpy()
    pools = [random.permutation(np.flatnonzero(known == label)) for label in np.unique(known)]
    wanted = random.dirichlet([alpha] * len(pools), size=clients)
    left = np.array([len(pool) for pool in pools])
    split: list[list[int]] = [[] for _ in range(clients)]
    for turn, chance in enumerate(random.random(len(labels))):
        odds = wanted[turn % clients] * (left > 0)
        if not odds.any():  # nothing that this client wants is left
            odds = left.astype(float)
        bounds = odds.cumsum()
        drawn = int(np.searchsorted(bounds, chance * bounds[-1], side="right"))
        left[drawn] -= 1
        split[turn % clients].append(int(pools[drawn][left[drawn]]))
    return [torch.tensor(own) for own in split]


def _shards(labels: Tensor, clients: int, each: int, seed: int) -> list[Tensor]:
    count = clients * each
    if count > len(labels):
        raise FedgazeError(
            f"dataset.shards_per_client={each} is too many for {len(labels)} training images and "
            f"num_clients={clients}: at most {len(labels) // clients}"
        )
    mixed = _mixed(labels, seed)
    shards = mixed[labels[mixed].argsort(stable=True)].tensor_split(count)
    dealt = np.random.default_rng(seed).permutation(count).reshape(clients, each)
    return [torch.cat([shards[i] for i in own]) for own in dealt]


def _sizes(count: int, clients: int, alpha: float, seed: int) -> list[int]:
    """How many samples each client gets when the shares are Dirichlet's and nobody starves."""
    shares = np.random.default_rng(seed).dirichlet([alpha] * clients)
    poor = np.zeros(clients, dtype=bool)
    while True:
        rest = (count - MIN_SAMPLES * poor.sum()) * shares / shares[~poor].sum()
        wanted = np.where(poor, MIN_SAMPLES, rest)
        starving = wanted < MIN_SAMPLES - 1e-9
        if not starving.any():
            break
        poor |= starving
    sizes = np.floor(wanted + 1e-9).astype(int)
    # The largest remainders get what rounding left over.
    sizes[np.argsort(sizes - wanted, kind="stable")[: count - sizes.sum()]] += 1
    return [int(size) for size in sizes]


def _natural(groups: Sequence[str | int] | None, clients: int, seed: int) -> list[Tensor]:
    if groups is None:
        raise FedgazeError(
            "dataset.partition=natural needs to know what each image belongs to: name a column in "
            "dataset.partition_by (of a folder's metadata.csv or of a flwr: set's table), or give "
            "the groups of a fedgaze.data.Dataset of your own"
        )
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < clients:
        some = ", ".join(map(str, names[:10])) + (" …" if len(names) > 10 else "")
        raise FedgazeError(
            f"num_clients={clients} is too many for dataset.partition=natural: each client needs a "
            f"group, and there are {len(names)} ({some})"
        )
    sizes = np.bincount(member)
    order = np.random.default_rng(seed).permutation(len(names))
    heap = [(0, client) for client in range(clients)]
    owner = np.empty(len(names), dtype=int)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        held, client = heap[0]
        owner[group] = client
        heapreplace(heap, (held + int(sizes[group]), client))
    holder = torch.from_numpy(_renumbered(owner)[member])
    return [(holder == client).nonzero()[:, 0] for client in range(clients)]


def _renumbered(owner: NDArray[np.int_]) -> NDArray[np.int_]:
    """The same owners, numbered in the order in which they first appear."""
    _, first, number = np.unique(owner, return_index=True, return_inverse=True)
    renumbered: NDArray[np.int_] = first.argsort().argsort()[number]
    return renumbered


def balanced(labels: Tensor, count: int | None, seed: int) -> Tensor:
    """Choose some samples, of each class the same number as far as there are so many.

    Args:
        labels: ``(N,)``.
        count: How many at most; None for all.
        seed: Same seed, same choice.

    Returns:
        Their indices, ascending.
    """
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    mixed = _mixed(labels, seed)
    turn = torch.empty_like(mixed)
    for label in labels.unique():
        own = labels[mixed] == label
        turn[own] = torch.arange(int(own.sum()))
    return mixed[turn.argsort(stable=True)[:count]].sort().values


def hold_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split samples into those to train on and a fifth to test with.

    Args:
        count: How many there are.
        seed: Same seed, same split.

    Returns:
        Indices to train on and indices to test with, both in random order.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    test, train = order.split([round(count * TEST_FRACTION), count - round(count * TEST_FRACTION)])
    return train, test


def hold_back(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a client's samples into those to train on and those to validate with, class by class.

    Args:
        labels: ``(N,)``, at least two.
        fraction: The validation part of each class, in (0, 1), rounded; a class with at least two
            samples gives at least one, and some class does in any case.
        seed: Same seed, same split.

    Returns:
        Indices to train on and indices to validate with, both ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not held.any():
        held[torch.randint(len(labels), (), generator=generator)] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def probe_indices(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Choose a probe set: up to ``per_class`` samples of each class, ordered by class.

    Args:
        labels: ``(N,)``.
        per_class: At most so many of each class.
        seed: Same seed, same choice.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat([order[labels[order] == label][:per_class] for label in labels.unique()])
