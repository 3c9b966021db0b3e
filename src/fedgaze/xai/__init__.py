"""Heatmaps: where an image classifier looks.

explanation = explain(model, images)      # one forward pass
explanation.heatmaps                      # (N, H, W) in [0, 1]
explanation.overlay(pictures)             # uint8 (N, H, W, 3)
"""

from fedgaze.xai.auto import auto_layer
from fedgaze.xai.capture import Capture, Captured
from fedgaze.xai.colour import overlay
from fedgaze.xai.explainer import explain
from fedgaze.xai.explanation import Explanation
from fedgaze.xai.layers import Layer, Layers, list_layers, resolve_layers
from fedgaze.xai.methods import Method, find_method, grad_cam, grad_cam_plus_plus, list_methods
from fedgaze.xai.targets import Targets, logits_of

__all__ = [
    "Capture",
    "Captured",
    "Explanation",
    "Layer",
    "Layers",
    "Method",
    "Targets",
    "auto_layer",
    "explain",
    "find_method",
    "grad_cam",
    "grad_cam_plus_plus",
    "list_layers",
    "list_methods",
    "logits_of",
    "overlay",
    "resolve_layers",
]
