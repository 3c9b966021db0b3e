"""Oracles of other libraries: their raw maps, before anything is scaled or enlarged."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oracles.cases import Array, Case, wide

Maps = Callable[[Case], Array]


def _labels(case: Case) -> Tensor:
    return torch.tensor(case.classes)


def captum_layer(case: Case) -> Array:
    from captum.attr import LayerGradCam

    model = case.copy()
    found = LayerGradCam(model, model.get_submodule(case.layer)).attribute(
        case.images, target=_labels(case), relu_attributions=False
    )
    return wide(found[:, 0])


def captum_input(name: str, **options: Any) -> Maps:
    """One of Captum's methods by name; its ``attribute`` is called with the options."""

    def maps(case: Case) -> Array:
        from captum import attr

        explainer = getattr(attr, name)(case.copy())
        images = case.images.clone().requires_grad_()
        return wide(explainer.attribute(images, target=_labels(case), **options))

    return maps


def captum_guided_grad_cam(case: Case) -> Array:
    from captum.attr import GuidedGradCam

    model = case.copy()
    explainer = GuidedGradCam(model, model.get_submodule(case.layer))
    return wide(explainer.attribute(case.images, target=_labels(case), interpolate_mode="bilinear"))


def captum_occlusion(case: Case) -> Array:
    """Windows of a seventh of the image, moved by half of that; the loss of probability."""
    from captum.attr import Occlusion

    window = -(-case.images.shape[2] // 7)
    explainer = Occlusion(nn.Sequential(case.copy(), nn.Softmax(1)))
    found = explainer.attribute(
        case.images,
        strides=(3, -(-window // 2), -(-window // 2)),
        sliding_window_shapes=(3, window, window),
        target=_labels(case),
        baselines=0,
    )
    return wide(found[:, 0])


def zennit_lrp(case: Case) -> Array:
    """The composite EpsilonPlus, with the canonizer for the ResNets of torchvision."""
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    model = case.copy()
    leaf = case.images.clone().requires_grad_()
    with EpsilonPlus(canonizers=[ResNetCanonizer()]).context(model) as changed:
        scores = changed(leaf).gather(1, _labels(case)[:, None])[:, 0]
        (shares,) = torch.autograd.grad(scores, leaf, torch.ones_like(scores))
    # zennit shares out 1; relevance is the score itself.
    return wide(shares * scores.detach()[:, None, None, None])


def torchcam(name: str, **options: Any) -> Maps:
    """Signed maps of a class of torchcam."""

    def maps(case: Case) -> Array:
        from torchcam import methods

        model = case.copy()
        reshape = {"reshape_transform": case.laid_out} if case.grid else {}
        shape = tuple(case.images.shape[1:])
        made = getattr(methods, name)(model, case.layer, input_shape=shape, **reshape, **options)
        with made as extractor:
            getattr(extractor, "base_cam", extractor)._relu = False  # noqa: SLF001
            scores = model(case.images.clone().requires_grad_())
            return wide(extractor(case.classes, scores, normalized=False)[0])

    return maps


def torchcam_cam(case: Case) -> Array:
    return torchcam("CAM", fc_layer=case.head)(case)


def pytorch_grad_cam(name: str, target: Callable[[Tensor, int], Tensor] | None = None) -> Maps:
    """Signed maps of a class of pytorch-grad-cam, by the steps of its ``forward``.

    Args:
        name: Of the class.
        target: From an image's logits and its class to what is explained; None for the logit.
    """

    def maps(case: Case) -> Array:
        import pytorch_grad_cam as peer

        model = case.copy()
        layer = model.get_submodule(case.layer)
        reshape = case.laid_out if case.grid else None
        made = getattr(peer, name)(model, [layer], reshape)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            cam = getattr(made, "base_cam", made)
            images = case.images.clone().requires_grad_(cam.compute_input_gradient)
            targets = [_target(label, target) for label in case.classes]
            logits = cam.activations_and_grads(images)
            if cam.uses_gradients:
                total = sum(each(row) for each, row in zip(targets, logits, strict=True))
                if cam.detach:
                    total.backward(retain_graph=True)
                else:
                    torch.autograd.grad(total, images, retain_graph=True, create_graph=True)
            cam.outputs = logits
            held = cam.activations_and_grads
            pair = [each[0] if each else None for each in (held.activations, held.gradients)]
            if cam.detach:
                pair = [None if each is None else each.cpu().data.numpy() for each in pair]
            found = cam.get_cam_image(images, layer, targets, *pair, False)
            return torch.as_tensor(found).double().numpy()

    return maps


def _target(label: int, target: Callable[[Tensor, int], Tensor] | None) -> Any:
    return lambda row: row[label] if target is None else target(row, label)


def pytorch_grad_cam_finer(case: Case) -> Array:
    """Its default: alpha 1, and the three nearest classes weighted by their probabilities."""
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    def target(row: Tensor, label: int) -> Tensor:
        order = (row.detach() - row.detach()[label]).abs().argsort().tolist()
        score: Tensor = FinerWeightedTarget(label, order[1:4], 1)(row)
        return score

    return pytorch_grad_cam("GradCAM", target)(case)


def pytorch_grad_cam_full(case: Case) -> Array:
    from pytorch_grad_cam import FullGrad

    model = case.copy()
    with FullGrad(model, []) as cam:
        images = case.images.clone().requires_grad_()
        logits = cam.activations_and_grads(images)
        torch.stack([r[c] for r, c in zip(logits, case.classes, strict=True)]).sum().backward()
        return (
            torch.as_tensor(cam.compute_cam_per_layer(images, None, False))[:, 0].double().numpy()
        )
