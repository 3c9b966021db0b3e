"""Stamp: by which a model is known to be as it was."""

from weakref import ref

import torch
from torch import Tensor, nn

__all__ = ["Stamp", "tensors_of"]

_SAMPLES = 8


def tensors_of(modules: list[nn.Module]) -> list[Tensor]:
    """Parameters and buffers, module by module: naming them all takes far longer."""
    return [
        tensor
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())  # noqa: SLF001
        if tensor is not None
    ]


class Stamp:
    """Remembers a model's modules, and where its numbers lie, their versions and a few of them.

    An optimiser and ``load_state_dict`` raise the versions; what is put in the place of a tensor
    lies elsewhere; of changes in place through ``.data``, which leave no other trace, eight
    numbers of each tensor tell. Comparing takes a quarter of a millisecond for a ResNet-50.

    Args:
        modules: All modules of the model.
        tensors: What `tensors_of` finds in them.
    """

    def __init__(self, modules: list[nn.Module], tensors: list[Tensor]) -> None:
        self._modules = [ref(module) for module in modules]
        self._versioned = not any(tensor.is_inference() for tensor in tensors)
        self._marks = self._marked(tensors)
        # Views: while they live, nothing new can lie at the old addresses.
        self._views = [_samples(tensor) for tensor in tensors if tensor.is_floating_point()]
        self._values = self._sampled()

    def holds_for(self, modules: list[nn.Module], tensors: list[Tensor]) -> bool:
        """Whether all is as it was."""
        return (
            [one() for one in self._modules] == modules
            and self._marks == self._marked(tensors)
            and torch.equal(self._values, self._sampled())
        )

    def _marked(self, tensors: list[Tensor]) -> tuple[list[int], list[int]]:
        versions = [tensor._version for tensor in tensors] if self._versioned else []  # noqa: SLF001
        return [tensor.data_ptr() for tensor in tensors], versions

    def _sampled(self) -> Tensor:
        values = torch.cat(self._views) if self._views else torch.empty(0)
        # As whole numbers, since NaN is not equal to itself.
        return values.view(torch.int32)


def _samples(tensor: Tensor) -> Tensor:
    """A view of some numbers, spread over the memory of a tensor."""
    if not tensor.numel():
        return tensor.detach().flatten()
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in strides)
    count = min(_SAMPLES, span)
    step = max(1, (span - 1) // max(1, count - 1))
    return tensor.detach().as_strided((count,), (step,), tensor.storage_offset())
