"""Who gets which images: over clients, for validation, for the probe set. All by seed."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedgaze.errors import FedgazeError

__all__ = ["hold_back", "partition", "probe_indices"]

MIN_SAMPLES = 10


def partition(
    labels: Tensor,
    clients: int,
    scheme: Literal["dirichlet", "iid"] = "dirichlet",
    alpha: float = 1.0,
    seed: int = 0,
) -> list[Tensor]:
    """Split samples over clients.

    ``dirichlet``: each client draws its class proportions from a symmetric Dirichlet distribution;
    then the clients take turns, each drawing a class by its proportions among those that are left
    (Hsu, Qi and Brown 2019, arXiv:1909.06335, section 3). Classes are skewed, sizes are even.
    ``iid``: evenly, in random order.

    Args:
        labels: ``(N,)``, the class of each sample.
        clients: How many there are.
        scheme: ``dirichlet`` or ``iid``.
        alpha: Concentration; small is skewed, large is even.
        seed: Same seed, same split.

    Returns:
        For each client the indices of its samples, ascending; each sample belongs to one client.

    Raises:
        FedgazeError: There are too few samples.
    """
    if len(labels) < clients * MIN_SAMPLES:
        raise FedgazeError(
            f"num_clients={clients} is too many for {len(labels)} training images: "
            f"each client needs at least {MIN_SAMPLES}, so at most {len(labels) // MIN_SAMPLES}"
        )
    if scheme == "iid":
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        return [part.sort().values for part in order.tensor_split(clients)]
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
    return [torch.tensor(sorted(own)) for own in split]


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
