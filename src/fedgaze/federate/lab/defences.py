"""Defences of federated learning that others proposed, as opinions on one round's updates.

Each is a function of a :class:`RoundView`; FoolsGold, which remembers rounds, is an object that is
called the same way. What it thinks is an :class:`Opinion`: how suspect each update is, and by which
factor it is multiplied before FedAvg merges it. **The caller drops updates whose factor is 0**, so
that FedAvg's mean is over the rest. With ``S`` the updates whose factor ``f`` is not 0, the
received weights move by (:func:`merged`)

    ``Σ_S n_i f_i Δ_i / Σ_S n_j``.

Defences with weights of their own (FoolsGold, FLTrust) choose ``f`` so that this is their paper's
mean exactly. Where no update is left, nothing is merged.

The coordinate-wise median and the trimmed mean choose values, not updates: no factor does that.
They score updates here, and are merged by Flower's strategies, which :attr:`Defence.strategy`
names. Krum and Multi-Krum choose whole updates, so factors of 0 and 1 do, under FedAvg: it is the
choice and the mean of Flower's strategies, which however also measure BatchNorm's statistics.

Two conventions hold throughout: the median of an even number of values is the mean of the two in
the middle, as in NumPy, and a vector of length zero has the cosine 0 with every other. What a
client sends is finite, which :func:`fedgaze.federate.exchange.unpack` sees to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.limits import lacking

__all__ = [
    "DEFENCES",
    "REFERENCES",
    "Defence",
    "Defend",
    "FoolsGold",
    "Opinion",
    "RoundView",
    "find_defence",
    "merged",
]

ACCURACY_RESOLUTION = 0.01
"""A spread of accuracies below this says more of the probe set's size than of the updates."""
COSINE_RESOLUTION = 1e-6
"""A spread of cosines below this is rounding: vectors are float32."""

_SAME = 1e-12
"""How far from 1 the cosine of a vector with itself may be, in float64."""


@dataclass(frozen=True, eq=False)
class RoundView:
    """One round as a defence sees it; all tensors are on the CPU.

    Attributes:
        vectors: ``(K, D)`` float32, finite: each client's trained weights minus those it received,
            flattened: all that is learned, no statistics and no whole numbers.
        clients: ``(K,)``: whose, in the same order.
        samples: ``(K,)`` whole numbers of at least 1: on how many images each trained.
        probe_accuracy: ``(K,)`` in [0, 1]: of each client's model on the server's probe set.
        received_accuracy: In [0, 1]: of the received weights on the same set.
        root: ``(D,)``: the server's own update, from training the received weights on its small
            trusted set; only FLTrust needs it.
        attackers: How many of the updates the defence is told to expect from attackers, the ``f``
            of Krum and of the trimmed mean.
    """

    vectors: Tensor
    clients: tuple[int, ...]
    samples: Tensor
    probe_accuracy: Tensor
    received_accuracy: float
    root: Tensor | None
    attackers: int


@dataclass(frozen=True, eq=False)
class Opinion:
    """What a defence thinks of a round's updates.

    Attributes:
        scores: ``(K,)`` float64, the higher the more suspect; NaN where it has no opinion.
        factors: ``(K,)`` float64, at least 0: by what each update is multiplied before FedAvg; the
            caller drops updates whose factor is 0.
    """

    scores: Tensor
    factors: Tensor


Defend = Callable[[RoundView], Opinion]
"""A defence at work; one that remembers rounds is called once a round, in their order."""


def merged(view: RoundView, factors: Tensor) -> Tensor | None:
    """What FedAvg makes of a round's updates under factors (McMahan et al. 2017, Algorithm 1).

    Args:
        view: The round.
        factors: ``(K,)``, of an :class:`Opinion`.

    Returns:
        ``(D,)`` float64, by which the received weights move; None where no update is left.
    """
    kept = factors != 0
    if not kept.any():
        return None
    samples = view.samples[kept].double()
    shares = samples * factors[kept] / samples.sum()
    return shares @ view.vectors[kept].double()


def none(view: RoundView) -> Opinion:
    """FedAvg as it is."""
    return Opinion(_all(view, torch.nan), _all(view, 1.0))


def norm_clipping(view: RoundView) -> Opinion:
    """``Δ_i · min(1, M / ‖Δ_i‖)`` with ``M`` the round's median norm; the score is ``‖Δ_i‖ / M``.

    Sun et al. 2019, arXiv:1911.07963 (norm thresholding), where ``M`` is a constant. Where ``M`` is
    0, no update that moves is left, and there is no unit for scores.
    """
    norms = torch.linalg.vector_norm(view.vectors.double(), dim=1)
    limit = _median(norms)
    factors = torch.where(norms > limit, limit / norms, 1.0)
    return Opinion(norms / limit if limit else _all(view, torch.nan), factors)


def cosine(view: RoundView) -> Opinion:
    """Leaves out what points away from the coordinate-wise median update.

    The score is ``1 - cos(Δ_i, median)`` in [0, 2]. After AFA (Muñoz-González et al. 2019,
    arXiv:1909.05125), with medians where it has means, and one pass.
    """
    vectors = view.vectors.double()
    scores = 1 - _cosines(vectors, _median(vectors)[None])[:, 0]
    return Opinion(scores, 1.0 - _outlying(scores, COSINE_RESOLUTION).double())


def probe_accuracy(view: RoundView) -> Opinion:
    """Leaves out what costs far more accuracy on the server's probe set than other updates.

    The score is the received weights' accuracy minus the update's own. Like ERR (Fang et al. 2020,
    arXiv:1911.11815), which tests the merge with and without an update instead.
    """
    scores = view.received_accuracy - view.probe_accuracy.double()
    return Opinion(scores, 1.0 - _outlying(scores, ACCURACY_RESOLUTION).double())


def krum(view: RoundView) -> Opinion:
    """Keeps the update nearest to its ``K - f - 2`` nearest (Blanchard et al. 2017).

    arXiv:1703.02757: the score is the sum of squared distances to these. Of equal ones the first is
    kept. Below ``K = 2f + 3`` Krum promises nothing: it has no opinion, and nothing is merged, as
    with the strategy of that name.
    """
    return _nearest_kept(view, 1)


def multi_krum(view: RoundView) -> Opinion:
    """Keeps the ``K - f`` updates that :func:`krum` scores best.

    Blanchard et al. 2017, arXiv:1703.02757, takes their plain mean; here samples count, as with
    Flower's strategy.
    """
    return _nearest_kept(view, len(view.clients) - view.attackers)


def distance_to_median(view: RoundView) -> Opinion:
    """``‖Δ_i - median‖`` for the coordinate-wise rules, which leave no update out."""
    vectors = view.vectors.double()
    return Opinion(torch.linalg.vector_norm(vectors - _median(vectors), dim=1), _all(view, 1.0))


@dataclass(frozen=True, eq=False)
class FoolsGold:
    """Little weight for clients whose updates, summed over rounds, point the same way.

    Fung et al. 2020, arXiv:1808.04866, Algorithm 1, without its choice of indicative features: all
    weights count. The paper adds the weighted updates, which are single gradients there; here they
    are whole rounds of training, so the mean is taken. Samples do not count. The score is 1 minus
    the weight. Clients that are away keep their sums; only those of the round are compared.

    Attributes:
        confidence: The paper's ``κ``, above 0.
        history: ``(D,)`` float64 by client: the sum of its updates, to which each call adds.
    """

    confidence: float = 1.0
    history: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, view: RoundView) -> Opinion:
        """Take a round's updates into the history, and weigh them by it."""
        for client, vector in zip(view.clients, view.vectors.double(), strict=True):
            self.history[client] = self.history.get(client, 0) + vector
        sums = torch.stack([self.history[client] for client in view.clients])
        weights = fools_gold_weights(sums, self.confidence)
        return Opinion(1 - weights, _factors(view, weights))


def fools_gold_weights(histories: Tensor, confidence: float = 1.0) -> Tensor:
    """FoolsGold's learning rates.

    With ``cs`` the pairwise cosines and ``v_i = max_j cs_ij``: ``cs_ij`` is multiplied by
    ``v_i / v_j`` where ``v_j > v_i`` (pardoning); ``α_i = 1 - max_j cs_ij`` is divided by the
    greatest of them, and becomes ``κ (ln(α_i / (1 - α_i)) + 0.5)``, cut to [0, 1]. As in the
    authors' own code, maxima are at least 0. Where all point the same way, every ``α`` is 0, there
    is nothing to divide by, and all weights are 0.

    Args:
        histories: ``(K, D)`` float64, the sum of each client's updates.
        confidence: ``κ``, above 0.

    Returns:
        ``(K,)`` in [0, 1].
    """
    similar = _cosines(histories, histories).fill_diagonal_(0)
    most = similar.amax(1)
    pardoned = similar * most[:, None] / most
    apart = 1 - torch.where(most > most[:, None], pardoned, similar).amax(1)
    apart = torch.where(apart > _SAME, apart, 0.0)
    if not apart.any():
        return apart
    return (confidence * (torch.logit(apart / apart.max()) + 0.5)).clamp(0, 1)


def fltrust(view: RoundView) -> Opinion:
    """``Σ t_i ‖g‖ / ‖Δ_i‖ Δ_i / Σ t_i`` with trust ``t_i = max(0, cos(Δ_i, g))`` in the root ``g``.

    Cao et al. 2021, arXiv:2012.13995, Algorithm 2, with the global learning rate 1. Samples do not
    count. The score is ``1 - t_i``. Where nobody is trusted, nothing is merged.

    Raises:
        FedgazeError: There is no root.
    """
    if view.root is None:
        raise FedgazeError("fltrust needs RoundView.root, the server's own update")
    vectors, root = view.vectors.double(), view.root.double()
    trust = _cosines(vectors, root[None])[:, 0].clamp(min=0)
    norms = torch.linalg.vector_norm(vectors, dim=1)
    return Opinion(1 - trust, _factors(view, trust, torch.linalg.vector_norm(root) / norms))


def _nearest_kept(view: RoundView, count: int) -> Opinion:
    total, attackers = len(view.clients), view.attackers
    if lacking("Krum", {"num_malicious_nodes": attackers}, total):
        return Opinion(_all(view, torch.nan), _all(view, 0.0))
    vectors = view.vectors.double()
    # Differences, not |x|² + |y|² - 2xy, in which small distances are lost.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances.fill_diagonal_(torch.inf)
    scores = distances.sort(1).values[:, : total - attackers - 2].sum(1)
    factors = torch.zeros_like(scores)
    factors[scores.argsort(stable=True)[:count]] = 1.0
    return Opinion(scores, factors)


def _factors(view: RoundView, weights: Tensor, scales: Tensor | float = 1.0) -> Tensor:
    """Factors with which FedAvg gives ``Σ w_i s_i Δ_i / Σ w_i``.

    From ``n_i f_i / N = w_i s_i / W``, where ``N`` sums samples over those whose weight is not 0.

    Args:
        view: The round.
        weights: ``(K,)`` float64, at least 0.
        scales: ``(K,)`` above 0, and whatever it likes where the weight is 0.
    """
    samples, kept = view.samples.double(), weights > 0
    total = (samples * kept).sum()
    return torch.where(kept, weights * scales * total / (samples * weights.sum()), 0.0)


def _outlying(scores: Tensor, resolution: float) -> Tensor:
    """Which of ``(K,)`` scores lie above ``median + 3 · 1.4826 · MAD``, at most half of them.

    The factor makes the median absolute deviation a standard deviation where scores are normal, and
    3 of these is the cautious choice of Leys et al. 2013, J. Exp. Soc. Psychol. 49(4), 764-766.
    Where more than half of the scores are equal, the MAD is 0 and the least excess would be beyond
    it: so it counts as no less than a resolution. Of one or two scores none lies beyond.
    """
    median = _median(scores)
    spread = 1.4826 * _median((scores - median).abs())
    return scores > median + 3 * spread.clamp(min=resolution)


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """``(N, M)`` in [-1, 1] of float64 ``(N, D)`` with ``(M, D)``; 0 where a length is 0."""
    lengths = torch.outer(*(torch.linalg.vector_norm(each, dim=1) for each in (left, right)))
    return torch.where(lengths > 0, (left @ right.T) / lengths, 0.0).clamp(-1, 1)


def _median(values: Tensor) -> Tensor:
    """Along the first dimension, as NumPy's."""
    return (values.median(0).values - (-values).median(0).values) / 2


def _all(view: RoundView, value: float) -> Tensor:
    return torch.full((len(view.clients),), value, dtype=torch.float64)


def _fedavg(_updates: int, _attackers: int) -> dict[str, Any]:
    return {"_target_": "FedAvg"}


def _median_of_each(_updates: int, _attackers: int) -> dict[str, Any]:
    return {"_target_": "FedMedian"}


def _trimmed(updates: int, attackers: int) -> dict[str, Any]:
    """Yin et al. 2018, Definition 2, with as many values cut at each end as there are attackers.

    Flower cuts ``int(beta · updates)``: a quarter more keeps that from rounding down, and ``beta``
    below one half.

    Raises:
        FedgazeError: Nothing would be left.
    """
    if updates < 2 * attackers + 1:
        raise FedgazeError(
            f"trimmed_mean leaves nothing of {updates} updates with {attackers} cut at each end"
        )
    beta = (attackers + 0.25) / updates if attackers else 0.0
    return {"_target_": "FedTrimmedAvg", "beta": beta}


@dataclass(frozen=True, eq=False)
class Defence:
    """A defence in the list of them.

    Attributes:
        new: Makes one that remembers nothing yet: one for each run.
        says: What it does, in half a sentence.
        source: Where it was proposed.
        strategy: What a task's ``server.strategy`` has to be, by which the factored updates are
            merged, for so many updates a round and so many of them from attackers.
    """

    new: Callable[[], Defend]
    says: str
    source: str
    strategy: Callable[[int, int], dict[str, Any]] = _fedavg


DEFENCES: Mapping[str, Defence] = {
    "none": Defence(lambda: none, "merges all updates", "McMahan et al., AISTATS 2017"),
    "oracle": Defence(lambda: none, "is told who attacks, and leaves out just those", ""),
    "norm_clipping": Defence(
        lambda: norm_clipping,
        "shortens updates to the round's median norm",
        "Sun et al., 2019, arXiv:1911.07963",
    ),
    "cosine": Defence(
        lambda: cosine,
        "leaves out what points away from the median update",
        "after Muñoz-González et al., 2019, arXiv:1909.05125",
    ),
    "probe_accuracy": Defence(
        lambda: probe_accuracy,
        "leaves out what costs accuracy on the server's probe set",
        "after Fang et al., USENIX Security 2020",
    ),
    "krum": Defence(
        lambda: krum,
        "keeps the one update nearest to its nearest",
        "Blanchard et al., NeurIPS 2017",
    ),
    "multi_krum": Defence(
        lambda: multi_krum,
        "keeps the K - f updates nearest to their nearest",
        "Blanchard et al., NeurIPS 2017",
    ),
    "trimmed_mean": Defence(
        lambda: distance_to_median,
        "mean of each weight without the f highest and lowest values",
        "Yin et al., ICML 2018",
        _trimmed,
    ),
    "median": Defence(
        lambda: distance_to_median,
        "median of each weight",
        "Yin et al., ICML 2018",
        _median_of_each,
    ),
    "foolsgold": Defence(
        FoolsGold,
        "little weight for clients whose updates look alike over rounds",
        "Fung et al., RAID 2020",
    ),
    "fltrust": Defence(
        lambda: fltrust,
        "weighs updates by their cosine with the server's own",
        "Cao et al., NDSS 2021",
    ),
}
"""The defences by name."""
REFERENCES = ("none", "oracle")
"""What the others are held against: these two think nothing of any update."""


def find_defence(name: str) -> Defence:
    """A defence by its name.

    Raises:
        FedgazeError: There is none of that name.
    """
    if name not in DEFENCES:
        raise FedgazeError(
            f"there is no defence '{name}'; there are {', '.join(DEFENCES)}"
            f"{nearest(name, DEFENCES)}"
        )
    return DEFENCES[name]
