"""Ways to run a model within a context, and small networks, for the tests of the rules."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Within = Callable[[], AbstractContextManager[Any]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small lose time by being shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def back() -> Callable[..., Tensor]:
    """What comes back to images from a one at the class of each."""

    def run(
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        within: Within,
        classes: Tensor | int = 0,
    ) -> Tensor:
        leaf = images.detach().clone().requires_grad_()
        chosen = torch.as_tensor(classes).expand(len(images))
        with within():
            scores = model(leaf.clone()).gather(1, chosen[:, None])[:, 0]
            return torch.autograd.grad(scores, leaf, torch.ones_like(scores))[0]

    return run


@pytest.fixture
def unsettle() -> Callable[..., nn.Module]:
    """Statistics, scales and shifts of BatchNorm that are not 0 and 1."""

    def change(model: nn.Module, eps: float | None = None) -> nn.Module:
        generator = torch.Generator().manual_seed(0xB0)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                with torch.no_grad():
                    for tensor, low, high in (
                        (module.running_mean, -0.3, 0.3),
                        (module.running_var, 0.5, 2.0),
                        (module.weight, 0.5, 1.5),
                        (module.bias, -0.1, 0.1),
                    ):
                        tensor.copy_(torch.rand(tensor.shape, generator=generator))
                        tensor.mul_(high - low).add_(low)
                module.eps = module.eps if eps is None else eps
        return model.eval()

    return change
