"""`explain` on every transformer, with nothing given but the model and the images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain, find_method
from fedgaze.xai.tokens import main_tensor, with_main

ATTENTION = ("attention_rollout", "attention_flow", "raw_attention", "gradient_rollout")
# Of those that need only what a layer returned: each is checked against its paper elsewhere.
BY_WEIGHTS = ("gradcam++", "xgradcam", "hirescam", "layercam", "gradcam_elementwise")
BY_MAPS = ("eigencam", "eigengradcam", "kpcacam")
# Attention over windows or merged tokens, and none at all: why it is not followed.
NOT_FOLLOWED = {
    **dict.fromkeys(("Swin", "MaxViT", "PVT", "SegFormer"), "goes over windows"),
    **dict.fromkeys(("ConvNeXt", "Mixer"), "no attention maps captured"),
}


def full_graph(case: Any, model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer returned and its gradient of the predicted class, by a plain hook."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        kept.append(main_tensor(output))
        return with_main(output, kept[-1].clone())

    handle = model.get_submodule(name).register_forward_hook(keep)
    score = case.scores(model(images)).amax(1).sum()
    handle.remove()
    return kept[-1].detach(), torch.autograd.grad(score, kept[-1])[0]


def state(model: nn.Module) -> list[Any]:
    """All that an explanation could leave behind."""
    hooks = [
        len(each)
        for part in model.modules()
        for each in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
    ]
    flags = [(part.training, getattr(part, "fused_attn", None)) for part in model.modules()]
    configs = [str(getattr(part, "config", "")) for part in model.modules()]
    kernels = [
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
    ]
    grads = [(each.grad, each.requires_grad) for each in model.parameters()]
    return [hooks, flags, configs, kernels, grads]


def test_cam_methods_on_token_grids(case: Any, laid: Callable[..., Any]) -> None:
    model, images = case.build(), case.images()
    before = state(model.train())
    found = explain(model, images)
    assert state(model) == before
    model.eval()
    (name,) = found.layers
    layout = laid(model, name, images).layout
    tensors = full_graph(case, model, name, images)
    a, g = (layout.to_map(each).double().numpy() for each in tensors)
    assert tuple(found.raw.shape[1:]) == layout.grid == a.shape[2:]
    for image in range(2):
        raw = np.zeros(layout.grid)
        for k in range(a.shape[1]):
            raw += g[image, k].mean() * a[image, k]
        truth = np.maximum(raw, 0)
        np.testing.assert_allclose(
            found.raw[image], truth, rtol=1e-3, atol=1e-4 * np.abs(raw).max()
        )
    a, g = (layout.to_map(each) for each in tensors)
    for method in BY_WEIGHTS:
        weights = find_method(method).compute(a, g)
        truth = (weights * a).sum(1).relu()
        raw = explain(model, images, method).raw
        torch.testing.assert_close(raw, truth, rtol=1e-3, atol=1e-4 * float(truth.max()) + 1e-12)
    for method in BY_MAPS:
        truth = find_method(method).compute(a, g).relu()
        raw = explain(model, images, method).raw
        torch.testing.assert_close(raw, truth, rtol=1e-2, atol=1e-3 * float(truth.max()) + 1e-12)


@pytest.mark.parametrize("name", ["torchvision ViT", "timm Swin", "transformers DINOv2, registers"])
def test_methods_that_change_the_layer(cases: Any, laid: Callable[..., Any], name: str) -> None:
    case = cases[name]
    model, images = case.build(), case.images(1)
    before = state(model)
    found = explain(model, images, "ablationcam", relu=False)
    where = laid(model, found.layers[0], images)
    clean = case.scores(model(images)).detach()[0]
    best, raw = int(clean.argmax()), np.zeros(where.layout.grid)
    for k in range(where.maps.shape[1]):
        changed = where.maps.clone()
        changed[:, k] = 0
        tokens = where.layout.from_map(changed, where.tensor)
        module = model.get_submodule(found.layers[0])
        handle = module.register_forward_hook(lambda _m, _i, o, t=tokens: with_main(o, t))
        with torch.no_grad():
            score = case.scores(model(images))[0, best]
        handle.remove()
        raw += float((clean[best] - score) / clean[best]) * where.maps[0, k].numpy()
    np.testing.assert_allclose(found.raw[0], raw, rtol=1e-3, atol=1e-3 * np.abs(raw).max())
    for method in ("scorecam", "shapleycam", "groupcam"):
        assert explain(model, images, method).raw.isfinite().all()
    assert state(model) == before


def test_attention_methods_run_or_say_why_not(case: Any) -> None:
    model, images = case.build(), case.images()
    before = state(model)
    grid = tuple(each // case.late[1] for each in case.size)
    reasons = [why for name, why in NOT_FOLLOWED.items() if name in case.name]
    for method in ATTENTION:
        if reasons:
            with pytest.raises(FedgazeError, match=f"{reasons[0]}.*gradcam"):
                explain(model, images, method)
        else:
            found = explain(model, images, method, targets=1)
            assert found.raw.shape == (2, *grid)
            assert found.flags == ((), ())
            assert found.raw.flatten(1).std(1).min() > 0
    assert state(model) == before


@pytest.mark.parametrize("name", ["torchvision ViT", "timm ViT", "transformers ViT"])
@pytest.mark.parametrize("method", ["gradcam", "saliency", "gradient_rollout"])
def test_maps_of_fused_attention_can_be_trained_with(cases: Any, name: str, method: str) -> None:
    case = cases[name]
    model, images = case.build().double(), case.images(1).double()
    weight = next(p for n, p in model.named_parameters() if p.dim() == 2 and "1" in n)

    def loss() -> Tensor:
        found = explain(model, images, method, 1, relu=False, differentiable=True)
        return found.raw.square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    assert torch.backends.cuda.flash_sdp_enabled()
    direction = gradient / gradient.norm()
    steps = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight += step * direction
        steps.append(loss().item())
        with torch.no_grad():
            weight -= step * direction
    slope = (steps[0] - steps[1]) / 2e-5
    assert slope == pytest.approx(float(gradient.norm()), rel=1e-3)
