"""A model as an ONNX file, and a look whether the file does what the model does."""

import io
import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import logits_of

__all__ = ["OnnxCheck", "check_onnx", "check_onnx_packages", "export_onnx"]

INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4
"""Of the largest logit, or of 1 where that is more: what float32 sums in another order may do."""
_LIMIT = 2**31
"""Bytes of one protobuf message, which an ONNX file is."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TRIED = (1, 4)
"""Batches of how many images are compared."""
_COLOUR = re.compile(r"\x1b\[\d*m")


@dataclass(frozen=True)
class OnnxCheck:
    """What came of running the file beside the model.

    Attributes:
        opset: The version of ONNX's operators.
        images: How many images both were shown.
        difference: The largest difference between two logits.
    """

    opset: int
    images: int
    difference: float


def check_onnx_packages() -> None:
    """See that ONNX files can be written and run.

    Raises:
        FedgazeError: A package is not installed.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise FedgazeError(f"ONNX needs {', '.join(missing)}: pip install 'fedgaze[onnx]'")


class _Logits(nn.Module):
    """A classifier whose output is its logits and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))


def export_onnx(model: nn.Module, shape: tuple[int, int, int], about: Mapping[str, Any]) -> bytes:
    """Turn a classifier into an ONNX file.

    The input is ``images``, float32 ``(batch, C, H, W)`` with any number of images, the output
    ``logits``.

    Args:
        model: On the CPU, in evaluation mode.
        shape: Channels, height and width of the images.
        about: What the file says of itself, by name: texts, and all else as JSON.

    Raises:
        FedgazeError: A package is missing, or the model cannot be exported.
    """
    check_onnx_packages()
    name = type(model).__name__
    size = sum(each.nbytes for each in model.state_dict().values())
    if size >= _LIMIT:
        raise FedgazeError(
            f"{name} has {size / 2**30:.1f} GiB of weights, and an ONNX file holds at most 2 GiB"
        )
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                _Logits(model),
                (torch.rand(2, *shape),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    # The exporter runs the model's own code on stand-ins for images, which may raise anything.
    except Exception as error:
        raise FedgazeError(f"{name} cannot be exported to ONNX: {_cause(error)}") from error
    assert program is not None  # noqa: S101 - it is None only where a file was asked for
    proto = program.model_proto
    for function in (proto.graph, *proto.functions):
        _forget_sources(function.node)
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key = key
        entry.value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    content: bytes = proto.SerializeToString()
    return content


def _forget_sources(nodes: Iterable[Any]) -> None:
    """Take out where each step stands in the source: paths and lines of somebody's machine."""
    for node in nodes:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _forget_sources(graph.node)


def check_onnx(model: nn.Module, shape: tuple[int, int, int], path: Path) -> OnnxCheck:
    """Run an ONNX file on a few images, one alone and several together, beside its model.

    Args:
        model: On the CPU, in evaluation mode.
        shape: Channels, height and width of the images.
        path: The file.

    Raises:
        FedgazeError: The file cannot be run, or its logits are not the model's.
    """
    import onnxruntime

    name = type(model).__name__

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for count in _TRIED:
            # From black to bright.
            light = torch.linspace(0, 1, count + 1)[1:].view(-1, 1, 1, 1)
            images = torch.rand(count, *shape, generator=generator) * light
            with torch.no_grad():
                wanted = logits_of(model(images))
            [found] = session.run([OUTPUT], {INPUT: images.numpy()})
            if found.shape != tuple(wanted.shape):
                raise FedgazeError(
                    f"{name} cannot be exported to ONNX: of {count} images the file makes logits "
                    f"{found.shape}, and the model {tuple(wanted.shape)}"
                )
            difference = (torch.from_numpy(found) - wanted).abs().max().item()
            limit = TOLERANCE * max(1.0, wanted.abs().max().item())
            if not difference <= limit:
                raise FedgazeError(
                    f"{name} cannot be exported to ONNX: the file's logits differ from the "
                    f"model's by {difference:.2g}, and {limit:.2g} is allowed"
                )
            largest = max(largest, difference)
    except FedgazeError:
        raise
    # Each fault of the runtime has a class of its own, with nothing in common but this.
    except Exception as error:
        raise FedgazeError(f"{name}'s ONNX file cannot be run: {_cause(error)}") from error
    return OnnxCheck(_opset(path), sum(_TRIED), largest)


def _opset(path: Path) -> int:
    import onnx

    read = onnx.load(path, load_external_data=False)
    return int(next(each.version for each in read.opset_import if each.domain == ""))


@contextmanager
def _silent() -> Iterator[None]:
    """Torch prints whole graphs when an export fails; one sentence is told instead."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """The first sentence of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(_COLOUR.sub("", str(error)).split()).partition(". ")[0]
    return f"{text[:300]}…" if len(text) > 300 else text or type(error).__name__
