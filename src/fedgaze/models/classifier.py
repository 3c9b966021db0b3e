"""A model with everything that is needed to show it a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedgaze.errors import FedgazeError
from fedgaze.models.build import build_model
from fedgaze.models.checkpoint import load_weights, read_checkpoint
from fedgaze.models.classes import imagenet_classes, read_classes
from fedgaze.models.preprocess import (
    IMAGENET,
    Preprocess,
    input_channels,
    read_preprocess,
    weights_preprocess,
)
from fedgaze.models.resolve import resolve_name

__all__ = ["Classifier", "open_classifier"]


@dataclass(frozen=True)
class Classifier:
    """A model, how its pictures are prepared, and what its outputs are called.

    Attributes:
        model: In evaluation mode, on the CPU.
        name: As it was asked for.
        preprocess: What is done to a picture first.
        classes: The outputs' names by index; empty where nobody said them.
    """

    model: nn.Module
    name: str
    preprocess: Preprocess
    classes: tuple[str, ...]

    def label(self, index: int) -> str:
        """Return the name of a class, or its index where it has none."""
        return self.classes[index] if index < len(self.classes) else str(index)


def open_classifier(
    name: str | None = None,
    *,
    checkpoint: Path | None = None,
    code: str | None = None,
    classes: Path | None = None,
    preprocess: str | None = None,
    random_weights: bool = False,
) -> Classifier:
    """Open the classifier that a command line describes.

    Args:
        name: What `build_model` takes as a name. Without a checkpoint, its published weights are
            used, and fetched if need be.
        checkpoint: A file of weights. Its last layer says how many classes there are.
        code: Instead of a name: ``FILE.py:Class`` (or a function), called without arguments but
            ``num_classes`` where it takes that. Needs a checkpoint: it has no published weights.
        classes: A file of class names. By default a library's model with 1,000 outputs has
            ImageNet's, and a transformers model its own.
        preprocess: ``imagenet``, ``none`` (as it is, in [0, 1]) or a file (see `read_preprocess`).
            By default what the weights ask for; for code, ``none``.
        random_weights: Of a named model: not its published weights, but those it is made with.

    Raises:
        FedgazeError: Something of this cannot be used. Files are looked at before any is built.
    """
    if (name is None) == (code is None):
        raise FedgazeError(
            "say which model: --model NAME (for instance resnet50) or --model-code FILE.py:Class"
        )
    weights = read_checkpoint(checkpoint) if checkpoint else None
    labels = read_classes(classes) if classes else None
    if preprocess not in (None, "imagenet", "none") and not Path(str(preprocess)).is_file():
        raise FedgazeError(
            f"--preprocess '{preprocess}' must be 'imagenet', 'none' or a JSON or YAML file"
        )
    build = _Recipe.of(name, code, has_weights=weights is not None or random_weights)
    model = build.model(len(labels) if labels else None)
    if weights is not None:
        outputs = _outputs(model, weights)
        if outputs is not None and labels is None:
            model = build.model(outputs)
        load_weights(model, weights, str(checkpoint))
    model.eval()
    return Classifier(
        model=model,
        name=build.name,
        preprocess=_preprocess(preprocess, model, build),
        classes=labels if labels is not None else _classes(model, build),
    )


@dataclass(frozen=True)
class _Recipe:
    """How the model is built, so that it can be built again with another number of classes."""

    name: str
    target: str | None
    task_dir: Path | None
    source: str
    architecture: str
    pretrained: bool

    @classmethod
    def of(cls, name: str | None, code: str | None, *, has_weights: bool) -> "_Recipe":
        if code is not None:
            file, _, builder = code.rpartition(":")
            path = Path(file)
            if not file or not builder or path.suffix != ".py":
                raise FedgazeError(f"--model-code '{code}' should be FILE.py:Class")
            if not path.is_file():
                raise FedgazeError(f"--model-code: {path} is not a file")
            if not has_weights:
                raise FedgazeError("--model-code has no published weights: add --checkpoint FILE")
            return cls(code, f"{path.stem}.{builder}", path.parent, "task", code, pretrained=False)
        name = str(name)
        if name.startswith("hf:"):
            place = name.removeprefix("hf:")
            return cls(name, None, None, "transformers", place, pretrained=True)
        found = resolve_name(name)
        if not has_weights and found.source not in ("torchvision", "timm"):
            raise FedgazeError(f"{name} has no published weights: add --checkpoint FILE")
        return cls(name, None, None, found.source, found.name, pretrained=not has_weights)

    def model(self, num_classes: int | None) -> nn.Module:
        return build_model(
            self.target,
            None if self.target else self.name,
            task_dir=self.task_dir,
            num_classes=num_classes,
            pretrained=self.pretrained,
        )


def _outputs(model: nn.Module, weights: Mapping[str, Tensor]) -> int | None:
    """Return how many classes the file's last layer has, where the model's has another number.

    The last layer of a classifier comes last in the order in which its parameters were registered.
    """
    last, own = list(model.state_dict().items())[-1]
    found = next((value for key, value in weights.items() if key.endswith(last)), None)
    if found is None or is_lazy(own) or found.ndim == 0 or found.shape[1:] != own.shape[1:]:
        return None
    return None if found.shape == own.shape else int(found.shape[0])


def _preprocess(word: str | None, model: nn.Module, build: _Recipe) -> Preprocess:
    if word is None:
        return weights_preprocess(model, build.source, build.architecture)
    channels = 1 if build.source == "fedgaze" else input_channels(model)
    if word == "none":
        return Preprocess(channels=channels)
    if word != "imagenet":
        return read_preprocess(Path(word), channels)
    if channels != IMAGENET.channels:
        raise FedgazeError(
            "the model takes grey pictures and --preprocess imagenet gives coloured ones; say how "
            "to prepare them with --preprocess FILE"
        )
    return IMAGENET


def _classes(model: nn.Module, build: _Recipe) -> tuple[str, ...]:
    if build.source == "transformers":
        named = getattr(getattr(model, "config", None), "id2label", None) or {}
        return tuple(str(named[index]) for index in sorted(named))
    if build.source not in ("torchvision", "timm"):
        return ()
    names = imagenet_classes()
    last = list(model.state_dict().values())[-1]
    return names if last.shape[:1] == (len(names),) else ()
