"""Get a model: from torchvision, timm, transformers, a checkpoint or the user's own code."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedgaze.models.build import MissingWeightsError, build_model, plan_model
from fedgaze.models.checkpoint import load_checkpoint, load_weights, read_checkpoint
from fedgaze.models.classes import find_class, imagenet_classes, read_classes
from fedgaze.models.classifier import Classifier, open_classifier
from fedgaze.models.depth import layers_by_depth
from fedgaze.models.described import describe_layers
from fedgaze.models.device import choose_device
from fedgaze.models.onnxfile import OnnxCheck, check_onnx, check_onnx_packages, export_onnx
from fedgaze.models.ownfiles import own_files
from fedgaze.models.preprocess import IMAGENET, Preprocess, read_preprocess, weights_preprocess
from fedgaze.models.resolve import OWN_MODELS
from fedgaze.models.script import build_script, without_weights
from fedgaze.models.taskcode import last_own_line, task_module, task_object

if TYPE_CHECKING:
    from fedgaze.models.cifar import CifarResNet
    from fedgaze.models.digits import DigitsNet

__all__ = [
    "IMAGENET",
    "CifarResNet",
    "Classifier",
    "DigitsNet",
    "MissingWeightsError",
    "OnnxCheck",
    "Preprocess",
    "build_model",
    "build_script",
    "check_onnx",
    "check_onnx_packages",
    "choose_device",
    "describe_layers",
    "export_onnx",
    "find_class",
    "imagenet_classes",
    "last_own_line",
    "layers_by_depth",
    "load_checkpoint",
    "load_weights",
    "open_classifier",
    "own_files",
    "plan_model",
    "read_checkpoint",
    "read_classes",
    "read_preprocess",
    "task_module",
    "task_object",
    "weights_preprocess",
    "without_weights",
]


def __getattr__(name: str) -> Any:
    if name in OWN_MODELS:
        return getattr(import_module(OWN_MODELS[name]), name)
    raise AttributeError(f"module 'fedgaze.models' has no attribute {name!r}")
