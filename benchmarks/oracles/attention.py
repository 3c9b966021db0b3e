"""Loops from papers, in float64, for methods that read attention.

The weights come from the libraries' own modules: timm computes them when asked not to fuse, and
torchvision's modules are spelled out here.
"""

import math
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from oracles.cases import Array, Case, wide


class Spelled(nn.Module):
    """Multi-head self-attention with the weights of a torch module, step by step."""

    def __init__(self, found: nn.MultiheadAttention) -> None:
        super().__init__()
        self.found = found
        self.weights: Tensor | None = None

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        count, tokens, width = x.shape
        heads = self.found.num_heads
        joined = x @ self.found.in_proj_weight.T + self.found.in_proj_bias
        q, k, v = (
            each.reshape(count, tokens, heads, width // heads).transpose(1, 2)
            for each in joined.split(width, dim=2)
        )
        self.weights = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
        self.weights.retain_grad()
        mixed = (self.weights @ v).transpose(1, 2).reshape(count, tokens, width)
        return self.found.out_proj(mixed), None


def attention(case: Case) -> tuple[list[Array], list[Array]]:
    """Weights and gradients ``(N, heads, T, T)`` of each block, first to last."""
    model: Any = case.copy()
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        output.retain_grad()
        seen.append(output)
        return output

    if hasattr(model, "blocks"):
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(keep)
    else:
        for block in model.encoder.layers:
            block.self_attention = Spelled(block.self_attention)
    logits = model(case.images.clone().requires_grad_())
    torch.stack([row[c] for row, c in zip(logits, case.classes, strict=True)]).sum().backward()
    if not seen:
        seen = [block.self_attention.weights for block in model.encoder.layers]
    return [wide(each) for each in seen], [
        wide(each.grad) for each in seen if each.grad is not None
    ]


def _grid(case: Case, tokens: Array) -> Array:
    """Of ``(N, T)``, the class token first."""
    if case.grid is None:
        raise ValueError(f"{case.name} has no tokens")
    return tokens[:, 1:].reshape(len(tokens), *case.grid)


def raw_attention(case: Case) -> Array:
    weights, _ = attention(case)
    return _grid(case, weights[-1].mean(1)[:, 0])


def attention_rollout(case: Case) -> Array:
    weights, _ = attention(case)
    rows = []
    for n in range(len(weights[0])):
        rollout = np.eye(weights[0].shape[-1])
        for block in weights:
            mixed = 0.5 * block[n].mean(0) + 0.5 * np.eye(len(rollout))
            rollout = mixed / mixed.sum(1, keepdims=True) @ rollout
        rows.append(rollout[0])
    return _grid(case, np.stack(rows))


def gradient_rollout(case: Case) -> Array:
    weights, gradients = attention(case)
    rows = []
    for n in range(len(weights[0])):
        relevance = np.eye(weights[0].shape[-1])
        for block, slope in zip(weights, gradients, strict=True):
            relevance = relevance + np.maximum(slope[n] * block[n], 0).mean(0) @ relevance
        rows.append(relevance[0])
    return _grid(case, np.stack(rows))


def attention_flow(case: Case) -> Array:
    """Maximum flows by networkx, in the whole graph, one token at a time."""
    weights, _ = attention(case)
    count, tokens = len(weights[0]), weights[0].shape[-1]
    found = np.zeros((count, tokens))
    for n in range(count):
        graph = nx.DiGraph()
        for level, block in enumerate(weights):
            mixed = 0.5 * block[n].mean(0) + 0.5 * np.eye(tokens)
            for i, j in np.ndindex(tokens, tokens):
                graph.add_edge((level + 1, i), (level, j), capacity=mixed[i, j])
        for token in range(1, tokens):
            found[n, token] = nx.maximum_flow_value(graph, (len(weights), 0), (0, token))
    return _grid(case, found)
