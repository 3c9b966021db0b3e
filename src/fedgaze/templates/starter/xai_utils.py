"""Explain one prediction with the method and the layer of the configuration."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze import explain


def apply_gradcam_configurable(
    model: nn.Module, input_tensor: Tensor, label: int | None, cfg: Mapping[str, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Show where the model looks for a class.

    Args:
        model: A classifier.
        input_tensor: A picture (C, H, W) or (1, C, H, W); for the overlay, its values are brought
            to [0, 1].
        label: The class to explain; None for the predicted one.
        cfg: The configuration, of which `xai.method` and `xai.layer` are read.

    Returns:
        The overlay (H, W, 3), and the heatmap (H, W) in [0, 1].
    """
    image = input_tensor.detach().reshape(1, *input_tensor.shape[-3:])
    xai = cfg.get("xai", {})
    explanation = explain(
        model,
        image,
        method=xai.get("method", "gradcam"),
        targets=None if label is None else [int(label)],
        layers=xai.get("layer", "auto"),
    )
    low, high = image.aminmax()
    overlay = explanation.overlay((image - low) / (high - low).clamp_min(1e-12))
    return overlay[0].cpu().numpy(), explanation.heatmaps[0].float().cpu().numpy()
