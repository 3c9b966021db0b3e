"""What the rules compute with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["STABILIZER", "plainly", "pull", "stabilized", "wide"]

STABILIZER = 1e-6
"""What keeps denominators from zero where no rule says otherwise."""


def stabilized(z: Tensor, epsilon: float) -> Tensor:
    """``z + epsilon sign(z)``, where the sign of zero is one.

    >>> stabilized(torch.tensor([2.0, 0.0, -2.0]), 0.5)
    tensor([ 2.5000,  0.5000, -2.5000])
    """
    return z + epsilon * (2 * (z >= 0).to(z) - 1)


def wide(tensor: Tensor) -> Tensor:
    """In float32 or better: shares of sums in half precision would not add up."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def pull(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Run a linear map, and give its transpose.

    Args:
        run: Linear (or affine) in its argument.
        x: Where to run it.

    Returns:
        ``run(x)``, and a function from anything of that shape to what its transpose makes of it.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = run(leaf)

    def back(factors: Tensor) -> Tensor:
        with torch.enable_grad():
            # One number: given factors, torch.autograd.grad imports SymPy, which takes seconds.
            total = (result * factors).sum()
        return torch.autograd.grad(total, leaf)[0]

    return result.detach(), back


@contextmanager
def plainly(x: Tensor) -> Iterator[None]:
    """Compute on the way back as written: seen by no mode, and not in half precision."""
    with (
        torch._C.DisableTorchFunction(),  # noqa: SLF001 - there is no public name
        torch.autocast(x.device.type, enabled=False),
    ):
        yield
