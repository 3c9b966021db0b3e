"""What a configuration may name, and above all what it may not."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from fedgaze.errors import FedgazeError
from fedgaze.models import build_model
from fedgaze.models.resolve import resolve_name, resolve_target

MODELS = """
import os
import subprocess
import torch
from os import system
from subprocess import Popen
from torch import nn
from torch.hub import load
from torch.nn import Linear

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(4, num_classes)

class NotAModel:
    def __init__(self):
        raise SystemError("constructed")

def build(num_classes=10):
    return Net(num_classes)

def gives_no_model():
    return 3

_hidden = Net
alias = os.system
instance = Net()
dispatch = {"a": Net}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


ATTACKS = [
    # Through an attribute of a module that imports more than models.
    "torch.os.system",
    "torch.hub.load",
    "torch.load",
    "torch.nn.Linear",
    "torch.serialization.os.system",
    "os.system",
    "subprocess.Popen",
    "builtins.exec",
    "importlib.import_module",
    "sys.modules",
    "torchvision.os.system",
    "torchvision.torch.hub.load",
    "torchvision.models.os.system",
    "torchvision.models.resnet.nn.Sequential",
    "torchvision.models.resnet.torch.hub.load",
    "torchvision.models.resnet.partial",
    "torchvision.models.get_model",
    "torchvision.models._api.load_state_dict_from_url",
    "torchvision.models.inception.warnings.warn",
    "torchvision.datasets.ImageFolder",
    "torchvision.io.read_image",
    "torchvision.ops.misc.Conv2dNormActivation",
    "timm.create_model",
    "timm.os.system",
    "timm.models.load_checkpoint",
    "timm.models.vision_transformer.os.system",
    "timm.models.vision_transformer.torch.hub.load",
    "timm.models.layers.resnet50",
    "timm.data.create_dataset",
    "timm.data.vit_tiny_patch16_224",
    "timm.utils.vit_tiny_patch16_224",
    "timm.models.resnet.vit_tiny_patch16_224",
    "transformers.pipeline",
    "transformers.os.system",
    "transformers.AutoModel.from_pretrained",
    "transformers.AutoTokenizer",
    "transformers.Trainer",
    "transformers.utils.hub.cached_file",
    "transformers.dynamic_module_utils.get_class_from_dynamic_module",
    "transformers.models.vit.modeling_vit.torch.hub.load",
    "transformers.ViTForImageClassification.from_pretrained",
    "fedgaze.models.subprocess",
    "fedgaze.models.build_model",
    "fedgaze.models.Classifier",
    "fedgaze.models.resolve.importlib.import_module",
    "fedgaze.models.digits.torch.hub.load",
    "fedgaze.errors.FedgazeError",
    "fedgaze.config.Task",
    # Through the task's own file.
    "models.os",
    "models.os.system",
    "models.system",
    "models.alias",
    "models.Popen",
    "models.subprocess.Popen",
    "models.load",
    "models.torch.hub.load",
    "models.nn",
    "models.nn.Linear",
    "models.NotAModel",
    "models.instance",
    "models.dispatch",
    "models.Net.forward",
    "models.build.__globals__",
    # Names that are none.
    "models._hidden",
    "models.__builtins__",
    "models.__builtins__.exec",
    "models.__class__",
    "__main__.x",
    "__import__.os",
    "models",
    "",
    ".",
    "..models.Net",
    "models..Net",
    "models.Net()",
    "models.Net ",
    "../models.Net",
    "models/Net.x",
    "models:Net",
    "models.Net\n",
    "models.import",
]


_seen: list[str] = []
_watching = False


def _watch(event: str, _: object) -> None:
    programs = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork")
    if _watching and event.startswith((*programs, "socket.connect", "socket.getaddrinfo")):
        _seen.append(event)


sys.addaudithook(_watch)  # Python's own; it cannot be taken away again, so it has a switch


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """The programs that were started and the hosts that were called during a test."""
    global _watching  # noqa: PLW0603
    _seen.clear()
    _watching = True
    yield _seen
    _watching = False


def test_the_watch_sees_a_program_and_a_call(watched: list[str]) -> None:
    os.system("true")  # noqa: S605
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 1), timeout=0.1)
    assert {"os.system", "socket.connect"} <= set(watched)


@pytest.mark.parametrize("target", ATTACKS)
def test_nothing_but_a_model_is_reached(task: Path, target: str, watched: list[str]) -> None:
    arguments = {"command": "true", "repo_or_dir": "a/b", "model": "c", "num_classes": 2}
    with pytest.raises(FedgazeError):
        resolve_target(target, task)
    with pytest.raises(FedgazeError):
        build_model(target, arguments=arguments, task_dir=task)
    # Nor by way of the name, which also takes targets.
    with pytest.raises(FedgazeError):
        build_model(name=target, arguments=arguments, task_dir=task)
    assert watched == []


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("models.Net", "task"),
        ("models.build", "task"),
        ("models.Linear", "task"),
        ("torchvision.models.resnet18", "torchvision"),
        ("torchvision.models.resnet.resnet18", "torchvision"),
        ("torchvision.models.ResNet", "torchvision"),
        ("torchvision.models.segmentation.fcn_resnet50", "torchvision"),
        ("timm.vit_tiny_patch16_224", "timm"),
        ("timm.models.resnet50", "timm"),
        ("timm.models.vision_transformer.vit_tiny_patch16_224", "timm"),
        ("timm.models.vision_transformer.VisionTransformer", "timm"),
        ("transformers.ViTForImageClassification", "transformers"),
        ("transformers.models.vit.modeling_vit.ViTForImageClassification", "transformers"),
        ("fedgaze.models.DigitsNet", "fedgaze"),
    ],
)
def test_models_are_reached(task: Path, target: str, source: str) -> None:
    assert resolve_target(target, task).source == source


def test_what_a_function_returns_must_be_a_model(task: Path) -> None:
    with pytest.raises(FedgazeError, match=r"models\.gives_no_model built no torch\.nn\.Module"):
        build_model("models.gives_no_model", task_dir=task)


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_name("resnet50").source == "torchvision"
    assert resolve_name("timm:resnet50").source == "timm"
    assert resolve_name("vit_tiny_patch16_224").source == "timm"
    assert resolve_name("vit_tiny_patch16_224.augreg_in21k").source == "timm"
    assert resolve_name("torchvision.models.resnet50").name == "resnet50"
    with pytest.raises(FedgazeError, match=r"'resnet5O'; the nearest are .*resnet50"):
        resolve_name("resnet5O")
    # A repository's configuration would choose the architecture, and be fetched for it.
    for name in ("hf-hub:a/b", "local-dir:/tmp", "timm:hf-hub:a/b", "timm:local-dir:/tmp", "a/b"):
        with pytest.raises(FedgazeError):
            resolve_name(name)
    # timm is an extra.
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FedgazeError, match=r"pip install 'fedgaze\[hub\]'"):
        resolve_name("timm:resnet50")


def test_a_target_needs_a_task_directory() -> None:
    with pytest.raises(FedgazeError, match="must begin with torchvision, timm"):
        resolve_target("models.Net", None)


def test_errors_name_the_nearest(task: Path) -> None:
    for target, near in [
        ("models.Nett", "Net"),
        ("model.Net", "models"),
        ("torchvision.models.resnet19", "resnet18"),
        ("timm.vit_tinny_patch16_224", "vit_tiny_patch16_224"),
        ("transformers.VitForImageClassification", "ViTForImageClassification"),
    ]:
        with pytest.raises(FedgazeError, match=f"did you mean '{near}'"):
            resolve_target(target, task)


def test_a_link_in_the_task_is_the_users_own_file(task: Path, tmp_path: Path) -> None:
    (task / "net.py").symlink_to(task / "models.py")
    assert issubclass(resolve_target("net.Net", task).make, nn.Module)  # type: ignore[arg-type]
    assert os.fspath(task) not in sys.path


def test_a_model_without_weights_is_built_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    build_model(name="googlenet")
    assert not [each for each in recwarn if "weight initialization" in str(each.message)]
