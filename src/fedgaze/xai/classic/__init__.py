"""The classic API: thin faces of `fedgaze.explain`, with NumPy in and out.

gradcam = GradCAM(model, GradCAMConfig(target_layers=["layer4"]))
heatmap = gradcam.generate_heatmap(image)             # (H, W) in [0, 1]
gradcam.visualize(picture, heatmap)                   # BGR, as OpenCV writes it
"""

from fedgaze.xai.classic.attention import AttentionRollout
from fedgaze.xai.classic.config import GradCAMConfig
from fedgaze.xai.classic.create import create_gradcam
from fedgaze.xai.classic.gradcam import GradCAM, GradCAMPlusPlus
from fedgaze.xai.classic.recommended import get_recommended_layers

__all__ = [
    "AttentionRollout",
    "GradCAM",
    "GradCAMConfig",
    "GradCAMPlusPlus",
    "create_gradcam",
    "get_recommended_layers",
]
