"""Watch: what happens when an image runs through a model."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedgaze.xai.fast.fuse import CONVOLUTIONS, can_fuse, is_norm
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.running import running
from fedgaze.xai.tokens import main_tensor

__all__ = ["Watch", "watch"]


class Watch:
    """What was seen. Modules go by the first of their names.

    Attributes:
        calls: How often each module ran, in the order in which they first ended.
        pairs: Convolutions (or Linear) by name, with the BatchNorm that read their output next.
        kept: By target layer, what it returned at its last call.
        outputs: All tensors of what the model returned.
        stem: The first convolution that ran; None if none did.
        head: The last module with a weight matrix that ended, and the ReLU that read its output
            next; None if there is none.
        weighing: By target layer, the modules with weight matrices that ended after it.
        reordered: Whether a convolution after the stem read a feature map channels first.
        products: How many products each convolution added up.
        spread: How many of these in convolutions that see more than one position, and all channels.
        weights: How many weights they read.
    """

    def __init__(self, layers: Collection[str]) -> None:
        self.calls: Counter[str] = Counter()
        self.pairs: dict[str, str] = {}
        self._relus: dict[str, str] = {}
        self.kept: dict[str, Tensor] = {}
        self.outputs: list[Tensor] = []
        self.stem: str | None = None
        self.head: tuple[str, str | None] | None = None
        self.weighing: dict[str, list[str]] = {}
        self.reordered = False
        self.products: list[int] = []
        self.spread = 0
        self.weights = 0
        self._layers = layers
        self._last: tuple[str, nn.Module, Tensor, int] | None = None

    def hook(self, names: Collection[str], *, alone: bool) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook for the module of these names.

        Args:
            names: Of the module.
            alone: Whether the module may be one of a pair, and not a part of one that may.
        """
        name = next(iter(names))
        targets = [each for each in names if each in self._layers]

        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            self.calls[name] += 1
            first = inputs[0] if inputs else None
            if isinstance(module, CONVOLUTIONS):
                self._see_convolution(name, module, first, output)
            if alone and (next(module.children(), None) is None or is_norm(module)):
                self._see_pair(name, module, first, output)
            if any(p is not None and p.dim() > 1 for p in module._parameters.values()):  # noqa: SLF001
                self.head = name, None
                for after in self.weighing.values():
                    after.append(name)
            main = main_tensor(output)
            for target in targets:
                self.weighing[target] = []
                if main is not None:
                    self.kept[target] = main.clone()  # what follows may overwrite it

        return see

    def end(self, outputs: Any) -> None:
        """Note what the model returned, and which pairs stay."""
        self._last = None
        # Dataclasses are not looked into by the tree functions.
        held = dict(vars(outputs)) if hasattr(outputs, "__dataclass_fields__") else outputs
        self.outputs = [leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]
        self.pairs = self._inseparable(self.pairs)
        if self.head is not None:
            name, _ = self.head
            self.head = name, self._inseparable(self._relus).get(name)

    def _inseparable(self, pairs: Mapping[str, str]) -> dict[str, str]:
        return {
            first: second
            for first, second in pairs.items()
            # One that runs twice may feed something else the second time. A layer that ends with
            # the first, and not with the second, would return something else.
            if self.calls[first] == self.calls[second] == 1
            and not any(
                _within(first, layer) and not _within(second, layer) for layer in self._layers
            )
        }

    def _see_convolution(self, name: str, module: Any, read: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.products.append(output.numel() * module.weight[0].numel())
            self.weights += module.weight.numel()
            if module.groups == 1 and max(module.kernel_size) > 1:
                self.spread += self.products[-1]
        if self.stem is None:
            self.stem = name
        elif isinstance(read, Tensor) and read.dim() == 4:
            last = read.is_contiguous(memory_format=torch.channels_last)
            self.reordered |= read.is_contiguous() and not last

    def _see_pair(self, name: str, module: nn.Module, read: Any, output: Any) -> None:
        if self._last is not None:
            before, convolution, made, version = self._last
            writes = made._version - version if read is made else -1  # noqa: SLF001
            if writes == 0 and can_fuse(convolution, module, made):
                self.pairs[before] = name
            # One that works in place has written by now.
            if type(module) is nn.ReLU and writes == module.inplace:
                self._relus[before] = name
        self._last = None
        if isinstance(output, Tensor):
            self._last = (name, module, output, output._version)  # noqa: SLF001


def watch(model: nn.Module, inputs: Inputs, layers: Collection[str]) -> Watch:
    """Run the first image through a model, without gradients, and look on.

    Args:
        model: The model.
        inputs: Its arguments for one image or more.
        layers: Names of layers whose output is kept.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    seen = Watch(layers)
    # timm's BatchNorms have an activation within, which ends before they do.
    within = {part for module in names if is_norm(module) for part in module.children()}
    hooks = [
        (module, seen.hook(known, alone=module not in within)) for module, known in names.items()
    ]
    args, kwargs = inputs.take(0, 1).call()
    with running(model, hooks) as forward, torch.no_grad():
        seen.end(forward(*args, **kwargs))
    return seen


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
