"""How relevance goes back through what has no weights: passed on, or shared by contribution.

What goes back here is relevance itself: the "gradient" of a function is the relevance of its input.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedgaze.xai.rules.numeric import STABILIZER, plainly, pull, stabilized, wide

__all__ = ["Average", "Pass", "Sum"]


class Pass(torch.autograd.Function):
    """Relevance goes on as it is: ``R_x = R_y``.

    For activations (Bach et al., PLOS ONE 2015: the relevance of a neuron is shared among what its
    activation function was given) and for factors that do not depend on the image. Where the result
    is larger than x, since something was broadcast, relevance is summed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        run: Callable[[Tensor], Tensor],
        gate: int = 0,
        scale: bool = False,
    ) -> Tensor:
        """Run it.

        Args:
            ctx: PyTorch's.
            x: The input.
            run: From x to the result.
            gate: How surely the result gates what it is multiplied by; kept for later.
            scale: Whether only its units change; kept for later.
        """
        ctx.gate, ctx.scale = gate, scale
        ctx.shape = x.shape
        return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        """Pass it on."""
        return relevance.sum_to_size(ctx.shape), None, None, None


class Sum(torch.autograd.Function):
    """Each summand gets its share: ``R_a = a / (a + b) R``, ``R_b = b / (a + b) R``.

    The epsilon rule for a layer whose weights are one: Bach et al., PLOS ONE 2015, Eq. 58. A
    summand that does not depend on the image keeps its share, as a bias does.
    """

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any, signs: tuple[float, float], run: Any) -> Tensor:
        """Run it.

        Args:
            ctx: PyTorch's.
            a: A tensor or number.
            b: Another.
            signs: The result is ``signs[0] a + signs[1] b``.
            run: Gives the result, without arguments.
        """
        # Shares are computed here, since what follows may overwrite a in place.
        result: Tensor = run()
        below = stabilized(wide(result), STABILIZER)
        needed = ctx.needs_input_grad
        shares = [
            sign * wide(each) / below if need else None
            for each, sign, need in zip((a, b), signs, needed, strict=False)
        ]
        ctx.save_for_backward(*shares)
        ctx.likes = [(each.shape, each.dtype) if share is not None else None
                     for each, share in zip((a, b), shares, strict=True)]  # fmt: skip
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        """Share it."""
        parts = [
            None if share is None else (share * relevance).sum_to_size(like[0]).to(like[1])
            for share, like in zip(ctx.saved_tensors, ctx.likes, strict=True)
        ]
        return *parts, None, None


class Average(torch.autograd.Function):
    """Each input gets its share of what a fixed linear map makes: pooling, means, interpolation.

    ``R_i = sum_j x_i c_ij / (sum_k x_k c_kj) R_j``: the epsilon rule for weights c.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Run it: from x to the result, which is linear in x."""
        ctx.save_for_backward(x)
        ctx.run = run
        return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None]:
        """Share it."""
        (x,) = ctx.saved_tensors
        with plainly(x):
            values = wide(x)
            result, back = pull(ctx.run, values)
            shared = values * back(wide(relevance) / stabilized(result, STABILIZER))
            return shared.to(x.dtype), None
