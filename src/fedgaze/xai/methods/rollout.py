"""From attention weights to the relevance of tokens."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest

__all__ = [
    "HEAD_FUSIONS",
    "Query",
    "attention_rollout",
    "check_attentions",
    "fused",
    "gradient_rollout",
    "query_row",
    "raw_attention",
    "with_residual",
]

HEAD_FUSIONS = ("mean", "max", "min")

Query = Literal["class", "mean"]


def attention_rollout(
    attentions: Sequence[Tensor],
    gradients: None = None,  # noqa: ARG001
    *,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    query: Query = "class",
    prefix: int = 0,
) -> Tensor:
    """Follow attention through all blocks, half of each block being its residual connection.

    ``A_l = (W_l + I) / 2`` with rows that sum to 1, W_l the weights of block l with its heads made
    one, and ``rollout = A_L … A_2 A_1``: Abnar and Zuidema, "Quantifying Attention Flow in
    Transformers", ACL 2020, Eq. 1 and the definition of A before it. The paper averages heads.
    Maximum, minimum and the discarding of low attentions come from J. Gildenblat, "Exploring
    Explainability for Vision Transformers", 2020 (vit-explain), which differs from this function:
    it discards in the first image of a batch only; it keeps safe no attention but that of the class
    token to itself, where here no attention to the class token is discarded; and it divides columns
    where the sums of rows are meant (for one image at a time; more fail or mix).

    Args:
        attentions: ``(N, heads, T, T)`` of each block, first to last: rows attend to columns.
        gradients: Not used.
        head_fusion: How the heads become one: ``"mean"``, ``"max"`` or ``"min"``.
        discard_ratio: Which share of the T x T fused attentions of each image and block, the
            lowest, becomes zero before the residual connection is added, in [0, 1).
        query: Whose attention is told: ``"class"``, that of the first token, or ``"mean"``, the
            mean over the tokens after the prefix, for models that average them.
        prefix: How many tokens without a place lead.

    Returns:
        ``(N, T)``: the relevance of each token, in [0, 1], with the sum 1; at least float32.

    Raises:
        FedgazeError: An argument cannot be used.

    >>> attention_rollout([torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])])
    tensor([[0.7500, 0.2500]])
    """
    if not 0 <= discard_ratio < 1:
        raise FedgazeError(f"discard_ratio is {discard_ratio}; allowed is 0 up to, not with, 1")
    check_attentions(attentions, head_fusion)
    row = query_row(attentions[-1], query, prefix)
    for attention in reversed(attentions):
        kept = _discarded(fused(attention, head_fusion), discard_ratio, query)
        row = torch.einsum("nt,nts->ns", row, with_residual(kept))
    return row


def raw_attention(
    attentions: Sequence[Tensor],
    gradients: None = None,  # noqa: ARG001
    *,
    head_fusion: str = "mean",
    query: Query = "class",
    prefix: int = 0,
) -> Tensor:
    """The attention of the last block alone.

    ``mean_h W_L`` in the query's row: the baseline "raw attention" of Abnar and Zuidema,
    "Quantifying Attention Flow in Transformers", ACL 2020, Section 2.

    Args:
        attentions: As for `attention_rollout`; only the last is used.
        gradients: Not used.
        head_fusion: As for `attention_rollout`.
        query: As for `attention_rollout`.
        prefix: As for `attention_rollout`.

    Returns:
        ``(N, T)``, in [0, 1]; at least float32.

    Raises:
        FedgazeError: An argument cannot be used.

    >>> raw_attention([torch.tensor([[[[0.4, 0.6], [0.0, 1.0]], [[0.2, 0.8], [1.0, 0.0]]]])])
    tensor([[0.3000, 0.7000]])
    """
    check_attentions(attentions, head_fusion)
    row = query_row(attentions[-1], query, prefix)
    return torch.einsum("nt,nts->ns", row, fused(attentions[-1], head_fusion))


def gradient_rollout(
    attentions: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    query: Query = "class",
    prefix: int = 0,
) -> Tensor:
    """Follow what of the attention speaks for the target through all blocks.

    ``Ā_l = mean_h relu(∇W_l ∘ W_l)``, ``R = I`` at first and ``R += Ā_l R`` for each block: Chefer,
    Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers", ICCV 2021, Eq. 5 and 6, for self-attention.

    The variant of the same authors' "Transformer Interpretability Beyond Attention Visualization",
    CVPR 2021, multiplies gradients with relevance that rules of layer-wise propagation bring down
    to each attention map, in place of the attention itself, and multiplies ``I + Ā_l``: the same
    product, but it needs rules for each layer of a model.

    Args:
        attentions: As for `attention_rollout`.
        gradients: Of each image's score to the attentions, in the same shapes.
        query: As for `attention_rollout`.
        prefix: As for `attention_rollout`.

    Returns:
        ``(N, T)``, not negative; at least float32: the query's row of ``R - I``. The identity tells
        only which token was asked, and would lie over all patches alike where they are averaged.

    Raises:
        FedgazeError: Shapes do not fit, or an argument cannot be used.

    >>> gradient_rollout([torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])],
    ...                  [torch.tensor([[[[-1.0, 2.0], [3.0, 3.0]]]])])
    tensor([[0., 1.]])
    """
    check_attentions(attentions, "mean")
    if [each.shape for each in attentions] != [each.shape for each in gradients or ()]:
        raise FedgazeError(
            f"there are gradients for {len(gradients or ())} of {len(attentions)} attentions, or "
            "of other shapes; allowed is one gradient an attention, of its shape"
        )
    row = query_row(attentions[-1], query, prefix)
    found = torch.zeros_like(row)  # apart from the identity, beside which it may round to nothing
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        wide = row.dtype
        positive = (gradient.to(wide) * attention.to(wide)).relu().mean(1)
        found = found + torch.einsum("nt,nts->ns", row + found, positive)
    return found


def check_attentions(attentions: Sequence[Tensor], head_fusion: str) -> None:
    """Refuse what no method of attention can use."""
    if head_fusion not in HEAD_FUSIONS:
        raise FedgazeError(
            f"head_fusion is {head_fusion!r}; allowed are {', '.join(HEAD_FUSIONS)}"
            f"{nearest(str(head_fusion), HEAD_FUSIONS)}"
        )
    shapes = {(each.dim(), len(each), *each.shape[2:]) for each in attentions}
    if len(shapes) != 1 or not all(s[0] == 4 and s[2] == s[3] for s in shapes):
        raise FedgazeError(
            f"attentions have the shapes {', '.join(str(tuple(a.shape)) for a in attentions)}; "
            "allowed is (N, heads, T, T) with the same N and T in each block"
        )


def query_row(attention: Tensor, query: str, prefix: int) -> Tensor:
    """The weights ``(N, T)`` with which the model reads its tokens at the end."""
    if query not in {"class", "mean"}:
        raise FedgazeError(
            f"query is {query!r}; allowed are class, mean{nearest(str(query), ('class', 'mean'))}"
        )
    count, _, tokens, _ = attention.shape
    if not 0 <= prefix < tokens:
        raise FedgazeError(f"prefix is {prefix}; allowed is 0 to {tokens - 1}")
    row = attention.new_zeros(count, tokens, dtype=_wide(attention))
    read = slice(0, 1) if query == "class" else slice(prefix, None)
    row[:, read] = 1 / len(range(tokens)[read])
    return row


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def fused(attention: Tensor, head_fusion: str) -> Tensor:
    """One weight for all heads: ``(N, T, T)``."""
    wide = attention.to(_wide(attention))
    if head_fusion == "mean":
        return wide.mean(1)
    return wide.amax(1) if head_fusion == "max" else wide.amin(1)


def _discarded(weights: Tensor, ratio: float, query: str) -> Tensor:
    count = int(ratio * weights[0].numel())
    if not count:
        return weights
    lowest = weights.flatten(1).topk(count, largest=False).indices
    gone = torch.zeros_like(weights, dtype=torch.bool).flatten(1)
    gone = gone.scatter(1, lowest, value=True).view_as(weights)
    if query == "class":
        gone[..., 0] = False
    return weights.masked_fill(gone, 0)


def with_residual(weights: Tensor) -> Tensor:
    """Half the weights ``(N, T, T)``, half the identity, with rows that sum to 1."""
    mixed = 0.5 * weights + 0.5 * torch.eye(weights.shape[-1]).to(weights)
    return mixed / mixed.sum(-1, keepdim=True)
