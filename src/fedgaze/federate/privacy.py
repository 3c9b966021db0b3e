"""Differential privacy of the merged weights, client by client, and what of it is spent.

Each update is clipped to a norm ``C``, and the mean of a round's ``m`` updates gets Gaussian noise
of ``z · C / m`` (McMahan et al. 2018, arXiv:1710.06963), by Flower's own wrappers of a strategy.
Every client counts the same: weights by samples would let one client move the mean by more than
``C / m``. So the mean is the Gaussian mechanism with noise multiplier ``z`` for two runs that
differ in one client, which in one of them adds nothing to the sums, while it is known who takes
part ("zero-out", Kairouz et al. 2021, arXiv:2103.00039).

What Flower 1.41 does otherwise is put right here:

- noise comes from NumPy's global generator, which a task's own code may have seeded;
- adaptive clipping (Andrew et al. 2021, arXiv:1905.03871, Algorithm 1) moves the norm the wrong
  way, so that it runs off to zero or to infinity, and adds noise for the norm of the next round;
- the number of updates is that of the clients asked, not of those that answered.

Two more things see to the rest: :mod:`fedgaze.federate.exchange` sends single numbers as vectors,
since Flower's clipping passes single numbers by, and :class:`fedgaze.federate.merging.Merging` lets
every update count the same.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from fedgaze.config import PrivacySpec, Task
from fedgaze.errors import FedgazeError
from fedgaze.federate.selection import choose

if TYPE_CHECKING:
    from flwr.app import Context

__all__ = ["check_budget", "check_privacy", "clipping_mods", "private", "spent"]

_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 512)
"""Orders of Rényi divergence among which the tightest bound is taken."""


_WRAPPERS: dict[tuple[str, str], type[Strategy]] = {
    ("server", "fixed"): flower.DifferentialPrivacyServerSideFixedClipping,
    ("client", "fixed"): flower.DifferentialPrivacyClientSideFixedClipping,
    ("server", "adaptive"): flower.DifferentialPrivacyServerSideAdaptiveClipping,
    ("client", "adaptive"): flower.DifferentialPrivacyClientSideAdaptiveClipping,
}


def _mended(wrapper: type[Strategy]) -> type[Strategy]:
    """One of Flower's wrappers without what the module names.

    Its attribute ``clipped_to`` is the norm to which the last updates were clipped.
    """

    class Mended(wrapper):  # type: ignore[valid-type, misc]
        remembered = ("clipping_norm",)
        clipping_norm: float

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            """Clip, merge and add noise for as many updates as there are."""
            updates = list(replies)
            self.num_sampled_clients = len(updates)
            self.clipped_to = self.clipping_norm
            with _noise_of_the_system():
                merged, metrics = super().aggregate_train(server_round, updates)
            self.current_arrays = ArrayRecord()
            return merged, metrics

        def _add_noise_to_aggregated_arrays(self, arrays: ArrayRecord) -> ArrayRecord:
            """Noise for the norm to which these updates were clipped."""
            later, self.clipping_norm = self.clipping_norm, self.clipped_to
            noisy: ArrayRecord = super()._add_noise_to_aggregated_arrays(arrays)
            self.clipping_norm = later
            return noisy

        def _geometric_update(self, clipped: float) -> None:
            """``C · exp(η (clipped - target))``: where too many are clipped, the norm grows.

            Flower's is ``exp(-η (clipped - target))``; the fraction is mirrored at the target.
            """
            super()._geometric_update(2 * self.target_clipped_quantile - clipped)

    Mended.__name__ = wrapper.__name__
    return Mended


@contextmanager
def _noise_of_the_system() -> Iterator[None]:
    """Let NumPy's global generator, from which Flower draws, begin where nobody can know."""
    before = np.random.get_state()  # noqa: NPY002 - Flower draws from this one
    np.random.seed(np.frombuffer(os.urandom(4 * 624), dtype=np.uint32))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def private(spec: PrivacySpec, clients: int) -> tuple[type[Strategy], dict[str, Any]]:
    """The wrapper that a task means, and its arguments but for the strategy inside.

    Args:
        spec: The task's.
        clients: How many train in a round.
    """
    arguments: dict[str, Any] = {
        "noise_multiplier": spec.noise_multiplier,
        "num_sampled_clients": clients,
    }
    if spec.clipping == "fixed":
        arguments["clipping_norm"] = spec.clipping_norm
    else:
        arguments["initial_clipping_norm"] = spec.clipping_norm
        arguments["target_clipped_quantile"] = spec.clipped_fraction
        arguments["clip_norm_lr"] = spec.norm_learning_rate
        arguments["clipped_count_stddev"] = spec.count_noise or clients / 20
    return _mended(_WRAPPERS[spec.side, spec.clipping]), arguments


def clipping_mods(spec: PrivacySpec | None) -> list[Mod]:
    """What of Flower's goes round a client's training, so that it clips its own update.

    Args:
        spec: The task's.
    """
    if spec is None or spec.side == "server":
        return []
    return [_beside(fixedclipping_mod if spec.clipping == "fixed" else adaptiveclipping_mod)]


def _beside(mod: Mod) -> Mod:
    """Flower's mods want weights and metrics in a reply and nothing else: pass the rest by them."""

    def passing(message: Message, context: "Context", call_next: ClientAppCallable) -> Message:
        rest = {}

        def bare(message: Message, context: "Context") -> Message:
            reply = call_next(message, context)
            if not reply.has_error():
                own = ("arrays", "metrics")
                rest.update({key: reply.content[key] for key in reply.content if key not in own})
                reply.content = RecordDict({key: reply.content[key] for key in own})
            return reply

        reply = mod(message, context, bare)
        if not reply.has_error():
            reply.content = RecordDict({**reply.content, **rest})
        return reply

    return passing


def spent(spec: PrivacySpec, history: Iterable[Mapping[str, Any]]) -> float:
    """The epsilon of the client that is worst off.

    With ``sampling: known`` only rounds count in which a client took part, and the bound is that of
    the Gaussian mechanism so many times. With ``poisson`` every round counts, amplified by the
    chance to be drawn (Mironov et al. 2019, arXiv:1908.10530). Both through Rényi divergences.

    Args:
        spec: The task's.
        history: Records of rounds; ``poisson`` reads the ``sampling_rate`` of their ``privacy``.
    """
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    merged = [record for record in history if "not_merged" not in record]
    if spec.sampling == "known":
        taken = Counter(entry["client"] for record in merged for entry in record["clients"])
        times = {1.0: max(taken.values(), default=0)}
    else:
        times = dict(Counter(record["privacy"]["sampling_rate"] for record in merged))
    if not sum(times.values()):
        return 0.0
    noise, orders = spec.noise_multiplier, list(_ORDERS)
    rdp = sum(
        compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
        for rate, steps in times.items()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the first or last order is best, the bound holds
        epsilon, _ = get_privacy_spent(orders=orders, rdp=rdp, delta=spec.delta)
    return max(float(epsilon), 0.0)


def _round(clients: Iterable[int], population: int) -> dict[str, Any]:
    """What of a round's record :func:`spent` reads, before there is one."""
    entries = [{"client": client} for client in clients]
    return {"clients": entries, "privacy": {"sampling_rate": len(entries) / population}}


def check_budget(
    task: Task, history: Sequence[Mapping[str, Any]], chosen: Sequence[int], online: int
) -> None:
    """Refuse a round that would spend more than the task allows.

    Args:
        task: The task.
        history: Records of the rounds before.
        chosen: The clients of this one.
        online: From how many they were chosen.

    Raises:
        FedgazeError: It would.
    """
    spec = task.server.privacy
    if spec is None or spec.max_epsilon is None:
        return
    after = spent(spec, [*history, _round(chosen, online)])
    if after > spec.max_epsilon:
        raise FedgazeError(
            f"round {len(history) + 1} would spend epsilon={after:.3g}, more than "
            f"server.privacy.max_epsilon={spec.max_epsilon:g}"
        )


def check_privacy(task: Task, kind: type[FedAvg], count: int) -> None:
    """Refuse what would make the reported epsilon untrue.

    Args:
        task: The task.
        kind: Its strategy.
        count: How many clients train in a round.

    Raises:
        FedgazeError: What the noise does not cover would leave clients, the strategy does not take
            the plain mean, or more would be spent than the task allows.
    """
    spec = task.server.privacy
    if spec is None:
        return
    if find_spec("opacus") is None:
        raise FedgazeError(
            "server.privacy needs Opacus to say what is spent: pip install 'fedgaze[privacy]'"
        )
    if kind.__name__ not in ("FedAvg", "FedBN", "FedProx"):
        raise FedgazeError(
            f"server.privacy and server.strategy={kind.__name__} do not go together: the noise is "
            "that of a mean; use FedAvg, FedProx or FedBN"
        )
    if not spec.allow_uncovered:
        for key in _uncovered(task):
            raise FedgazeError(
                f"{key} lets something out that server.privacy's noise does not cover: leave it "
                "out, or set server.privacy.allow_uncovered=true to have it all the same"
            )
    if task.contribution.by != "none":
        raise FedgazeError(
            f"contribution={task.contribution.by} and server.privacy do not go together: what a "
            "client adds is measured without the noise that covers it"
        )
    noise = spec.count_noise or count / 20
    if spec.clipping == "adaptive" and spec.noise_multiplier >= 2 * noise:
        raise FedgazeError(
            f"server.privacy.noise_multiplier={spec.noise_multiplier:g} with clipping=adaptive "
            f"needs count_noise above {spec.noise_multiplier / 2:g}, and it is {noise:g}"
            + ("" if spec.count_noise else f", a twentieth of the {count} clients of a round")
        )
    if spec.sampling == "poisson" and (count == task.num_clients or _named(task)):
        raise FedgazeError(
            "server.privacy.sampling=poisson counts on a secret draw of clients, and this task "
            "draws none: set sampling=known, or clients_per_round below num_clients"
        )
    if spec.max_epsilon is not None and (planned := _planned(task, spec, count)) > spec.max_epsilon:
        raise FedgazeError(
            f"num_rounds={task.num_rounds} would spend epsilon={planned:.3g}, more than "
            f"server.privacy.max_epsilon={spec.max_epsilon:g}: take fewer rounds or more noise"
        )


def _named(task: Task) -> bool:
    return task.selection is not None and task.selection.by != "random"


def _uncovered(task: Task) -> Sequence[str]:
    """What the task says that would let out more than merged weights and scalars."""
    keys = []
    if task.xai.enabled and task.xai.share in ("maps", "overlays"):
        keys.append(f"xai.share={task.xai.share}")
    if task.selection is not None and task.selection.by == "metric":
        keys.append("selection.by=metric")
    return keys


def _planned(task: Task, spec: PrivacySpec, count: int) -> float:
    """What all rounds will have spent if every client is always there."""
    everybody = range(task.num_clients)
    rounds = [choose(task, count, number + 1, everybody, []) for number in range(task.num_rounds)]
    return spent(spec, [_round(chosen, task.num_clients) for chosen in rounds])
