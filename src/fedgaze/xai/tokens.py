"""Where things are: what a layer returned, laid out as a map of channels."""

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError

__all__ = [
    "Layout",
    "feature_map",
    "grids_of",
    "lay_out",
    "main_tensor",
    "patch_layers",
    "token_layout",
    "with_main",
]

Size = tuple[int, ...]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm2d)
# The names under which transformers and torchvision hand on what the next part reads.
_MAIN = ("last_hidden_state", "out")
# Class, distillation and register tokens that stand before the patches: at full resolution, after
# tokens were merged (a class token at most), and where the size of a patch is only guessed.
_MOST, _MOST_MERGED, _MOST_GUESSED = 16, 1, 5


@dataclass(frozen=True)
class Layout:
    """How a layer's output is a map ``(N, K, *grid)``, and how such a map is that output.

    Attributes:
        grid: Positions in each direction.
        prefix: How many tokens without a place (class, distillation, registers) lead.
        tokens: Whether the positions stand in one row of tokens, ``(N, T, K)``.
        channels_last: Whether channels come last.

    >>> layout = Layout((2, 3), prefix=1, tokens=True, channels_last=True)
    >>> layout.to_map(torch.zeros(1, 7, 5)).shape
    torch.Size([1, 5, 2, 3])
    """

    grid: Size
    prefix: int = 0
    tokens: bool = False
    channels_last: bool = False

    def to_map(self, tensor: Tensor) -> Tensor:
        """A view ``(N, K, *grid)`` of the layer's output, without the leading tokens."""
        tensor = tensor.movedim(-1, 1) if self.channels_last else tensor
        return tensor[:, :, self.prefix :].unflatten(2, self.grid) if self.tokens else tensor

    def from_map(self, changed: Tensor, original: Tensor) -> Tensor:
        """The inverse: an output of the layer with other numbers at the positions.

        Args:
            changed: ``(m, K, *grid)``.
            original: What the layer returned, of as many rows or of one; its leading tokens stay.
        """
        if self.tokens:
            leading = original.movedim(-1, 1) if self.channels_last else original
            leading = leading[:, :, : self.prefix].expand(len(changed), -1, -1)
            changed = torch.cat([leading, changed.flatten(2)], dim=2)
        # In one piece, as the model wrote it: what follows may ask for a view.
        return changed.movedim(1, -1).contiguous() if self.channels_last else changed


def patch_layers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Of a model's modules those of which the first that runs shows the grid it starts from.

    These are the convolutions with a stride: the embedding of patches in transformers, the stem in
    networks that merge step by step.

    >>> patch_layers([nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 1)])
    [Conv2d(3, 8, kernel_size=(4, 4), stride=(4, 4))]
    """
    return [
        module for module in modules if isinstance(module, _CONVOLUTIONS) and max(module.stride) > 1
    ]


def feature_map(
    name: str, layer: nn.Module, tensor: Tensor, patches: Size | None, size: Size
) -> Tensor:
    """What a layer returned as ``(N, K, *grid)``; see `lay_out`."""
    return lay_out(name, layer, tensor, patches, size).to_map(tensor)


def lay_out(
    name: str,
    layer: nn.Module,
    tensor: Tensor,
    patches: Size | None,
    size: Size,
    count: int | None = None,
) -> Layout:
    """Find out how a layer's output lies over the image.

    ``(N, K, h, w)`` is taken as it is, as are volumes ``(N, K, d, h, w)``; ``(N, h, w, K)`` is
    known by the grids that the patches can form and, where these leave it open, by what the layer
    computes. Tokens ``(N, T, K)``, or ``(N, K, T)``, are laid out on the largest such grid that
    they fill; those that are left over lead, as in ViT, DeiT and DINOv2 with registers.

    Args:
        name: Of the layer, for errors.
        layer: The layer.
        tensor: What it returned.
        patches: Positions of the first output of `patch_layers`, or None.
        size: Of the images: ``(H, W)``, or ``(D, H, W)``.
        count: How many images ran, to tell windows ``(N windows, M, K)`` from them; None if
            unknown.

    Raises:
        FedgazeError: It is no map, or its tokens fit no grid.

    >>> lay_out("norm", nn.LayerNorm(8), torch.zeros(2, 9, 8), (2, 4), (32, 64))
    Layout(grid=(2, 4), prefix=1, tokens=True, channels_last=True)
    """
    shape = tuple(tensor.shape)
    if count is not None and shape[:1] != (count,):
        raise FedgazeError(
            f"layer {name!r} returns {shape} for {count} images: it works on windows, or the batch "
            "does not come first; choose the block around it"
        )
    if len(shape) == len(size) + 2:
        last = _channels_last(layer, shape, patches, size)
        return Layout(shape[1:-1] if last else shape[2:], channels_last=last)
    if len(shape) != 3:
        raise FedgazeError(
            f"layer {name!r} returns a tensor of shape {shape}; allowed is a layer that returns a "
            "feature map (N, K, h, w) or tokens (N, T, K)"
        )
    found = token_layout(shape[1], patches, size)
    if found is None and patches is not None:
        other = token_layout(shape[2], patches, size)
        if other is not None and not other.prefix:
            found = dataclasses.replace(other, channels_last=False)
    if found is None:
        raise FedgazeError(
            f"layer {name!r} returns a tensor of shape {shape}, and {shape[1]} tokens fit no grid "
            f"of patches over images of {' × '.join(map(str, size))}; allowed is a layer with one "
            "token a patch, in the order of the image"
        )
    return found


def token_layout(tokens: int, patches: Size | None, size: Size) -> Layout | None:
    """How a row of tokens ``(N, tokens, K)`` lies over the image; None if it fits no grid.

    >>> token_layout(17, (4, 4), (32, 32))
    Layout(grid=(4, 4), prefix=1, tokens=True, channels_last=True)
    """
    if patches is not None and len(patches) == len(size):
        stages = [
            (grid, _MOST_MERGED if stage else _MOST) for stage, grid in enumerate(_halved(patches))
        ]
    else:
        # Patches cut out by reshaping, without a convolution: squares that divide the image.
        edges = [e for e in range(2, min(size) // 2 + 1) if not any(each % e for each in size)]
        stages = [(tuple(each // edge for each in size), _MOST_GUESSED) for edge in edges]
    fitting = [
        grid
        for grid, most in stages
        if math.prod(grid) > 1 and 0 <= tokens - math.prod(grid) <= most
    ]
    if not fitting:
        return None
    grid = max(fitting, key=math.prod)
    return Layout(grid, tokens - math.prod(grid), tokens=True, channels_last=True)


def grids_of(patches: Size | None, size: Size) -> frozenset[Size]:
    """The grids that patches, or without them pixels, form when merged by two again and again.

    >>> sorted(grids_of((3, 6), (12, 24)))
    [(1, 1), (1, 2), (1, 3), (2, 3), (3, 6)]
    """
    known = patches is not None and len(patches) == len(size)
    return frozenset(_halved(patches if known and patches is not None else size))


def _halved(grid: Size) -> Iterator[Size]:
    """A grid and what is left of it after each halving, odd ends kept or dropped."""
    yield grid
    # Videos may keep their length.
    for fixed in range(len(grid) - 1 if len(grid) > 2 else 1):
        up = down = grid
        while max(up[fixed:]) > 1:
            up = (*up[:fixed], *(-(-each // 2) for each in up[fixed:]))
            down = (*down[:fixed], *(max(1, each // 2) for each in down[fixed:]))
            yield up
            yield down


def _channels_last(layer: nn.Module, shape: Size, patches: Size | None, size: Size) -> bool:
    grids = grids_of(patches, size)
    first, last = shape[2:] in grids, shape[1:-1] in grids
    if first != last:
        return last
    # A layer norm's subclasses (timm's and torchvision's LayerNorm2d) may take channels first.
    if type(layer) in {nn.Linear, nn.LayerNorm}:
        return True
    if isinstance(layer, (*_CONVOLUTIONS, *_NORMS)):
        return False
    widths = {tuple(p.normalized_shape) for p in layer.modules() if isinstance(p, nn.LayerNorm)}
    mixed = any(isinstance(part, _CONVOLUTIONS) for part in layer.modules())
    return (shape[-1],) in widths and ((shape[1],) not in widths or (last and not mixed))


def main_tensor(output: Any) -> Tensor | None:
    """Of what a layer returned the tensor that the next layer reads; None if there is none.

    That is the tensor itself, the first of a tuple, or ``last_hidden_state`` or ``out`` of a
    mapping or dataclass.

    >>> main_tensor(((torch.ones(2), None), None))
    tensor([1., 1.])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple):
        return main_tensor(output[0]) if output else None
    name = _main_name(output)
    found = None if name is None else _item(output, name)
    return found if isinstance(found, Tensor) else None


def with_main(output: Any, tensor: Tensor) -> Any:
    """The same output, of the same type, with another main tensor; see `main_tensor`.

    >>> with_main({"out": torch.zeros(1), "aux": None}, torch.ones(1))
    {'out': tensor([1.]), 'aux': None}
    """
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple):
        first = with_main(output[0], tensor)
        return getattr(output, "_make", type(output))([first, *output[1:]])
    name = _main_name(output)
    if name is None:
        raise TypeError(f"{type(output).__name__} has no main tensor")
    # transformers' outputs are both; a dataclass is rebuilt so that keys and attributes agree.
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return dataclasses.replace(output, **{name: tensor})
    changed = copy.copy(output)
    if isinstance(changed, MutableMapping):
        changed[name] = tensor
    else:
        setattr(changed, name, tensor)
    return changed


def _main_name(output: Any) -> str | None:
    return next((n for n in _MAIN if isinstance(_item(output, n), Tensor)), None)


def _item(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
