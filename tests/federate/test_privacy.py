"""Differential privacy: what is clipped, how much noise there is, and what epsilon says."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from scipy import integrate, optimize, stats
from tests.federate.bench import Bench
from tests.federate.conftest import Silent
from tests.federate.test_resume import Stop, StopsIn, read

from fedgaze.config import PrivacySpec, parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare, resume, start
from fedgaze.federate import privacy as module
from fedgaze.federate import server as server_module
from fedgaze.federate.client import Client
from fedgaze.federate.exchange import unpack
from fedgaze.federate.memory import restore_memory, strategy_memory
from fedgaze.federate.privacy import spent
from fedgaze.store import Run, load_tensors

Small = Callable[..., dict[str, Any]]
CarryOut = Callable[..., Run]


def privacy(**keys: Any) -> dict[str, Any]:
    """A task's ``server`` with a fixed norm of 1 and as much noise, but for these keys."""
    strategy = keys.pop("strategy", "fedavg")
    return {"strategy": strategy, "privacy": {"clipping_norm": 1.0, "noise_multiplier": 1.0} | keys}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, tuple[int, ...]]]:
    """No noise; what was asked for, as standard deviations and shapes."""
    asked: list[tuple[float, tuple[int, ...]]] = []

    def normal(mean: float, deviation: float, size: tuple[int, ...] | None = None) -> Any:
        asked.append((deviation, () if size is None else tuple(size)))
        return mean + np.zeros(size or ())

    monkeypatch.setattr(np.random, "normal", normal)
    return asked


def test_updates_are_clipped_as_a_whole_and_count_the_same(
    tmp_path: Path, quiet: list[tuple[float, tuple[int, ...]]]
) -> None:
    """From (1, 1) and 2: client 0 moves by (6, 0) and 8, of length 10, and is cut to (0.6, 0), 0.8.

    Client 1 moves by (0.3, 0.4) and 0 and stays. Both count the same, whatever they say of samples.
    """
    made = Bench(tmp_path, 2, {"scalar": True}, server=privacy(noise_multiplier=3.0))
    made.state = {"w": torch.tensor([1.0, 1.0]), "scale": torch.tensor(2.0)}
    far = {"w": torch.tensor([7.0, 1.0]), "scale": torch.tensor(10.0)}
    near = {"w": torch.tensor([1.3, 1.4]), "scale": torch.tensor(2.0)}
    made.round([far, near], [1, 1000])
    assert made.w == pytest.approx([1.45, 1.2])
    assert made.state["scale"].item() == pytest.approx(2.4)
    assert quiet == [(1.5, (2,)), (1.5, (1,))]  # 3 · 1 / 2


def test_noise_is_for_as_many_as_answered(
    tmp_path: Path, quiet: list[tuple[float, tuple[int, ...]]]
) -> None:
    """With 3 of 4 updates one client moves the mean by C/3, so that much noise it takes."""
    made = Bench(tmp_path, 4, {}, server=privacy(noise_multiplier=3.0))
    made.round([[0.5, 0.0], None, [0.5, 0.0], [0.5, 0.0]], [1] * 4)
    assert made.w == [0.5, 0.0]
    assert quiet == [(1.0, (2,))]


def test_noise_has_the_deviation_it_should(tmp_path: Path) -> None:
    """20,000 weights: the deviation is known to half a percent, the mean to 0.007 of it."""
    made = Bench(tmp_path, 4, {"bulk": 20_000}, server=privacy(clipping_norm=2.0))
    made.round([{"w": torch.ones(2)}] * 4, [1] * 4)
    noise = made.state["bulk"]
    assert noise.std().item() == pytest.approx(1.0 * 2.0 / 4, rel=0.02)
    assert abs(noise.mean().item()) < 0.02
    assert stats.kstest((noise / 0.5).numpy(), "norm").pvalue > 1e-4


def test_noise_is_nobodys_to_guess(tmp_path: Path) -> None:
    """Neither the task's seed nor a seed in a task's own code has a say in it."""
    noises = []
    for name in ("a", "b"):
        made = Bench(tmp_path / name, 2, {}, server=privacy())
        np.random.seed(0)  # noqa: NPY002 - Flower draws from this generator
        made.round([[1.0, 0.0]] * 2, [1, 1])
        noises.append(made.w)
        # The generator is where it was.
        assert np.random.rand() == pytest.approx(0.5488135)  # noqa: NPY002
    assert noises[0] != noises[1]


def test_counts_and_variances_survive_the_noise(tmp_path: Path) -> None:
    made = Bench(tmp_path, 2, {"norm": True}, server=privacy(noise_multiplier=50.0))
    for _ in range(3):
        answer = {"w": torch.ones(2), "norm.num_batches_tracked": torch.tensor(10**6)}
        made.round([answer, answer], [1, 1])
        assert made.state["norm.num_batches_tracked"].item() == 0
        assert (made.state["norm.running_var"] >= 0).all()
    assert not torch.equal(made.state["norm.running_mean"], torch.zeros(2))


def test_an_update_without_length_is_a_failure(tmp_path: Path) -> None:
    """Flower would divide by its length and end the run."""
    made = Bench(tmp_path, 3, {}, server=privacy())
    made.round([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [1] * 3)
    assert made.server.record["failures"] == [
        {"client": 0, "reason": "the update changes nothing, and cannot be clipped"}
    ]
    assert made.w != [0.0, 0.0]


ADAPTIVE = {"clipping": "adaptive", "count_noise": 0.6, "norm_learning_rate": 0.5}


@pytest.mark.parametrize(
    ("length", "expected"), [(9.0, math.exp(0.5 * 0.5)), (0.1, math.exp(-0.5 * 0.5))]
)
def test_adaptive_clipping_follows_the_updates(
    tmp_path: Path, quiet: list[tuple[float, tuple[int, ...]]], length: float, expected: float
) -> None:
    """``C · exp(0.5 (clipped - 0.5))``: up where all are clipped, down where none is.

    The noise is that of the norm to which the updates were clipped, not of the next, with
    ``z_Δ = (z⁻² - (2 σ_b)⁻²)^(-1/2)``; the count gets ``σ_b`` (Andrew et al. 2021, Theorem 1).
    """
    made = Bench(tmp_path, 2, {}, server=privacy(**ADAPTIVE))
    made.round([[length, 0.0], [length, 0.0]], [1, 1])
    assert made.w == pytest.approx([min(length, 1.0), 0.0])
    assert vars(made.strategy)["clipping_norm"] == pytest.approx(expected)
    deviation = (1 - 1.2**-2) ** -0.5 * 1.0 / 2
    assert quiet == [(0.6, ()), (pytest.approx(deviation), (2,))]


def test_the_norm_settles_where_half_are_clipped(
    tmp_path: Path, quiet: list[tuple[float, tuple[int, ...]]]
) -> None:
    """Five clients with updates of length 1 to 5: from either side the norm comes to about 3."""
    for start_norm in (0.05, 80.0):
        made = Bench(
            tmp_path / str(start_norm),
            5,
            {},
            server=privacy(**(ADAPTIVE | {"clipping_norm": start_norm})),
        )
        for _ in range(60):
            base = made.state["w"]
            made.round([{"w": base + torch.tensor([float(n), 0.0])} for n in range(1, 6)], [1] * 5)
        assert 2.5 < vars(made.strategy)["clipping_norm"] < 3.5


def test_the_norm_is_remembered(tmp_path: Path) -> None:
    made = Bench(tmp_path, 2, {}, server=privacy(**ADAPTIVE))
    made.round([[9.0, 0.0], [9.0, 0.0]], [1, 1])
    other = made.server.new_strategy(1)
    restore_memory(other, strategy_memory(made.strategy))
    assert vars(other)["clipping_norm"] == vars(made.strategy)["clipping_norm"] != 1.0


@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
def test_clients_clip_what_they_send(
    carry_out: CarryOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clipping: str
) -> None:
    """Whatever leaves a client is at most as long as the norm; what it trained stays whole."""
    lengths: list[float] = []
    honest = server_module.read_reply

    def seen(reply: Any, client: int, like: Any, asked: Any) -> Any:
        state = unpack(RecordDict(reply.content).array_records["arrays"], like)
        received = load_tensors(tmp_path / "run" / "checkpoints" / "round_0.safetensors")
        assert state["norm1.num_batches_tracked"] == received["norm1.num_batches_tracked"]
        changes = [(state[name].double() - received[name]).square().sum() for name in state]
        lengths.append(float(sum(changes)) ** 0.5)
        return honest(reply, client, like, asked)

    monkeypatch.setattr(server_module, "read_reply", seen)
    keys = ADAPTIVE if clipping == "adaptive" else {}
    server = privacy(**keys | {"side": "client", "clipping_norm": 0.25})
    run = carry_out(num_rounds=1, server=server, xai={"share": "profile"})
    assert lengths == pytest.approx([0.25] * 3, rel=1e-4)
    record = run.summary["rounds"][0]
    assert record["failures"] == []
    assert record["clients"][0]["explanation"]["shared"] == "profile"
    assert record["privacy"]["clipping_norm"] == 0.25
    [local] = run.path.glob("clients/client_0/local_model/small/*.safetensors")
    trained, received = load_tensors(local), load_tensors(run.checkpoint(0))
    assert float(sum((trained[n].double() - received[n]).square().sum() for n in trained)) > 1


def exact_epsilon(deviation: float, delta: float) -> float:
    """Of one Gaussian mechanism: Balle and Wang 2018, arXiv:1805.06530, Theorem 8."""

    def excess(epsilon: float) -> float:
        half, shift = 1 / (2 * deviation), epsilon * deviation
        likely = stats.norm.logcdf(-half - shift) + epsilon
        return float(stats.norm.cdf(half - shift) - math.exp(likely)) - delta

    return float(optimize.brentq(excess, 0, 1000))


def rounds(*clients: list[int], rate: float = 0.2) -> list[dict[str, Any]]:
    return [
        {"clients": [{"client": c} for c in each], "privacy": {"sampling_rate": rate}}
        for each in clients
    ]


def spec(**keys: Any) -> PrivacySpec:
    return PrivacySpec(**({"clipping_norm": 1.0, "noise_multiplier": 1.0} | keys))


def test_epsilon_is_what_googles_accountant_says() -> None:
    """Computed with dp-accounting 0.6, which Opacus has nothing in common with: ten rounds, z = 1.

    Its Rényi accountant gives the same; its tight one (privacy loss distributions) the exact value.
    """
    assert spent(spec(), rounds(*[[3]] * 10)) == pytest.approx(19.05359753163139)
    assert exact_epsilon(1 / math.sqrt(10), 1e-5) == pytest.approx(17.85658683, rel=1e-6)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("times", [1, 10, 100])
def test_epsilon_of_known_rounds_bounds_the_exact_one_closely(
    multiplier: float, times: int
) -> None:
    """``k`` Gaussian mechanisms are one with ``z / √k`` (Dong et al. 2022, Corollary 3.3)."""
    said = spent(spec(noise_multiplier=multiplier), rounds(*[[3]] * times))
    exact = exact_epsilon(multiplier / math.sqrt(times), 1e-5)
    assert exact <= said <= 1.2 * exact + 0.02


def test_epsilon_is_that_of_the_client_who_took_part_most() -> None:
    history = rounds([0, 1], [1, 2], [1, 3], [4, 5])
    three = exact_epsilon(1 / math.sqrt(3), 1e-5)
    assert three <= spent(spec(), history) <= 1.1 * three
    assert spent(spec(), history) == spent(spec(), rounds([7], [7], [7]))
    unmerged = [*history, {"clients": [{"client": 1}], "not_merged": "too few"}]
    assert spent(spec(), unmerged) == spent(spec(), history)
    assert spent(spec(), []) == 0.0


def test_epsilon_of_sampled_rounds_is_the_integral() -> None:
    """Mironov et al. 2019, arXiv:1908.10530, section 3.2, by quadrature.

    ``A_α = E[((1-q) + q exp((2x - 1) / 2σ²))^α]`` for x normal of deviation σ; the divergence of 50
    rounds is ``50 log A_α / (α - 1)``, and Balle et al. 2020, Theorem 21, turns it into epsilon.
    """
    q, sigma, steps, delta = 4 / 20, 1.0, 50, 1e-5
    best = math.inf
    for alpha in np.arange(1.1, 12, 0.1):

        def integrand(x: float, alpha: float = alpha) -> float:
            ratio = (1 - q) + q * math.exp((2 * x - 1) / (2 * sigma**2))
            return float(ratio**alpha * stats.norm.pdf(x, scale=sigma))

        value, _ = integrate.quad(integrand, -30, 40, limit=200)
        divergence = steps * math.log(value) / (alpha - 1)
        tail = math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)
        best = min(best, divergence + tail)
    said = spent(spec(sampling="poisson"), rounds(*[[1, 2, 3, 4]] * steps))
    assert said == pytest.approx(best, rel=1e-4)
    # Where fewer clients are there to draw from, a client is drawn more often, and pays for it.
    dear = rounds(*[[1, 2, 3, 4]] * steps, rate=0.8)
    assert spent(spec(sampling="poisson"), dear) > 2 * said
    mixed = [*rounds(*[[1]] * 25), *rounds(*[[1]] * 25, rate=0.8)]
    assert said < spent(spec(sampling="poisson"), mixed) < spent(spec(sampling="poisson"), dear)
    known = spent(spec(), rounds(*[[1, 2, 3, 4]] * steps))
    assert said < known / 2


def test_epsilon_stands_in_each_round_and_goes_on_after_a_stop(
    small: Small, tmp_path: Path
) -> None:
    values = small(
        num_rounds=4, clients_per_round=2, xai={"enabled": False}, server=privacy(**ADAPTIVE)
    )
    start(parse_task(values), tmp_path / "whole", Silent())
    with pytest.raises(Stop):
        start(parse_task(values), tmp_path / "cut", StopsIn(3))
    resume(tmp_path / "cut", None, Silent())
    spent_by_round = []
    for name in ("whole", "cut"):
        entries = [each["privacy"] for each in read(tmp_path / name)["rounds"]]
        assert all(each["delta"] == 1e-5 for each in entries)
        assert all(each["noise_multiplier"] == 1.0 for each in entries)
        spent_by_round.append([each["epsilon"] for each in entries])
        taken: dict[int, int] = {}
        for record in read(tmp_path / name)["rounds"]:
            for entry in record["clients"]:
                taken[entry["client"]] = taken.get(entry["client"], 0) + 1
            exact = exact_epsilon(1 / math.sqrt(max(taken.values())), 1e-5)
            assert exact <= record["privacy"]["epsilon"] <= 1.1 * exact
    assert spent_by_round[0] == spent_by_round[1]
    assert spent_by_round[0][-1] > spent_by_round[0][0]
    norms = [each["privacy"]["clipping_norm"] for each in read(tmp_path / "cut")["rounds"]]
    assert norms[0] == 1.0
    assert len(set(norms)) == 4  # it goes on adapting, and does not begin again at 1


def test_fedbn_keeps_its_layers_out_of_the_noise(carry_out: CarryOut) -> None:
    run = carry_out(server=privacy(strategy="fedbn", side="client"), xai={"enabled": False})
    assert not any("norm" in name for name in load_tensors(run.checkpoint(2)))
    record = run.summary["rounds"][1]
    assert record["global"]["judged_by"] == "clients"
    assert record["failures"] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "fedmedian"}, "server.privacy and server.strategy=FedMedian do not go"),
        ({"strategy": "krum"}, "FedAvg, FedProx or FedBN"),
        ({"clipping": "adaptive"}, "needs count_noise above 0.5, and it is 0.15, a twentieth of"),
        ({"clipping": "adaptive", "count_noise": 0.5}, "above 0.5, and it is 0.5$"),
        ({"sampling": "poisson"}, "this task draws none: set sampling=known"),
        ({"max_epsilon": 5.0}, "num_rounds=2 would spend epsilon=.*, more than .*max_epsilon=5:"),
        ({"noise_multiplier": 0}, "greater than or equal to 0.01"),
        ({"clipping_norm": 0}, "greater than 0"),
        ({"delta": 1}, "less than 1"),
        ({"side": "both"}, "allowed are server, client"),
        ({"cliping_norm": 3}, "unknown key 'server.privacy.cliping_norm'=3; did you mean"),
    ],
)
def test_what_would_make_epsilon_untrue_is_refused(
    small: Small, changes: dict[str, Any], said: str
) -> None:
    values = small(server=privacy(**changes), xai={"share": "profile"})
    with pytest.raises(FedgazeError, match=said):
        prepare(parse_task(values))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"xai": {"share": "overlays"}}, "xai.share=overlays lets something out"),
        ({"xai": {"share": "maps"}}, "xai.share=maps lets something out"),
        (
            {"xai": {"share": "profile"}, "selection": {"by": "metric", "count": 2}},
            "selection.by=metric lets something out",
        ),
    ],
)
def test_what_the_noise_does_not_cover_needs_a_word(
    small: Small, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(FedgazeError, match=f"{said}.*allow_uncovered=true"):
        prepare(parse_task(small(server=privacy(), **changes)))
    prepare(parse_task(small(server=privacy(allow_uncovered=True), **changes)))


def test_a_run_stops_before_it_spends_too_much(tmp_path: Path) -> None:
    """Planned for clients that take turns; then only the same ones are there."""
    made = Bench(
        tmp_path,
        4,
        {},
        clients_per_round=2,
        num_rounds=2,
        random_seed=2,
        server=privacy(max_epsilon=6.5),
    )
    first = made.send()
    made.server.record["clients"] = [{"client": client} for client in first]
    made.server.run.summary["rounds"].append(made.server.record)
    gone = [node for node in made.nodes.there if made.server.numbers[node] not in first]
    for node in gone:
        made.nodes.there.remove(node)
    with pytest.raises(FedgazeError, match=r"round 2 would spend epsilon=.*max_epsilon=6\.5"):
        made.send()


def test_without_opacus_the_remedy_is_named(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(FedgazeError, match=r"pip install 'fedgaze\[privacy\]'"):
        prepare(parse_task(small(server=privacy())))


def test_training_that_changes_nothing_is_told(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Client._outgoing

    def idle(self: Client, state: Any, received: Any) -> Any:
        return honest(self, received if self.number == 1 else state, received)

    monkeypatch.setattr(Client, "_outgoing", idle)
    run = carry_out(num_rounds=1, xai={"enabled": False}, server=privacy())
    [failure] = run.summary["rounds"][0]["failures"]
    assert failure["client"] == 1
    assert failure["reason"].startswith("training changed nothing")
    json.dumps(run.summary)
