from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.flow import attention_flow
from fedgaze.xai.methods.rollout import attention_rollout


def draw(seed: int, blocks: int, tokens: int, sharpness: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (blocks, 2, 2, tokens, tokens)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    return list(scores.mul(sharpness).softmax(-1))


def edges_of(attentions: list[Tensor], image: int, start: list[float]) -> dict[Any, float]:
    """The paper's graph: (level, token) -> (level, token), level L on top, and a source."""
    edges = {("source", (len(attentions), i)): share for i, share in enumerate(start) if share}
    for level, block in enumerate(attentions, 1):
        weights = block[image].numpy().mean(0)
        mixed = 0.5 * weights + 0.5 * np.eye(len(weights))
        for i, j in np.ndindex(mixed.shape):
            edges[(level, i), (level - 1, j)] = float(mixed[i, j])
    return edges


def by_networkx(edges: dict[Any, float], tokens: int) -> list[float]:
    graph = nx.DiGraph()
    for (begin, end), capacity in edges.items():
        graph.add_edge(begin, end, capacity=capacity)
    return [nx.maximum_flow_value(graph, "source", (0, j)) for j in range(tokens)]


def by_linear_program(edges: dict[Any, float], sink: Any) -> float:
    """Maximise what enters the sink; elsewhere what enters leaves."""
    nodes = sorted({n for edge in edges for n in edge} - {"source", sink}, key=str)
    balance = np.zeros((len(nodes), len(edges)))
    into = np.zeros(len(edges))
    for column, (begin, end) in enumerate(edges):
        for node, sign in ((begin, -1), (end, 1)):
            if node in nodes:
                balance[nodes.index(node), column] = sign
        into[column] = -(end == sink)
    bounds = [(0, capacity) for capacity in edges.values()]
    return -linprog(into, A_eq=balance, b_eq=np.zeros(len(nodes)), bounds=bounds).fun


@pytest.mark.parametrize(
    ("blocks", "tokens", "sharpness"),
    [(1, 4, 2.0), (2, 4, 2.0), (3, 6, 0.1), (8, 5, 1.0), (9, 12, 8.0), (7, 20, 30.0)],
)
def test_flows_are_those_of_networkx(blocks: int, tokens: int, sharpness: float) -> None:
    attentions = draw(blocks, blocks, tokens, sharpness)
    found = attention_flow(attentions)
    for image in range(2):
        edges = edges_of(attentions, image, [1.0] + [0.0] * (tokens - 1))
        np.testing.assert_allclose(found[image], by_networkx(edges, tokens), atol=2e-6)


def test_flows_are_those_of_a_linear_program() -> None:
    attentions = draw(0, 3, 3)
    found = attention_flow(attentions, query="mean", prefix=1)
    edges = edges_of(attentions, 1, [0.0, 0.5, 0.5])
    expected = [by_linear_program(edges, (0, j)) for j in range(3)]
    np.testing.assert_allclose(found[1], expected, atol=2e-6)


def test_by_hand() -> None:
    # A_1 = [[3/4, 1/4], [1/8, 7/8]], A_2 = [[3/4, 1/4], [0, 1]]. From the class token on top 3/4
    # flow to the class token and 1/4 to the other. To token 0 go 3/4 and 1/8 of that; to token 1
    # go 1/4 and 1/4, though 7/8 would have room.
    first = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]])
    last = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
    torch.testing.assert_close(attention_flow([first, last]), torch.tensor([[7 / 8, 1 / 2]]))


def test_where_the_bounds_are_not_reached_the_whole_graph_is_searched() -> None:
    # Token 2 is fed by token 1 and itself, which nobody on top attends to: all comes by 1/10.
    narrow = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]).double()
    narrow[0] = torch.tensor([0.8, 0.2, 0])
    last = torch.tensor([[1.0, 0, 0], [0, 0.2, 0.8], [0, 0, 1]]).double()
    blocks = [last, *[torch.eye(3).double()] * 7, narrow]
    found = attention_flow([each[None, None] for each in blocks])
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.1, 0.1]]).double(), atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 8), tokens=st.integers(2, 8))
def test_what_the_rollout_splits_can_flow(seed: int, blocks: int, tokens: int) -> None:
    attentions = draw(seed, blocks, tokens)
    for query in ("class", "mean"):
        flow = attention_flow(attentions, query=query)
        assert (flow >= attention_rollout(attentions, query=query) - 2e-6).all()
        assert (flow <= 1).all()


def test_half_precision_images_and_errors() -> None:
    attentions = draw(1, 3, 6)
    halves = [each.bfloat16().requires_grad_() for each in attentions]
    found = attention_flow(halves)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    expected = attention_flow([each.detach().double() for each in halves])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    alone = torch.cat([attention_flow([each[i : i + 1] for each in attentions]) for i in range(2)])
    torch.testing.assert_close(attention_flow(attentions), alone)
    with pytest.raises(FedgazeError, match="head_fusion is 'sum'"):
        attention_flow(attentions, head_fusion="sum")
