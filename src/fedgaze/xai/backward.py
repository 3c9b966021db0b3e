"""The way back: gradients of scores, also where float16 would lose them."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gradients_of"]


def gradients_of(
    scores: Tensor, inputs: Sequence[Tensor], *, retain: bool = False, graph: bool = False
) -> list[Tensor | None]:
    """Go back from the sum of the scores.

    Args:
        scores: ``(N,)``.
        inputs: On what they may depend.
        retain: Whether the way can be gone again.
        graph: Whether the gradients have a graph of their own.

    Returns:
        A gradient an input, float32 if anything is float16; None where the scores do not depend on
        it.
    """
    if not scores.requires_grad:
        return [None] * len(inputs)
    retain = retain or graph
    if torch.float16 not in {tensor.dtype for tensor in (scores, *inputs)}:
        return _back(scores, 1, inputs, retain=retain, graph=graph)
    # float16 ends at 6e-8 and at 65504: start high and come down until nothing overflows.
    scale = 2.0**15 if scores.dtype == torch.float16 else 2.0**24
    while True:
        found = _back(scores, scale, inputs, retain=True, graph=graph)
        if scale == 1 or all(g is None or bool(g.isfinite().all()) for g in found):
            return [None if g is None else g.float() / scale for g in found]
        scale = max(1.0, scale / 2**6)


def _back(
    scores: Tensor, scale: float, inputs: Sequence[Tensor], *, retain: bool, graph: bool
) -> list[Tensor | None]:
    # Unseen by what changes the way back: relevance would share the sum among images.
    unseen = torch._C.DisableTorchFunction()  # noqa: SLF001 - no public name
    with unseen, torch.inference_mode(mode=False), torch.enable_grad():
        # From one number, and not from the scores with a factor for each: given factors, torch
        # imports SymPy, which takes seconds.
        total = scores.sum() if scale == 1 else (scores.float() * scale).sum()
    return list(
        torch.autograd.grad(
            total, inputs, retain_graph=retain, create_graph=graph, allow_unused=True
        )
    )
