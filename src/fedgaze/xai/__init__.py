"""Heatmaps: where an image classifier looks.

explanation = explain(model, images)      # one forward pass
explanation.heatmaps                      # (N, H, W) in [0, 1]
explanation.overlay(pictures)             # uint8 (N, H, W, 3)
"""

from fedgaze.xai.asking import open_runner
from fedgaze.xai.auto import auto_layer
from fedgaze.xai.beyond import output, similarity
from fedgaze.xai.capture import Capture, Captured
from fedgaze.xai.choices import above, contrast, log_probability, probability, top_k
from fedgaze.xai.classes import Classes
from fedgaze.xai.colour import COLORMAP, overlay
from fedgaze.xai.concepts import Concepts
from fedgaze.xai.detection import boxes, detections
from fedgaze.xai.explainer import explain
from fedgaze.xai.explanation import Explanation
from fedgaze.xai.factorise import factorise
from fedgaze.xai.layers import Layer, Layers, list_layers, resolve_layers
from fedgaze.xai.methods import find_method, grad_cam, grad_cam_plus_plus, list_methods
from fedgaze.xai.methods.paths import baseline_of
from fedgaze.xai.outputs import logits_of, predictions, probabilities
from fedgaze.xai.registry import Method, check_options, options_of
from fedgaze.xai.runner import Runner
from fedgaze.xai.running import frozen
from fedgaze.xai.segments import segmentation
from fedgaze.xai.survey import layer_means, map_layers
from fedgaze.xai.targets import Target, Targets

__all__ = [
    "COLORMAP",
    "Capture",
    "Captured",
    "Classes",
    "Concepts",
    "Explanation",
    "Layer",
    "Layers",
    "Method",
    "Runner",
    "Target",
    "Targets",
    "above",
    "auto_layer",
    "baseline_of",
    "boxes",
    "check_options",
    "contrast",
    "detections",
    "explain",
    "factorise",
    "find_method",
    "frozen",
    "grad_cam",
    "grad_cam_plus_plus",
    "layer_means",
    "list_layers",
    "list_methods",
    "log_probability",
    "logits_of",
    "map_layers",
    "open_runner",
    "options_of",
    "output",
    "overlay",
    "predictions",
    "probabilities",
    "probability",
    "resolve_layers",
    "segmentation",
    "similarity",
    "top_k",
]
