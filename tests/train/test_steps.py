"""What steps were taken, seen from outside of any loop."""

import pytest
import torch
from torch import nn

from fedgaze.train.steps import watched_steps


def step(optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()


def test_rates_add_up_by_weight() -> None:
    """Two groups with rates of their own, a schedule that halves them, a frozen layer."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    optimiser = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 1.0},
            {"params": model[1].parameters(), "lr": 0.25},
            {"params": model[2].parameters(), "lr": 8.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5)
    with watched_steps(model) as steps:
        for _ in range(3):
            step(optimiser, model)
            schedule.step()
    step(optimiser, model)
    assert steps.rates == {
        "0.weight": pytest.approx(1.75),  # 1 + 0.5 + 0.25
        "0.bias": pytest.approx(1.75),
        "1.weight": pytest.approx(0.4375),
        "1.bias": pytest.approx(0.4375),
    }
    assert steps.others == []


def test_other_models_are_no_concern() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with watched_steps(model) as steps:
        step(torch.optim.Adam(other.parameters()), other)
    assert steps.rates == {}
    assert steps.others == []


def test_what_is_not_plain_is_named() -> None:
    for kind, options, name in (
        (torch.optim.AdamW, {}, "AdamW"),
        (torch.optim.SGD, {"momentum": 0.9}, "SGD with momentum"),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, "SGD with momentum"),
    ):
        model = nn.Linear(2, 2)
        with watched_steps(model) as steps:
            step(kind(model.parameters(), lr=0.1, **options), model)
        assert steps.others == [name]
