"""Grad-CAM and its relatives under their classic names."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.classic.config import GradCAMConfig
from fedgaze.xai.classic.device import on_cuda
from fedgaze.xai.classic.pictures import Picture, read_images
from fedgaze.xai.classic.recommended import get_recommended_layers
from fedgaze.xai.classic.visualize import visualize
from fedgaze.xai.explainer import explain
from fedgaze.xai.explanation import Explanation
from fedgaze.xai.layers import Layer, resolve_layers
from fedgaze.xai.maps import FUSIONS, resized, to_heatmaps
from fedgaze.xai.methods import find_method, list_methods
from fedgaze.xai.registry import Method

__all__ = ["GradCAM", "GradCAMPlusPlus", "cam_method"]

Heatmap = NDArray[np.float32]


class GradCAM:
    """Grad-CAM of one image or many, as NumPy arrays: a thin face of `fedgaze.explain`.

    The model is found after each call as it was before, and no hook stays between calls.

    Args:
        model: A classifier.
        config: None for the defaults, with the layers of `get_recommended_layers`.
        method: Any method that explains layers, by its name; None for that of the class.

    Attributes:
        model: The model.
        config: The settings.
        target_layers: The layers by name.
        activations: By layer, what it returned in the last call, ``(N, K, h, w)``, detached; of a
            call with more than ``batch_size`` images the last of them. Methods that run variants
            of images (``scorecam``) leave none here.
        gradients: Likewise the gradients of the scores, as they were before ``relu_on_gradients``
            and ``use_abs_gradients``; none of methods without gradients.
        explanation: All of the last call, with scores and flags; None before the first.

    Raises:
        FedgazeError: There is no such layer or method, or the method has no use for a setting.

    >>> import torch
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ... )
    >>> with GradCAM(model, GradCAMConfig(target_layers=["1"])) as gradcam:
    ...     gradcam.generate_heatmap(torch.rand(1, 8, 6)).shape
    (8, 6)
    """

    default_method: ClassVar[str] = "gradcam"
    visualize = staticmethod(visualize)

    def __init__(
        self, model: nn.Module, config: GradCAMConfig | None = None, method: str | None = None
    ) -> None:
        self.model = model
        self.config = config or GradCAMConfig(target_layers=get_recommended_layers(model))
        found = resolve_layers(model, self.config.target_layers)
        # "auto" is no layer by itself.
        self.target_layers = found or resolve_layers(model, get_recommended_layers(model))
        self.method = cam_method(method or self.default_method)
        self._check_settings()
        self.remove_hooks()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove_hooks()

    def __repr__(self) -> str:
        layers = list(self.target_layers)
        return f"{type(self).__name__}(method={self.method.name!r}, target_layers={layers})"

    def remove_hooks(self) -> None:
        """Forget what the last call left. Hooks are there only while a call lasts."""
        self.activations: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.explanation: Explanation | None = None

    def generate_heatmap(
        self,
        input_tensor: Picture,
        class_idx: int | None = None,
        target_layer: Layer | None = None,
    ) -> Heatmap:
        """Explain one image.

        Args:
            input_tensor: ``(C, H, W)`` or ``(1, C, H, W)``, preprocessed as the model wants it; or
                an array ``(H, W, C)`` or a PIL image, which are brought to [0, 1], and no further.
            class_idx: The class; None for the predicted one.
            target_layer: Any layer of the model; None for the first of the target layers.

        Returns:
            float32 ``(H, W)`` in [0, 1]; zero everywhere where nothing speaks for the class.

        Raises:
            FedgazeError: It is more than one image, or there is no such class or layer.
        """
        images = _single(read_images(input_tensor, self.model))
        return self._of_layer(images, class_idx, target_layer)[0]

    def generate_batch_heatmaps(
        self,
        input_batch: Picture,
        class_indices: int | Sequence[int] | Tensor | None = None,
        target_layer: Layer | None = None,
    ) -> list[Heatmap]:
        """Explain many images, ``batch_size`` of them at once.

        Args:
            input_batch: ``(N, C, H, W)``, or arrays or PIL images as for `generate_heatmap`.
            class_indices: A class for each image, or one for all; None for the predicted ones.
            target_layer: As for `generate_heatmap`.

        Returns:
            As `generate_heatmap`, for each image.

        Raises:
            FedgazeError: There are not as many classes as images.
        """
        return self._of_layer(read_images(input_batch, self.model), class_indices, target_layer)

    def get_multi_layer_heatmap(
        self, input_tensor: Picture, class_idx: int | None = None, aggregation: str = "mean"
    ) -> Heatmap:
        """Explain one image with all target layers in one pass.

        Args:
            input_tensor: As for `generate_heatmap`.
            class_idx: As for `generate_heatmap`.
            aggregation: What is made of the layers' maps, each divided by its maximum: ``"mean"``,
                ``"max"`` or ``"weighted"``, a mean in which of L layers the deepest counts L times
                as much as the first.

        Returns:
            As `generate_heatmap`.

        Raises:
            FedgazeError: There is no such aggregation or class.
        """
        if aggregation not in FUSIONS:
            raise FedgazeError(
                f"aggregation is {aggregation!r}; allowed are {', '.join(FUSIONS)}"
                f"{nearest(str(aggregation), FUSIONS)}"
            )
        images = _single(read_images(input_tensor, self.model))
        found = self._explain(images, class_idx, list(self.target_layers), aggregation)
        return self._heatmaps(found.raw, images)[0]

    def _of_layer(self, images: Tensor, classes: Any, layer: Layer | None) -> list[Heatmap]:
        first = next(iter(self.target_layers))
        name = first if layer is None else next(iter(resolve_layers(self.model, layer)))
        # All are hooked, as ever, so that gradients are there of all; but variants run for one.
        several = {**self.target_layers, name: None} if self.method.kind != "run" else [name]
        found = self._explain(images, classes, list(several))
        return self._heatmaps(found.per_layer[name], images)

    def _explain(
        self, images: Tensor, classes: Any, layers: list[Layer], fusion: str = "mean"
    ) -> Explanation:
        self.remove_hooks()
        kept: deque[tuple[Tensor, Tensor | None]] = deque(maxlen=len(layers))
        with on_cuda(self.model, self.config.use_cuda):
            found = explain(
                self.model,
                images,
                self._watched(kept),
                classes,
                layers,
                fusion=fusion,
                smoothing="eigen" if self.config.eigen_smooth else (),
                batch_size=self.config.batch_size,
                interpolation=self.config.interpolation_mode,
            )
        for name, (activations, gradients) in zip(found.layers, kept, strict=False):
            self.activations[name] = activations.detach()
            if gradients is not None:
                self.gradients[name] = gradients.detach()
        self.explanation = found
        return found

    def _watched(self, kept: deque[tuple[Tensor, Tensor | None]]) -> Method:
        """The method, which keeps what it was given and changes gradients as asked."""
        method, config = self.method, self.config
        if method.kind == "run":
            return method

        @wraps(method.compute)
        def compute(activations: Tensor, gradients: Tensor | None, **options: Any) -> Tensor:
            kept.append((activations, gradients))
            if gradients is not None and config.relu_on_gradients:
                gradients = gradients.relu()
            if gradients is not None and config.use_abs_gradients:
                gradients = gradients.abs()
            return method.compute(activations, gradients, **options)

        return replace(method, compute=compute)

    def _heatmaps(self, raw: Tensor, images: Tensor) -> list[Heatmap]:
        size = self.config.output_size or tuple(images.shape[2:])
        bring = to_heatmaps if self.config.normalize_heatmap else resized
        return list(bring(raw, size, self.config.interpolation_mode).float().cpu().numpy())

    def _check_settings(self) -> None:
        method, config = self.method, self.config
        for name in ("relu_on_gradients", "use_abs_gradients"):
            if getattr(config, name) and not (method.gradients and method.kind != "run"):
                raise FedgazeError(
                    f"{name} is True, which {method.name} has no use for: it weights nothing by "
                    "gradients; leave it out, or use a method such as gradcam"
                )
        if config.eigen_smooth and method.kind != "weights":
            raise FedgazeError(
                f"eigen_smooth is True, which {method.name} has no use for: it does not weight "
                "channels; leave it out, or use a method such as gradcam"
            )


class GradCAMPlusPlus(GradCAM):
    """Grad-CAM++, exact to its paper; see `GradCAM` and `grad_cam_plus_plus_weights`."""

    default_method: ClassVar[str] = "gradcam++"


def cam_method(name: str) -> Method:
    """Find a method among those that explain layers."""
    allowed = {each.name: each for each in list_methods() if each.layers}
    if name not in allowed:
        raise FedgazeError(
            f"method is {name!r}; allowed are {', '.join(allowed)}{nearest(str(name), allowed)}"
        )
    return find_method(name)


def _single(images: Tensor) -> Tensor:
    if len(images) != 1:
        raise FedgazeError(
            f"the input holds {len(images)} images; allowed is one, or generate_batch_heatmaps"
        )
    return images
