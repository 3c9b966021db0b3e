"""How far plain SGD could go: the learning rates of all of its steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

__all__ = ["Steps", "watched_steps"]


@dataclass
class Steps:
    """What optimisers did to a model.

    Attributes:
        rates: Learning rates, summed over the steps, by a weight's name.
        others: What stepped that was not plain SGD, in words.
    """

    rates: dict[str, float] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


@contextmanager
def watched_steps(model: nn.Module) -> Iterator[Steps]:
    """Watch every optimiser step that a model's weights take, whatever loop makes it.

    Args:
        model: Steps of other models are no concern.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    steps = Steps()

    def stepped(optimiser: Optimizer, *_: Any) -> None:
        for group in optimiser.param_groups:
            moved = (weight for weight in group["params"] if weight.grad is not None)
            own = [names[id(weight)] for weight in moved if id(weight) in names]
            kind = type(optimiser).__name__
            if own and type(optimiser) is not torch.optim.SGD:
                steps.others.append(kind)
            elif own and (group["momentum"] or group["maximize"]):
                steps.others.append(f"{kind} with momentum")
            for name in own:
                steps.rates[name] = steps.rates.get(name, 0.0) + float(group["lr"])

    handle = register_optimizer_step_post_hook(stepped)
    try:
        yield steps
    finally:
        handle.remove()
