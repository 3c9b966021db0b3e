from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.rollout import attention_rollout, gradient_rollout, raw_attention

METHODS: dict[str, Callable[..., Tensor]] = {
    "rollout": attention_rollout,
    "raw": raw_attention,
    "gradient": lambda attentions, **more: gradient_rollout(
        attentions, [each.flip(-1) - 0.1 for each in attentions], **more
    ),
}


def draw(seed: int, blocks: int = 3, images: int = 2, heads: int = 2, tokens: int = 5) -> Any:
    """Attention weights of random blocks, and random gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = (blocks, images, heads, tokens, tokens)
    attentions = torch.randn(shape, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    gradients = torch.randn(shape, generator=generator, dtype=torch.float64)
    return list(attentions), list(gradients)


# --- the papers' equations, in loops ---


def papers_rollout(attentions: Any, fusion: str = "mean", ratio: float = 0.0) -> Any:
    """The whole matrix of Abnar and Zuidema, for each image: the last block's factor leftmost."""
    results = []
    for image in range(len(attentions[0])):
        rollout = np.eye(attentions[0].shape[-1])
        for block in attentions:
            heads = block[image].numpy()
            weights = {"mean": heads.mean(0), "max": heads.max(0), "min": heads.min(0)}[fusion]
            weights = weights.copy()
            order = sorted(np.ndindex(weights.shape), key=lambda place: weights[place])
            for i, j in order[: int(ratio * weights.size)]:
                if j != 0:
                    weights[i, j] = 0
            mixed = 0.5 * weights + 0.5 * np.eye(len(weights))
            for i in range(len(mixed)):
                mixed[i] /= mixed[i].sum()
            rollout = mixed @ rollout
        results.append(rollout)
    return np.stack(results)


def papers_relevancy(attentions: Any, gradients: Any) -> Any:
    """The whole matrix of Chefer et al., without I: Eq. 5, then Eq. 6, from the first block on."""
    results = []
    for image in range(len(attentions[0])):
        relevancy = np.eye(attentions[0].shape[-1])
        for block, gradient in zip(attentions, gradients, strict=True):
            a, g = block[image].numpy(), gradient[image].numpy()
            positive = np.zeros_like(a[0])
            for head in range(len(a)):
                positive += np.maximum(g[head] * a[head], 0) / len(a)
            relevancy = relevancy + positive @ relevancy
        results.append(relevancy - np.eye(len(relevancy)))
    return np.stack(results)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_rollout_is_the_papers(fusion: str, ratio: float) -> None:
    attentions, _ = draw(0)
    found = attention_rollout(attentions, head_fusion=fusion, discard_ratio=ratio)
    np.testing.assert_allclose(found, papers_rollout(attentions, fusion, ratio)[:, 0], rtol=1e-12)


def test_gradient_rollout_is_the_papers() -> None:
    attentions, gradients = draw(1)
    truth = papers_relevancy(attentions, gradients)
    np.testing.assert_allclose(gradient_rollout(attentions, gradients), truth[:, 0], rtol=1e-12)
    found = gradient_rollout(attentions, gradients, query="mean", prefix=2)
    np.testing.assert_allclose(found, truth[:, 2:].mean(1), rtol=1e-12)


def test_raw_attention_is_the_class_row_of_the_last_block() -> None:
    attentions, _ = draw(2)
    np.testing.assert_allclose(raw_attention(attentions), attentions[-1].numpy().mean(1)[:, 0])


def test_two_tokens_and_two_blocks_by_hand() -> None:
    first = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]])
    last = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
    # A_1 = [[3/4, 1/4], [1/8, 7/8]], A_2 = [[3/4, 1/4], [0, 1]]; the first row of A_2 A_1 is
    # (3/4 * 3/4 + 1/4 * 1/8, 3/4 * 1/4 + 1/4 * 7/8) = (19/32, 13/32).
    assert attention_rollout([first, last]).tolist() == [[19 / 32, 13 / 32]]
    # The mean over rows adds (1/8, 7/8) to it, and halves.
    assert attention_rollout([first, last], query="mean").tolist() == [[23 / 64, 41 / 64]]
    assert attention_rollout([first, last], query="mean", prefix=1).tolist() == [[1 / 8, 7 / 8]]
    assert raw_attention([first, last]).tolist() == [[0.5, 0.5]]
    # Gradients 2 and -2: Ā_1 = [[1, 0], [1/2, 0]], Ā_2 = [[0, 1], [0, 0]].
    # R = I + Ā_1 = [[2, 0], [1/2, 1]]; the first row of R + Ā_2 R is (2 + 1/2, 1), less (1, 0).
    gradients = [torch.tensor([[[[2.0, -2.0], [2.0, -2.0]]]]), torch.tensor([[[[-2.0, 2.0]] * 2]])]
    gradients[1][..., 1, :] = -2
    assert gradient_rollout([first, last], gradients).tolist() == [[1.5, 1.0]]


def test_the_identity_hides_nothing_where_patches_are_averaged() -> None:
    attentions, gradients = draw(7)
    small = [1e-9 * each.float() for each in gradients]
    found = gradient_rollout([each.float() for each in attentions], small, query="mean", prefix=1)
    truth = papers_relevancy(attentions, [each.double() for each in small])[:, 1:].mean(1)
    np.testing.assert_allclose(found, truth, rtol=1e-4)


def test_each_image_has_its_own_discarded() -> None:
    # vit-explain zeroes, in the first image, what is lowest in any image.
    attentions, _ = draw(3, images=3)
    together = attention_rollout(attentions, discard_ratio=0.6)
    for image in range(3):
        alone = [each[image : image + 1] for each in attentions]
        torch.testing.assert_close(
            together[image], attention_rollout(alone, discard_ratio=0.6)[0], rtol=1e-12, atol=0
        )
        assert not torch.allclose(together[image], attention_rollout(alone)[0])


def test_attention_to_the_class_token_is_never_discarded() -> None:
    # Its column is the lowest of all; of the six others the three lowest go.
    rows = [[0.01, 0.6, 0.39], [0.02, 0.5, 0.48], [0.03, 0.27, 0.7]]
    weights = torch.tensor(rows, dtype=torch.float64)
    found = attention_rollout([weights[None, None]], discard_ratio=6 / 9)
    # 3 of 6 fall on the class column and stay; 0.27, 0.39 and 0.48 go. Row 0: (1.01, 0.6, 0).
    np.testing.assert_allclose(found, [[1.01 / 1.61, 0.6 / 1.61, 0]], rtol=1e-12)
    # Where there is no class token nothing is safe: rows (1, 0.6, 0), (0, 1.5, 0), (0, 0, 1.7).
    found = attention_rollout([weights[None, None]], discard_ratio=6 / 9, query="mean")
    np.testing.assert_allclose(found, [[1 / 4.8, 0.2 / 1.6 + 1 / 3, 1 / 3]], rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    blocks=st.integers(1, 4),
    tokens=st.integers(2, 7),
    fusion=st.sampled_from(["mean", "max", "min"]),
    ratio=st.floats(0, 0.95),
)
def test_rollout_is_a_distribution(
    seed: int, blocks: int, tokens: int, fusion: str, ratio: float
) -> None:
    attentions, _ = draw(seed, blocks=blocks, tokens=tokens)
    found = attention_rollout(attentions, head_fusion=fusion, discard_ratio=ratio)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2).double())


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(1, 5)))
def test_patches_in_another_order_have_the_same_relevance(
    name: str, seed: int, order: list[int]
) -> None:
    attentions, gradients = draw(seed)
    moved = torch.tensor([0, *order])

    def relevance(each: list[Tensor], back: list[Tensor]) -> Tensor:
        return gradient_rollout(each, back) if name == "gradient" else METHODS[name](each)

    expected = relevance(attentions, gradients)[:, moved]
    swapped = [
        [each[..., moved, :][..., moved] for each in some] for some in (attentions, gradients)
    ]
    torch.testing.assert_close(relevance(swapped[0], swapped[1]), expected)


def test_blocks_that_only_look_at_themselves_pass_everything_through() -> None:
    attentions, _ = draw(4, blocks=1)
    still = [torch.eye(5).double().expand(2, 2, 5, 5)] * 3
    torch.testing.assert_close(
        attention_rollout([*still, *attentions, *still]), attention_rollout(attentions)
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    attentions = [each.to(dtype) for each in draw(5, tokens=50)[0]]
    before = [each.clone() for each in attentions]
    found = METHODS[name](attentions)
    assert found.dtype == torch.float32
    truth = METHODS[name]([each.double() for each in attentions])
    # The gradients of this test are made in the precision of the attentions.
    close = 1e-5 if name != "gradient" or dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), truth, rtol=close, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, attentions, strict=True))


def test_maps_can_be_differentiated() -> None:
    attentions, gradients = draw(6, blocks=2, images=1, tokens=3)
    leaves = [each.requires_grad_() for each in (*attentions, *gradients)]
    assert torch.autograd.gradcheck(lambda *some: gradient_rollout(some[:2], some[2:]), leaves)
    assert torch.autograd.gradcheck(lambda *some: attention_rollout(some), leaves[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_fusion": "maximum"}, "head_fusion is 'maximum'; allowed are mean, max, min"),
        ({"discard_ratio": 1.0}, r"discard_ratio is 1\.0; allowed is 0 up to"),
        ({"discard_ratio": -0.1}, "discard_ratio is -0.1"),
        ({"query": "clas"}, "query is 'clas'; allowed are class, mean; did you mean 'class'"),
        ({"prefix": 5}, "prefix is 5; allowed is 0 to 4"),
    ],
)
def test_what_cannot_be_used_is_refused(options: Any, message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        attention_rollout(draw(0)[0], **options)


def test_attentions_that_do_not_follow_each_other_are_refused() -> None:
    attentions, gradients = draw(0)
    with pytest.raises(FedgazeError, match=r"shapes \(2, 2, 5, 5\), \(4, 2, 5, 5\); allowed"):
        attention_rollout([attentions[0], attentions[0].repeat(2, 1, 1, 1)])
    with pytest.raises(FedgazeError, match=r"shapes \(2, 2, 1, 5\); allowed"):
        raw_attention([attentions[0][:, :, :1]])
    with pytest.raises(FedgazeError, match="the shapes ; allowed"):
        attention_rollout([])
    with pytest.raises(FedgazeError, match="gradients for 2 of 3 attentions"):
        gradient_rollout(attentions, gradients[:2])
    with pytest.raises(FedgazeError, match="gradients for 0 of 3 attentions"):
        gradient_rollout(attentions, None)
