"""What each strategy makes of updates, against numbers worked by hand.

Each goes through the server's own path: replies are read, the strategy's part of them is merged by
Flower's class, and what comes out is settled. Replies come in reversed order of the clients.
"""

import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federate.bench import TOY, Bench
from tests.federate.conftest import Silent
from torch.nn import functional as F

from fedgaze.config import parse_task
from fedgaze.data import hold_back, load_digits, partition
from fedgaze.federate import prepare, start
from fedgaze.federate.client import Client, Order
from fedgaze.federate.exchange import pack
from fedgaze.models import DigitsNet
from fedgaze.store import load_tensors

Make = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path) -> Make:
    def make(
        strategy: str,
        clients: int,
        model: dict[str, Any] | None = None,
        name: str = "bench",
        **arguments: Any,
    ) -> Bench:
        spec = {"_target_": strategy, **arguments}
        return Bench(tmp_path / name, clients, model or {}, strategy=spec)

    return make


def test_fedavg(bench: Make) -> None:
    """Weights by samples (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1)."""
    made = bench("FedAvg", 3)
    made.round([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], [1, 1, 2])
    assert made.w == [6.0, 11.5]  # (1 + 3 + 2·10) / 4, (2 + 4 + 2·20) / 4
    made.round([[8.0, 0.0], [0.0, 0.0], [0.0, 4.0]], [3, 4, 1])
    assert made.w == [3.0, 0.5]


def test_fedprox_merges_as_fedavg_and_tells_clients_its_mu(bench: Make) -> None:
    made = bench("FedProx", 3, proximal_mu=0.7)
    made.round([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], [1, 1, 2])
    assert made.w == [6.0, 11.5]
    for message in made.sent:
        assert message.content.config_records["config"]["proximal-mu"] == 0.7


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [({"_target_": "FedAvg"}, 3.0), ({"_target_": "FedProx", "proximal_mu": 1.0}, 2.0)],
)
def test_the_proximal_term_is_in_the_local_loss(
    tmp_path: Path, strategy: dict[str, Any], expected: float
) -> None:
    """Two steps of 0.5 down ``(w - 4)² / 2`` from 0 (Li et al. 2020, arXiv:1812.06127, Eq. 2).

    The first: 0 + 0.5·4 = 2. The second: 2 + 0.5·2 = 3, and with ``mu = 1``, whose term pulls by
    1·(2 - 0), 2 + 0.5·(2 - 2) = 2.
    """
    (tmp_path / "models.py").write_text(TOY)
    values = {
        "model": {"_target_": "models.Toy"},
        "dataset": {"classes": ["1", "7"]},
        "num_clients": 2,
        "num_rounds": 1,
        "num_epochs": 2,
        "learning_rate": 0.5,
        "xai": {"enabled": False},
        "strategy": strategy,
    }
    run = start(parse_task(values, tmp_path), tmp_path / "run", Silent())
    assert load_tensors(run.checkpoint(1))["w"].tolist() == [expected, expected]


def test_fedavgm(bench: Make) -> None:
    """``v = 0.5 v + (w - mean)``, ``w = w - 0.25 v`` (Hsu et al. 2019, arXiv:1909.06335)."""
    made = bench("fedavgm", 2, server_momentum=0.5, server_learning_rate=0.25)
    made.round([[4.0, 0.0], [12.0, 0.0]], [1, 1])
    assert made.w == [2.0, 0.0]  # v = 0 - 8; w = 0 + 2
    made.round([[4.0, 8.0], [4.0, 8.0]], [1, 3])
    assert made.w == [3.5, 2.0]  # v = (-4 - 2, -8); w = 2 + 1.5, 0 + 2
    made.round([[3.5, 2.0], [3.5, 2.0]], [5, 1])
    assert made.w == [4.25, 3.0]  # the clients stand still, the momentum goes on: v = (-3, -4)


def test_fedadam(bench: Make) -> None:
    """Reddi et al. 2021, arXiv:2003.00295, Algorithm 2, with Flower's correction of the step.

    ``m = β1 m + (1-β1) Δ``, ``v = β2 v + (1-β2) Δ²``, ``x = x + η_t m / (√v + τ)``, where Flower
    takes Adam's ``η_t = η √(1 - β2^(t+1)) / (1 - β1^(t+1))`` and begins with ``v = 0``.
    """
    made = bench("FedAdam", 2, eta=1.0, beta_1=0.5, beta_2=0.75, tau=0.5)
    made.round([[1.0, 0.0], [3.0, 0.0]], [1, 1])  # Δ = 2: m = 1, v = 1
    first = sqrt(1 - 0.75**2) / (1 - 0.5**2) * 1 / (1 + 0.5)
    assert made.w == pytest.approx([first, 0.0])
    made.round([[first + 4, 0.0], [first + 4, 0.0]], [1, 1])  # Δ = 4: m = 2.5, v = 4.75
    second = first + sqrt(1 - 0.75**3) / (1 - 0.5**3) * 2.5 / (sqrt(4.75) + 0.5)
    assert made.w == pytest.approx([second, 0.0])


def test_fedyogi(bench: Make) -> None:
    """``v = v - (1-β2) Δ² sign(v - Δ²)``; no correction of the step."""
    made = bench("FedYogi", 2, eta=3.0, beta_1=0.5, beta_2=0.75, tau=0.5)
    made.round([[1.0, 0.0], [3.0, 0.0]], [1, 1])  # Δ = 2: m = 1, v = 0 + 0.25·4
    assert made.w == [2.0, 0.0]  # 3·1 / (1 + 0.5)
    made.round([[2.5, 0.0], [2.5, 0.0]], [1, 1])  # Δ = 0.5: m = 0.75, v = 1 - 0.25·0.25
    assert made.w == pytest.approx([2 + 3 * 0.75 / (sqrt(0.9375) + 0.5), 0.0])


def test_fedadagrad(bench: Make) -> None:
    """``v = v + Δ²``, ``x = x + η Δ / (√v + τ)``."""
    made = bench("FedAdagrad", 2, eta=2.0, tau=1.0)
    made.round([[2.0, 0.0], [4.0, 0.0]], [1, 1])  # Δ = 3, v = 9
    assert made.w == [1.5, 0.0]
    made.round([[5.5, 0.0], [5.5, 0.0]], [1, 1])  # Δ = 4, v = 25
    assert made.w == pytest.approx([1.5 + 2 * 4 / (5 + 1), 0.0])


def test_fedmedian(bench: Make) -> None:
    """Yin et al. 2018, arXiv:1803.01498, Definition 1: by coordinate, samples do not count."""
    made = bench("FedMedian", 3)
    made.round([[1.0, 10.0], [2.0, -5.0], [100.0, 0.0]], [1, 1, 1000])
    assert made.w == [2.0, 0.0]
    four = bench("FedMedian", 4, name="four")
    four.round([[1.0, 0.0], [2.0, 0.0], [5.0, 1.0], [900.0, 2.0]], [1, 1, 1, 1])
    assert four.w == [3.5, 0.5]


def test_fedtrimmedavg(bench: Make) -> None:
    """The same, Definition 2: ``int(0.25 · 5) = 1`` value off each end of each coordinate."""
    made = bench("FedTrimmedAvg", 5, beta=0.25)
    made.round([[0.0, 7.0], [1.0, 6.0], [3.0, -90.0], [5.0, 2.0], [100.0, 1.0]], [1, 9, 1, 1, 1])
    assert made.w == [3.0, 3.0]  # (1 + 3 + 5) / 3, (1 + 2 + 6) / 3


LINE = [[0.0, 0.0], [1.0, 0.0], [1.5, 0.0], [4.0, 0.0], [50.0, 0.0]]
"""Squared distances to the two nearest, summed: 3.25, 1.25, 2.5, 15.25, 4468.25."""


def test_krum(bench: Make) -> None:
    """Blanchard et al. 2017, arXiv:1703.02757, section 4: the least sum over n - f - 2 = 2."""
    made = bench("Krum", 5, num_malicious_clients=1)
    made.round(LINE, [1, 2, 3, 4, 5])
    assert made.w == [1.0, 0.0]


def test_multi_krum(bench: Make) -> None:
    """The two best of :data:`LINE`; Flower weighs them by samples, the paper does not."""
    made = bench("Multi-Krum", 5, num_malicious_clients=1, num_clients_to_keep=2)
    made.round(LINE, [1, 1, 3, 1, 1])
    assert made.w == [1.375, 0.0]  # (1 + 3·1.5) / 4


def test_bulyan(bench: Make) -> None:
    """El Mhamdi et al. 2018, arXiv:1802.07927, with f = 1 of 7.

    Krum's scores over n - f - 2 = 4 neighbours keep theta = n - 2f = 5: 0, 1, 2, 6 and 7 (sums 90,
    63, 46, 78, 111). Their median is 2, and the theta - 2f = 3 nearest to it are 2, 1 and 0.
    """
    made = bench("Bulyan", 7, num_malicious_clients=1)
    made.round([[x, -x] for x in (0.0, 100.0, 1.0, 2.0, -100.0, 6.0, 7.0)], [1] * 7)
    assert made.w == [1.0, -1.0]


def test_qfedavg(bench: Make) -> None:
    """Li et al. 2020, arXiv:1905.10497, Algorithm 2, with q = 1 and L = 1 / 0.5.

    Client 0: ``Δw = 2·(0+1) = 2``, ``Δ = F·Δw = 2·2``, ``h = Δw² + L·F = 4 + 4``.
    Client 1: ``Δw = 2·(0+3) = 6``, ``Δ = 1·6``, ``h = 36 + 2``. Step: -(4 + 6) / (8 + 38).
    """
    made = bench("q-FedAvg", 2, client_learning_rate=0.5, q=1.0)
    made.round([[-1.0, 0.0], [-3.0, 0.0]], [1, 9], received_loss=[2.0, 1.0])
    assert made.w == pytest.approx([-10 / 46, 0.0])
    for message in made.sent:
        assert message.content.config_records["config"]["judge-received"] == 1


def test_qfedavg_with_q_zero_is_the_mean(bench: Make) -> None:
    made = bench("qfedavg", 2, client_learning_rate=0.1, q=0.0)
    made.round([[-1.0, 4.0], [-3.0, 8.0]], [1, 9], received_loss=[2.0, 1.0])
    assert made.w == pytest.approx([-2.0, 6.0])


def test_qfedavg_weighs_by_the_loss_before_training(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """``F_k(w_t)`` of the algorithm is the loss of what the client received, on what it trains on.

    Flower's example would take the loss while training.
    """
    setup = prepare(parse_task(small(xai={"enabled": False}, num_epochs=3)))
    state = setup.new_learner().get_parameters()
    reply = Client(setup, 1, tmp_path).train(pack(state), 1, Order(judge_received=True))
    digits = load_digits(seed=42).keep(["1", "4", "7"])
    own = partition(digits.train.labels, 3, "dirichlet", 1.0, 42)[1]
    kept, _ = hold_back(digits.train.labels[own], 0.2, 42)
    model = DigitsNet(num_classes=3).eval()
    model.load_state_dict(state)
    expected = F.cross_entropy(model(digits.train[own[kept]]), digits.train.labels[own[kept]])
    metrics = reply.metric_records["metrics"]
    assert metrics["received_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["train_loss"] < 0.9 * expected.item()


NORM = {
    "norm.running_mean": torch.tensor([0.5, -0.5]),
    "norm.running_var": torch.tensor([2.0, 4.0]),
    "norm.num_batches_tracked": torch.tensor(100),
}


def counted(w: list[float], mean: float, batches: int) -> dict[str, torch.Tensor]:
    return {
        "w": torch.tensor(w),
        "norm.running_mean": torch.full((2,), mean),
        "norm.num_batches_tracked": torch.tensor(batches),
    }


@pytest.mark.parametrize(
    ("strategy", "arguments"),
    [
        ("FedAdam", {}),
        ("FedYogi", {}),
        ("FedAdagrad", {}),
        ("FedAvgM", {"server_momentum": 0.9}),
        ("QFedAvg", {"client_learning_rate": 0.1}),
    ],
)
def test_statistics_take_no_steps(bench: Make, strategy: str, arguments: dict[str, float]) -> None:
    """What BatchNorm counted is the mean over the clients, whatever the weights do."""
    made = bench(strategy, 2, {"norm": True}, **arguments)
    loss = {"received_loss": [1.0, 1.0]}
    for _ in range(2):
        answers = [counted([1.0, 1.0], 8.0, 10), counted([2.0, 2.0], 4.0, 30)]
        made.round(answers, [1, 3], **loss)
        assert made.state["norm.running_mean"].tolist() == [5.0, 5.0]
        assert made.state["norm.num_batches_tracked"].item() == 25
    alone = bench(strategy, 2, name="alone", **arguments)
    for _ in range(2):
        alone.round([[1.0, 1.0], [2.0, 2.0]], [1, 3], **loss)
    assert made.w == alone.w


def test_krum_does_not_measure_how_many_batches_there_were(bench: Make) -> None:
    """Client 1 is the best of :data:`LINE`, and has seen far more batches than all others."""
    made = bench("Krum", 5, {"norm": True}, num_malicious_clients=1)
    answers = [counted(w, 0.0, n) for w, n in zip(LINE, (10, 900, 12, 14, 16), strict=True)]
    made.round(answers, [1] * 5)
    assert made.w == [1.0, 0.0]
    assert made.state["norm.num_batches_tracked"].item() == 14  # the median: one client may lie


def test_krum_sees_small_steps_of_large_weights(bench: Make) -> None:
    """:data:`LINE` by tenths around 3000, where float32 has steps of 0.0002.

    Squares of 9 million have steps of 1: nothing is left of distances of 0.0025 to 0.01 in
    ``|x|² + |y|² - 2xy``.
    """
    made = bench("Krum", 5, num_malicious_clients=1)
    made.state = {"w": torch.tensor([3000.0, 3000.0])}
    made.round([[3000 + x / 10, 3000.0] for x, _ in LINE], [1] * 5)
    assert made.w == [torch.tensor(3000.1).item(), 3000.0]


def test_a_single_number_is_merged_as_any_weight(bench: Make) -> None:
    for strategy, arguments in {
        "FedAvg": {},
        "FedMedian": {},
        "Bulyan": {},
        "FedAvgM": {"server_momentum": 0.0},
    }.items():
        made = bench(strategy, 3, {"scalar": True}, name=strategy, **arguments)
        made.round([{"scale": torch.tensor(x)} for x in (1.0, 2.0, 3.0)], [1, 1, 1])
        assert made.state["scale"].shape == ()
        assert made.state["scale"].item() == 2.0


def test_the_order_in_which_a_client_names_its_weights_does_not_matter(bench: Make) -> None:
    made = bench("FedAvgM", 2, {"scalar": True}, server_momentum=0.5)
    made.state = {"w": torch.tensor([1.0, 1.0]), "scale": torch.tensor(1.0)}
    state = {"scale": torch.tensor(5.0), "w": torch.tensor([3.0, 4.0])}
    made.state = dict(reversed(made.state.items()))
    made.round([state, state], [1, 1])
    assert made.w == [3.0, 4.0]
    assert made.state["scale"].item() == 5.0


@pytest.mark.parametrize(
    ("strategy", "clients", "arguments", "said"),
    [
        ("Bulyan", 7, {"num_malicious_clients": 1}, "Bulyan with .*=1 needs 7 updates .* has 6"),
        ("Krum", 5, {"num_malicious_clients": 1}, "Krum with .*=1 needs 5 updates .* has 4"),
        ("FedTrimmedAvg", 4, {"beta": 0.25}, "beta=0.25 cuts nobody off 3 updates"),
    ],
)
def test_too_few_updates_for_a_strategy_are_not_merged(
    bench: Make, strategy: str, clients: int, arguments: dict[str, Any], said: str
) -> None:
    """One client fails: what the strategy promises no longer holds, so nothing is merged."""
    made = bench(strategy, clients, **arguments)
    made.round([None, *[[1.0, 1.0]] * (clients - 1)], [1] * clients)
    assert made.w == [0.0, 0.0]
    assert re.search(said, made.server.record["not_merged"])
