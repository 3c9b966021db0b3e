"""Models that cannot be explained, found before any work."""

from collections.abc import Mapping

from torch import nn
from torch.jit import ScriptModule

from fedgaze.errors import FedgazeError
from fedgaze.xai.registry import Method

__all__ = ["check_model"]

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_ANYWHERE = "occlusion or rise"  # these only look at what goes in and comes out


def check_model(model: nn.Module, named: Mapping[str, nn.Module], method: Method) -> None:
    """Find out whether a method can see what it needs of a model.

    Args:
        model: The model.
        named: Its layers by name.
        method: The method.

    Raises:
        FedgazeError: The model is quantised or TorchScript.
    """
    if not (method.layers or method.gradients):
        return
    if isinstance(model, ScriptModule):
        raise FedgazeError(
            f"the model is TorchScript, into which {method.name} cannot look; explain the model "
            f"that it was made from, or use {_ANYWHERE}"
        )
    opaque = {each for each in {type(model), *map(type, named.values())} if _hides(each, method)}
    if opaque:
        name = next((name for name, each in named.items() if type(each) in opaque), "")
        kind = type(named.get(name, model)).__name__
        raise FedgazeError(
            f"layer {name!r} is quantised ({kind}), which {method.name} cannot see through; "
            f"explain the model as it was before that, or use {_ANYWHERE}"
        )


def _hides(kind: type, method: Method) -> bool:
    if not kind.__module__.startswith(_QUANTISED) or kind.__name__.endswith("PackedParams"):
        return False
    # Layers that quantise each input on their own take and return floats.
    return method.gradients or "dynamic" not in kind.__module__
