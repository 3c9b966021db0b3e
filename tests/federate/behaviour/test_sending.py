"""What is sent, against numbers by hand."""

import pytest
import torch

from fedgaze.federate.behaviour.sending import clipped, length, noisy, scaled
from fedgaze.federate.behaviour.triggers import generator
from fedgaze.train import State

STATISTICS = frozenset({"mean", "count"})


def state(w: list[float], mean: float, count: int) -> State:
    return {"w": torch.tensor(w), "mean": torch.tensor([mean]), "count": torch.tensor(count)}


RECEIVED, TRAINED = state([1.0, 2.0], 0.5, 10), state([4.0, -2.0], 0.75, 14)


def test_a_scaled_update_by_hand() -> None:
    sent = scaled(RECEIVED, TRAINED, STATISTICS, 10 / 3)
    assert sent["w"].tolist() == pytest.approx([1 + 10, 2 - 40 / 3])
    assert (sent["mean"].item(), sent["count"].item()) == (0.75, 14)
    assert TRAINED["w"].tolist() == [4.0, -2.0]


def test_an_update_is_clipped_to_a_norm() -> None:
    assert length(RECEIVED, TRAINED, STATISTICS) == 5.0  # of (3, -4); statistics do not count
    sent = clipped(RECEIVED, TRAINED, STATISTICS, 2.5)
    assert sent["w"].tolist() == pytest.approx([2.5, 0.0])
    assert sent["mean"].item() == 0.75
    for norm in (5.0, 80.0):  # it is never made longer
        assert torch.equal(clipped(RECEIVED, TRAINED, STATISTICS, norm)["w"], TRAINED["w"])


def test_noise_is_a_tenth_of_the_weights_own_spread() -> None:
    received = {
        "w": 3 + 2 * torch.randn(100_000, generator=generator(1)),
        "bias": torch.zeros(7),
        "scale": torch.tensor(4.0),
        "mean": torch.randn(50, generator=generator(2)),
        "count": torch.tensor(3),
    }
    sent = noisy(received, STATISTICS, 1.0, generator(3))
    noise = sent["w"] - received["w"]
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)
    assert abs(noise.mean().item()) < 0.003
    for name in ("bias", "scale", "mean", "count"):
        assert torch.equal(sent[name], received[name])
    assert torch.equal(sent["w"], noisy(received, STATISTICS, 1.0, generator(3))["w"])
    twice = noisy(received, STATISTICS, 2.0, generator(3))["w"] - received["w"]
    torch.testing.assert_close(twice, 2 * noise, rtol=1e-3, atol=1e-5)
