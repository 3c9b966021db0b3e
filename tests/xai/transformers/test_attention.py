import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain
from fedgaze.xai.attention import Attention, watching_attention
from fedgaze.xai.methods.rollout import attention_rollout
from fedgaze.xai.running import running


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0xA77)


def equal(found: Tensor, expected: Any, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-5, atol=atol)


# --- one call ---


def papers_attention(q: Any, k: Any, v: Any, bias: Any, scale: float) -> tuple[Any, Any]:
    """Vaswani et al. 2017, Eq. 1, number by number: weights and output of one head of an image."""
    weights = np.zeros((len(q), len(k)))
    for i in range(len(q)):
        scores = [float(q[i] @ k[j]) * scale + bias[i, j] for j in range(len(k))]
        powers = [np.exp(s) for s in scores]
        for j in range(len(k)):
            weights[i, j] = powers[j] / sum(powers) if sum(powers) else 0
    return weights, weights @ v


MASK = torch.ones(5, 5, dtype=torch.bool).triu(-1)
NOTHING = MASK.clone().index_fill(0, torch.tensor([2]), value=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": MASK},
        {"attn_mask": NOTHING},
        {"attn_mask": torch.linspace(-2, 2, 25).double().view(5, 5)},
        {"enable_gqa": True},
        {"enable_gqa": True, "is_causal": True, "scale": 2.0},
    ],
)
def test_fused_attention_is_that_of_the_paper(options: Any) -> None:
    heads = 2 if options.get("enable_gqa") else 4
    q = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    k, v = torch.randn(2, 3, heads, 5, 6, dtype=torch.float64)
    with watching_attention() as seen:
        found = F.scaled_dot_product_attention(q, k, v, **options)
    equal(found, F.scaled_dot_product_attention(q, k, v, **options), 1e-12)
    mask = options.get("attn_mask", torch.zeros(5, 5))
    mask = torch.ones(5, 5).tril().bool() if options.get("is_causal") else mask
    bias = torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask
    (weights,) = seen.weights
    for image in range(3):
        for head in range(4):
            one = [q[image, head], *(each[image, head * heads // 4] for each in (k, v))]
            arrays = [each.numpy() for each in one]
            truth = papers_attention(*arrays, bias.double().numpy(), options.get("scale", 6**-0.5))
            equal(weights[image, head], truth[0], 1e-12)
            equal(found[image, head], truth[1], 1e-12)


def test_a_row_that_may_look_nowhere_has_gradients() -> None:
    q = torch.randn(1, 1, 5, 6, requires_grad=True)
    with watching_attention(graph=True) as seen:
        out = F.scaled_dot_product_attention(q, q, q, attn_mask=NOTHING)
    (back,) = torch.autograd.grad(out.square().sum(), seen.weights, retain_graph=True)
    (pixels,) = torch.autograd.grad(out.square().sum(), q)
    assert back.isfinite().all()
    assert pixels.isfinite().all()
    assert seen.weights[0][0, 0, 2].count_nonzero() == 0


@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False, "batch_first": True},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 5, "vdim": 7},
    ],
)
def test_multi_head_attention_is_pytorchs(need: bool, average: bool, options: Any) -> None:
    module = nn.MultiheadAttention(8, 2, **options).eval()
    inputs = [torch.randn(4, 4, module.embed_dim)] * 3
    if "kdim" in options:
        inputs = [inputs[0], torch.randn(4, 4, 5), torch.randn(4, 4, 7)]
    more = {
        "key_padding_mask": torch.tensor([[False, False, False, True]]).expand(4, 4),
        "attn_mask": torch.ones(4, 4, dtype=torch.bool).triu(1),
    }
    causal = {"attn_mask": more["attn_mask"], "is_causal": True}
    for masks in ({}, more, causal):
        with torch.no_grad():
            expected = module(*inputs, need_weights=need, average_attn_weights=average, **masks)
            _, truth = module(*inputs, average_attn_weights=False, **masks)
            with watching_attention() as seen:
                found = module(*inputs, need_weights=need, average_attn_weights=average, **masks)
        equal(found[0], expected[0])
        assert (found[1] is None) == (expected[1] is None) == (not need)
        if need:
            equal(found[1], expected[1])
        (weights,) = seen.weights
        # With more keys than queries, PyTorch reads "causal" otherwise when not asked for weights.
        if need or masks is not causal or weights.shape[-1] == 4:
            equal(weights, truth)


def test_multi_head_attention_without_a_batch() -> None:
    module, one = nn.MultiheadAttention(8, 2).eval(), torch.randn(4, 8)
    for average in (True, False):
        with watching_attention() as seen:
            found = module(one, one, one, average_attn_weights=average)
        expected = module(one, one, one, average_attn_weights=average)
        equal(found[0], expected[0])
        equal(found[1], expected[1])
        assert seen.weights[0].shape == (1, 2, 4, 4)


def test_the_fast_path_is_off_meanwhile_and_then_as_it_was() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3).eval()
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = encoder(tokens)
        enabled = torch.backends.mha.get_fastpath_enabled()
        with watching_attention() as seen:
            equal(encoder(tokens), expected)
    assert [each.shape for each in seen.weights] == [(2, 2, 5, 5)] * 3
    assert torch.backends.mha.get_fastpath_enabled() is enabled is True


@pytest.mark.parametrize(
    "softmax",
    [
        lambda x: x.softmax(-1),
        lambda x: x.softmax(dim=x.dim() - 1),
        lambda x: torch.softmax(x, -1),
        lambda x: torch.special.softmax(x, dim=-1),
        lambda x: F.softmax(x, dim=-1, dtype=torch.float32),
        nn.Softmax(-1),
    ],
)
def test_attention_that_is_spelled_out_is_seen_once(softmax: Callable[[Tensor], Tensor]) -> None:
    scores = torch.randn(2, 3, 4, 4)
    with watching_attention() as seen:
        weights = softmax(scores)
        copy = weights.clone()
        weights.zero_()  # what follows may work in place
    (found,) = seen.weights
    equal(found, scores.softmax(-1))
    equal(copy, scores.softmax(-1))


@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 4), -1), ((2, 4, 5), -1), ((2, 3, 4, 4), 1), ((2, 3, 1, 1), -1)]
)
def test_other_softmaxes_are_no_attention(shape: tuple[int, ...], dim: int) -> None:
    with watching_attention() as seen:
        torch.randn(shape).softmax(dim)
    assert seen.weights == []


def test_heads_laid_into_the_batch_are_taken_apart() -> None:
    scores = torch.randn(2 * 3, 4, 4, requires_grad=True)
    with watching_attention(graph=True, count=2) as seen:
        handed_on = scores.softmax(-1)
    assert handed_on.shape == (6, 4, 4)
    equal(seen.weights[0], scores.softmax(-1).view(2, 3, 4, 4))
    (back,) = torch.autograd.grad(handed_on.square().sum(), seen.weights)
    equal(back, 2 * scores.softmax(-1).view(2, 3, 4, 4))
    with watching_attention() as seen:
        scores.softmax(-1)
    assert seen.weights[0].shape == (6, 1, 4, 4)
    assert not seen.weights[0].requires_grad


# --- models ---


def followed(blocks: list[Tensor], row: Any, gradients: list[Tensor] | None = None) -> Any:
    """One image: Abnar and Zuidema's rollout or, with gradients, Chefer et al.'s, of a row."""
    result = np.eye(blocks[0].shape[-1])
    for index, block in enumerate(blocks):
        heads = block.detach().double().numpy()
        if gradients is None:
            mixed = 0.5 * heads.mean(0) + 0.5 * np.eye(len(result))
            result = mixed @ result
        else:
            positive = np.maximum(gradients[index].double().numpy() * heads, 0).mean(0)
            result = result + positive @ result
    return row @ (result if gradients is None else result - np.eye(len(result)))


def check_maps(case: Any, model: nn.Module, truth: list[Tensor], back: list[Tensor]) -> None:
    """`explain` follows the true weights, reads the right tokens and leaves no leading ones."""
    row = np.zeros(truth[0].shape[-1])
    read = slice(0, 1) if case.query == "class" else slice(case.prefix, None)
    row[read] = 1 / len(row[read])
    for method, gradients in (("attention_rollout", None), ("gradient_rollout", back)):
        found = explain(model, case.images(), method, targets=1).raw
        for image in range(2):
            own = None if gradients is None else [each[image] for each in gradients]
            expected = followed([each[image] for each in truth], row, own)[case.prefix :]
            atol = 1e-5 * float(expected.max())
            np.testing.assert_allclose(found[image].flatten(), expected, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["ViT", "ViT, averaged", "DeiT, distilled", "DINOv2, registers"])
def test_timm(cases: Any, name: str, fused: bool) -> None:
    case = cases[f"timm {name}"]
    model, truth = case.build(), []
    # Where attention is spelled out, its dropout (of nothing) is a module.
    handles = [
        block.attn.attn_drop.register_forward_pre_hook(lambda _m, inputs: truth.append(inputs[0]))
        for block in model.blocks
    ]
    for block in model.blocks:
        block.attn.fused_attn = False
    expected = model(case.images())
    back = torch.autograd.grad(expected[:, 1].sum(), truth)
    for handle in handles:
        handle.remove()
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad(), watching_attention() as seen:
        equal(model(case.images()), expected)
    for found, each in zip(seen.weights, truth, strict=True):
        equal(found, each)
    check_maps(case, model, truth, list(back))


def test_torchvision(cases: Any) -> None:
    case = cases["torchvision ViT"]
    model, images = case.build(), case.images()
    projected: list[Tensor] = []

    def note(module: nn.MultiheadAttention, inputs: Any, _output: Any) -> None:
        projected.append(F.linear(inputs[0], module.in_proj_weight, module.in_proj_bias))

    handles = [block.self_attention.register_forward_hook(note) for block in model.encoder.layers]
    with torch.no_grad():
        expected = model(images)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), watching_attention() as seen:
        equal(model(images), expected)
    for found, qkv in zip(seen.weights, projected, strict=True):
        q, k, _ = qkv.unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        equal(found, (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))


def hidden_kernel(_module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **more: Any) -> Any:
    """Attention of a package of its own, which nothing of PyTorch's Python sees."""
    call = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch._C.DisableTorchFunctionSubclass():
        return call(q, k, v, scale=more.get("scaling"))[0].transpose(1, 2), None


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "hidden_kernel"])
@pytest.mark.parametrize(
    "name", ["ViT", "DeiT", "BEiT", "DINOv2", "DINOv2, registers", "CLIP", "CLIP, projected"]
)
def test_transformers(cases: Any, name: str, implementation: str) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("hidden_kernel", hidden_kernel)
    case = cases[f"transformers {name}"]
    hidden = implementation == "hidden_kernel"  # has no place for BEiT's biases
    more = {"use_relative_position_bias": False} if hidden and name == "BEiT" else {}
    model = case.build(_attn_implementation=implementation, **more)
    eager = case.build(_attn_implementation="eager", **more)
    outputs = eager(case.images(), output_attentions=True)
    back = torch.autograd.grad(case.scores(outputs)[:, 1].sum(), outputs.attentions)
    equal(case.scores(model(case.images())), case.scores(outputs))
    check_maps(case, model, outputs.attentions, list(back))
    assert model.config._attn_implementation == implementation


def test_attention_that_pools_comes_after_the_blocks(cases: Any) -> None:
    case = cases["transformers SigLIP"]
    seen = watched(case.build(), case.images())
    assert [each.shape[-2] for each in seen.weights] == [16, 16, 1]
    kept, layout = seen.between_patches(2, (4, 4), (32, 32))
    assert ([each.shape for each in kept], layout.prefix) == ([(2, 2, 16, 16)] * 2, 0)


def test_the_way_back_is_there_under_no_grad_and_of_frozen_models(cases: Any) -> None:
    case = cases["timm ViT"]
    model, found = case.build(), []
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with torch.no_grad(), watching_attention(graph=True) as seen:
            logits = model(case.images())
            assert torch.is_grad_enabled()
        found.append(torch.autograd.grad(logits[:, 3].sum(), seen.weights))
    for one, other in zip(*found, strict=True):
        equal(one, other, 1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_multi_head_attention_has_the_gradients_of_its_weights() -> None:
    module, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 5, 8)
    with watching_attention(graph=True) as seen:
        out, _ = module(x, x, x)
    found = torch.autograd.grad(out.square().sum(), seen.weights)[0]
    # The output is W V, projected; so the gradient is g V^T with g that of W V.
    value = F.linear(x, module.in_proj_weight[16:], module.in_proj_bias[16:])
    value = value.unflatten(2, (2, 4)).transpose(1, 2)
    g = (2 * out) @ module.out_proj.weight
    equal(found, g.unflatten(2, (2, 4)).transpose(1, 2) @ value.mT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(cases: Any, dtype: torch.dtype) -> None:
    model, images = cases["timm ViT"].build(), cases["timm ViT"].images()
    with torch.no_grad(), watching_attention() as truth:
        model(images)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        expected = model(images)
        with watching_attention() as seen:
            found = model(images)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert {each.dtype for each in seen.weights} == {torch.float32}
    for one, other in zip(seen.weights, truth.weights, strict=True):
        equal(one, other, 0.01)
    with torch.no_grad(), watching_attention() as seen:
        model.to(dtype)(images.to(dtype))
    assert {each.dtype for each in seen.weights} == {torch.float32}
    equal(seen.weights[-1].sum(-1), torch.ones(2, 2, 7), 1e-6)


# --- how it behaves ---


def test_it_works_where_models_are_run(cases: Any) -> None:
    model, images = cases["timm ViT"].build().train(), cases["timm ViT"].images()
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    with running(model, []) as forward, watching_attention(graph=True, count=2) as seen:
        with torch.no_grad():
            outputs = forward(images)
        torch.autograd.grad(outputs.sum(), seen.weights)
    assert len(seen.weights) == 2
    assert model.training


def test_dropout_is_applied_after_the_weights_are_read() -> None:
    q = torch.randn(1, 1, 50, 6)
    with watching_attention() as seen:
        out = F.scaled_dot_product_attention(q, q, torch.ones_like(q), dropout_p=0.5)
    equal(seen.weights[0].sum(-1), torch.ones(1, 1, 50))
    assert out.std() > 0.01


def test_gradient_mode_is_as_it_was_also_after_an_error() -> None:
    q = torch.randn(1, 1, 5, 6)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            with pytest.raises(RuntimeError), watching_attention(graph=True):
                F.scaled_dot_product_attention(q, q, q).view(7)
            assert torch.is_grad_enabled() is enabled
    with watching_attention() as seen:
        pass
    F.scaled_dot_product_attention(q, q, q)
    assert seen.weights == []


def test_other_threads_are_not_seen() -> None:
    q = torch.randn(1, 1, 5, 6)
    with watching_attention() as seen:
        thread = threading.Thread(target=F.scaled_dot_product_attention, args=(q, q, q))
        thread.start()
        thread.join()
    assert seen.weights == []


def test_nothing_is_kept_alive(cases: Any) -> None:
    model, images = cases["timm ViT"].build(), cases["timm ViT"].images(1)
    gc.collect()
    gc.disable()
    try:
        with watching_attention(graph=True) as seen:
            out = model(images)
        mha = nn.MultiheadAttention(8, 2)
        with watching_attention(graph=True) as other:
            mha(torch.randn(3, 1, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8))
        gone = [weakref.ref(each) for each in (*seen.weights, *other.weights)]
        del out, seen, other
        assert [each() for each in gone] == [None] * 3
    finally:
        gc.enable()


def test_the_models_own_inference_mode_has_no_gradients() -> None:
    q = torch.randn(1, 1, 5, 6)
    with watching_attention() as seen, torch.inference_mode():
        F.scaled_dot_product_attention(q, q, q)
    assert len(seen.weights) == 1
    refused = pytest.raises(FedgazeError, match="own inference_mode block")
    with refused, watching_attention(graph=True), torch.inference_mode():
        F.scaled_dot_product_attention(q, q, q)


# --- what can be followed ---


def watched(model: nn.Module, images: Tensor) -> Attention:
    with torch.no_grad(), watching_attention(count=len(images)) as seen:
        model.eval()(images)
    return seen


def test_no_attention_maps_captured_names_cause_and_remedy() -> None:
    seen = watched(nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Softmax(1)), torch.randn(2, 3, 32, 32))
    with pytest.raises(FedgazeError, match=r"no attention maps captured: .*let it call scaled_dot"):
        seen.between_patches(2, (4, 4), (32, 32))


@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
@pytest.mark.parametrize("count", [1, 3])
def test_attention_over_windows_is_refused(cases: Any, library: str, count: int) -> None:
    case = cases[f"{library} Swin"]
    images = case.images(count)
    grid = (case.size[0] // 4, case.size[1] // 4)
    seen = watched(case.build(), images)
    assert len(seen.weights) == 4
    why = rf"for {count} images goes over windows"
    with pytest.raises(FedgazeError, match=why):
        seen.between_patches(count, grid, case.size)


def test_blocks_before_attention_of_the_class_token_alone_are_kept(cases: Any) -> None:
    seen = watched(cases["timm CaiT"].build(), cases["timm CaiT"].images())
    kept, layout = seen.between_patches(2, (2, 3), (32, 48))
    # Talking heads are spelled out among 6 patches; the class token's blocks come after.
    assert [each.shape for each in kept] == [(2, 2, 6, 6)] * 2
    assert (layout.grid, layout.prefix) == ((2, 3), 0)


def test_attention_among_texts_is_left_out() -> None:
    q, text = torch.randn(2, 2, 17, 4), torch.randn(7, 2, 60, 4)
    with watching_attention() as seen:
        for each in (q, text, q, text):
            F.scaled_dot_product_attention(each, each, each)
    kept, layout = seen.between_patches(2, (4, 4), (32, 32))
    assert [each.shape for each in kept] == [(2, 2, 17, 17)] * 2
    assert layout.prefix == 1


@pytest.mark.parametrize("fused", [True, False])
def test_attention_to_pooled_tokens_is_refused(fused: bool) -> None:
    q, pooled = torch.randn(2, 2, 64, 4), torch.randn(2, 2, 16, 4)
    with watching_attention() as seen:
        for k in (pooled, q):
            if fused:
                F.scaled_dot_product_attention(q, k, k)
            else:
                (q @ k.mT).softmax(-1) @ k
    with pytest.raises(FedgazeError, match=r"shape \(2, 2, 64, 16\) for 2 images"):
        seen.between_patches(2, (8, 8), (32, 32))


def test_real_weights(real_data: Path) -> None:
    import timm
    from PIL import Image
    from safetensors.torch import load_file
    from torchvision.transforms.functional import normalize, pil_to_tensor

    model = timm.create_model("vit_tiny_patch16_224")
    weights = load_file(real_data / "weights" / "vit_tiny_patch16_224_imagenet_fp16.safetensors")
    model.load_state_dict({name: each.float() for name, each in weights.items()})
    picture = Image.open(real_data / "photos" / "dog_and_cat.png").convert("RGB").resize((224, 224))
    image = normalize(pil_to_tensor(picture) / 255, [0.5] * 3, [0.5] * 3)[None]
    with torch.no_grad():
        expected = model.eval()(image)
        with watching_attention(count=1) as seen:
            found = model(image)
    # 12 blocks in float32: to 1e-5 of the largest logit.
    equal(found, expected, 1e-5 * float(expected.abs().max()))
    assert found.argmax() == 243  # the bull mastiff
    kept, layout = seen.between_patches(1, (14, 14), (224, 224))
    relevance = layout.to_map(
        attention_rollout(kept, head_fusion="max", discard_ratio=0.9)[..., None]
    )
    heat = relevance[0, 0] / relevance.sum()
    assert heat.shape == (14, 14)
    # Dog and cat fill the middle columns; the sides show the door and the floor.
    assert heat[:, 3:11].sum() > 0.7
