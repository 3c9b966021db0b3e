"""The face of any method that explains layers."""

from collections.abc import Sequence

from torch import nn

from fedgaze.xai.classic.config import GradCAMConfig
from fedgaze.xai.classic.gradcam import GradCAM, GradCAMPlusPlus, cam_method
from fedgaze.xai.classic.recommended import get_recommended_layers
from fedgaze.xai.layers import Layer

__all__ = ["create_gradcam"]


def create_gradcam(
    model: nn.Module,
    target_layers: Sequence[Layer] | None = None,
    method: str = "gradcam",
    use_cuda: bool = True,
) -> GradCAM:
    """Make the face of a method.

    Args:
        model: A classifier.
        target_layers: As for `GradCAMConfig`; None for those of `get_recommended_layers`.
        method: Any method that explains layers, by its name; see `list_methods`.
        use_cuda: As for `GradCAMConfig`.

    Raises:
        FedgazeError: There is no such method, or no layer.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> create_gradcam(model, ["0"], method="layercam")
    GradCAM(method='layercam', target_layers=['0'])
    """
    found = cam_method(method)
    layers = get_recommended_layers(model) if target_layers is None else target_layers
    config = GradCAMConfig(target_layers=layers, use_cuda=use_cuda)
    if found.name == GradCAMPlusPlus.default_method:
        return GradCAMPlusPlus(model, config)
    return GradCAM(model, config, found.name)
