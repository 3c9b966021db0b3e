"""Terms that keep local training near what all clients want, whatever loop trains."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

__all__ = ["Drift", "held_back"]


@dataclass(frozen=True)
class Drift:
    """What is added to the gradient of each step.

    Attributes:
        proximal_mu: FedProx's ``mu`` (Li et al. 2020, arXiv:1812.06127, Eq. 2): the local loss gets
            ``mu / 2 · ||w - w_received||²``, whose gradient is ``mu · (w - w_received)``.
        controls: SCAFFOLD's ``c - c_i`` by a parameter's name (Karimireddy et al. 2020,
            arXiv:1910.06378, Algorithm 1, line 10); empty for none.
    """

    proximal_mu: float = 0.0
    controls: Mapping[str, Tensor] = field(default_factory=dict)


@contextmanager
def held_back(model: nn.Module, drift: Drift) -> Iterator[None]:
    """Add a drift's terms to every gradient while a model is trained.

    The terms enter in the backward pass, so that a loop which knows nothing of them has them as
    well. A loop that adds up the gradients of several backward passes before a step adds them up
    as often.

    Args:
        model: Its weights as they were received.
        drift: The terms.
    """
    with ExitStack() as hooks:
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            if drift.proximal_mu:
                hook = partial(_pulled, weight, weight.detach().clone(), drift.proximal_mu)
                hooks.callback(weight.register_hook(hook).remove)
            if (control := drift.controls.get(name)) is not None:
                hook = partial(_shifted, control.to(weight.device, weight.dtype))
                hooks.callback(weight.register_hook(hook).remove)
        yield


def _pulled(weight: Tensor, received: Tensor, mu: float, gradient: Tensor) -> Tensor:
    return gradient + mu * (weight.detach() - received)


def _shifted(control: Tensor, gradient: Tensor) -> Tensor:
    return gradient + control
