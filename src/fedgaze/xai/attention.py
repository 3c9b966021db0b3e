"""Attention: the weights of every block, read while a model runs, whoever wrote it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedgaze.errors import FedgazeError
from fedgaze.xai.tokens import Layout, token_layout

__all__ = ["Attention", "visible_attention", "watching_attention"]

_VISIBLE = ("sdpa", "eager")
_SOFTMAX = frozenset({F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax})


@contextmanager
def watching_attention(graph: bool = False, count: int | None = None) -> Iterator["Attention"]:
    """Keep the attention weights of what runs within, in this thread.

    Seen are `torch.nn.functional.scaled_dot_product_attention` (the weights are computed again
    from queries and keys), ``multi_head_attention_forward`` and with it
    `torch.nn.MultiheadAttention` (its fast path is off meanwhile), and, in code that spells
    attention out, a softmax over the last dimension of ``(…, T, T)`` or ``(N, heads, T, S)``. The
    model's outputs are the same up to rounding.

    Args:
        graph: Whether gradients to the weights are wanted. Then a graph begins at the first
            weights, also under ``no_grad``, and `torch.autograd.grad` goes from a score to them.
        count: How many images run, to take heads apart where code lays them into the batch.

    Yields:
        What was seen.

    Raises:
        FedgazeError: Gradients are wanted in the model's own ``inference_mode`` block.

    >>> query = torch.tensor([[[[0.0], [0.0]]]])
    >>> with watching_attention() as seen:
    ...     out = F.scaled_dot_product_attention(query, query, query)
    >>> seen.weights
    [tensor([[[[0.5000, 0.5000],
              [0.5000, 0.5000]]]])]
    """
    seen = Attention(graph, count)
    enabled = torch.is_grad_enabled()
    try:
        with seen:
            yield seen
    finally:
        torch.set_grad_enabled(enabled)


@contextmanager
def visible_attention(model: nn.Module) -> Iterator[None]:
    """Let a model of transformers compute attention where `watching_attention` sees it.

    Kernels of other packages (``flash_attention_2``, ``flex_attention``) give way to PyTorch's own
    function, which computes the same, and are back in their place afterwards.
    """
    configs = [getattr(part, "config", None) for part in model.modules()]
    name = "_attn_implementation_internal"
    chosen = [(each, getattr(each, name, None)) for each in {id(c): c for c in configs}.values()]
    hidden = [(each, old) for each, old in chosen if isinstance(old, str) and old not in _VISIBLE]
    try:
        for config, _ in hidden:
            setattr(config, name, "sdpa")
        yield
    finally:
        for config, old in hidden:
            setattr(config, name, old)


class Attention(TorchFunctionMode):
    """The attention weights of a run; see `watching_attention`.

    Attributes:
        weights: ``(N, heads, T, S)`` for each time that attention was computed, in order, each row
            a distribution over S tokens, before dropout; of a model of half precision float32,
            unless its own code made them. Over windows, N counts windows.
    """

    def __init__(self, graph: bool, count: int | None) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self._graph = graph
        self._count = count

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX and _spells_attention(result, args, kwargs):
            # A clone: what follows may work in place.
            return self._keep(result).clone().view_as(result)
        return result

    def between_patches(
        self, count: int, patches: tuple[int, ...] | None, size: tuple[int, ...]
    ) -> tuple[list[Tensor], Layout]:
        """The weights by which the tokens of the images attend to each other, block by block.

        Left out is attention among tokens that are no patches (texts, queries of boxes), and what
        comes after the last block (pooling by attention).

        Args:
            count: How many images ran.
            patches: Positions of the first output of `patch_layers`, or None.
            size: Of the images.

        Returns:
            Weights ``(N, heads, T, T)`` of each block, and how the T tokens lie over the image.

        Raises:
            FedgazeError: There is no attention, or it does not go over all tokens in each block.
        """
        if not self.weights:
            raise FedgazeError(
                "no attention maps captured: the model has no attention, or computes it in a "
                "kernel that PyTorch cannot see into; let it call scaled_dot_product_attention of "
                "torch.nn.functional, or use a method for layers, such as gradcam"
            )
        found = [each for each in self.weights if token_layout(each.shape[-1], patches, size)]
        while found and found[-1].shape[-2] != found[-1].shape[-1]:
            found.pop()
        kept = found or self.weights
        tokens = kept[-1].shape[-1]
        layout = token_layout(tokens, patches, size)
        odd = [each for each in kept if not _over_all(each, count, tokens)]
        if odd or layout is None:
            shape = tuple((odd or kept)[0].shape)
            raise FedgazeError(
                f"attention of shape {shape} for {count} images goes over windows, merged tokens "
                "or something else than all patches, and cannot be followed from block to block; "
                "methods for layers such as gradcam, layercam and eigencam work"
            )
        return kept, layout

    def _attend(  # noqa: PLR0913 - PyTorch's own parameters
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """As documented for `torch.nn.functional.scaled_dot_product_attention`."""
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        wide = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
            scores = (query.to(wide) * factor) @ key.to(wide).transpose(-2, -1)
            if is_causal:
                below = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
                attn_mask = below.tril()
            weights = scores.softmax(-1) if attn_mask is None else _masked(scores, attn_mask)
        weights = self._keep(weights).view_as(weights)
        if dropout_p:
            weights = F.dropout(weights, dropout_p)
        return weights.to(value.dtype) @ value

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """PyTorch's own function, with ours where it calls the fused attention.

        What it calls cannot be watched from here: this mode is off while it handles a call, and
        were it on, the function would hand the call over to it again.
        """
        function = F.multi_head_attention_forward
        ours = {"scaled_dot_product_attention": self._attend, "has_torch_function": _no}
        scope = {**function.__globals__, **ours}
        watched = FunctionType(function.__code__, scope, argdefs=function.__defaults__)
        # Asked for weights, it goes by the mask; else by the hint that the mask is causal.
        asked = kwargs["need_weights"]
        changed = {"need_weights": False, "is_causal": kwargs["is_causal"] and not asked}
        output, _ = watched(*args, **{**kwargs, **changed})
        if not asked:
            return output, None
        weights = self.weights[-1].to(output.dtype)
        weights = weights.mean(1) if kwargs["average_attn_weights"] else weights
        return output, weights if output.dim() == 3 else weights[0]

    def _keep(self, weights: Tensor) -> Tensor:
        """Remember weights as ``(N, heads, T, S)``; what comes back is what the graph goes over."""
        if weights.dim() == 3:
            apart = bool(self._count) and len(weights) % (self._count or 1) == 0
            weights = weights.unflatten(0, (self._count if apart else len(weights), -1))
        if not self._graph:
            self.weights.append(weights.detach())
            return weights
        if torch.is_inference_mode_enabled() or weights.is_inference():
            raise FedgazeError(
                "attention runs in the model's own inference_mode block, where nothing has "
                "gradients; use no_grad there, or a method without gradients"
            )
        torch.set_grad_enabled(True)
        if not weights.requires_grad:
            weights = weights.detach().requires_grad_()
        self.weights.append(weights)
        return weights


def _no(_tensors: Any) -> bool:
    return False


def _spells_attention(result: Any, args: Any, kwargs: Any) -> bool:
    if not isinstance(result, Tensor) or result.dim() < 3:
        return False
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    rows, columns = result.shape[-2:]
    # Where heads are apart, also from some tokens to others, as from all to pooled ones in PVT.
    over = columns > 1 and (rows == columns or result.dim() == 4)
    return over and dim in {-1, result.dim() - 1}


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """The softmax where a mask allows it, or with what it adds; zero where it allows nothing."""
    allowed = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, -math.inf) if allowed else scores + mask
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def _over_all(weights: Tensor, count: int, tokens: int) -> bool:
    return weights.dim() == 4 and (len(weights), *weights.shape[2:]) == (count, tokens, tokens)
