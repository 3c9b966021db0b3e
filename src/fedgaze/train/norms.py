"""Which of a model's state belongs to its normalisation layers, and what they count."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Counts", "counts_of", "normalisation"]

# Other libraries' own classes (FrozenBatchNorm2d, ConvNextLayerNorm) say it in their names.
_NAME = re.compile(r"(batch|layer|group|instance|rms)_?norm", re.IGNORECASE)
_LAYERS = (
    nn.modules.batchnorm._NormBase,  # noqa: SLF001 - what all BatchNorms and InstanceNorms are
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def normalisation(model: nn.Module) -> frozenset[str]:
    """The names of the weights and statistics of a model's normalisation layers.

    Args:
        model: Its layers of BatchNorm, InstanceNorm, GroupNorm, LayerNorm and RMSNorm are found,
            and layers of other libraries that are called so.
    """
    names = set()
    for prefix, module in model.named_modules():
        if isinstance(module, _LAYERS) or _NAME.search(type(module).__name__):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            names |= {f"{prefix}.{name}" if prefix else name for name, _ in own}
    return frozenset(names) & frozenset(model.state_dict())


@dataclass(frozen=True, eq=False)
class Counts:
    """What a model's first BatchNorm sees of images, as its running statistics would count it.

    Attributes:
        names: Of the running mean and variance in the model's state.
        means: By image and channel, ``(N, C)``.
        variances: Of the same.
    """

    names: tuple[str, str]
    means: Tensor
    variances: Tensor


def counts_of(model: nn.Module, run: Callable[[], Any]) -> Counts | None:
    """What the first BatchNorm with running statistics sees while a model runs.

    Args:
        model: The model.
        run: Runs it once, on images.

    Returns:
        None where there is no such layer, or the model does without it.
    """
    layers = (
        (name, each)
        for name, each in model.named_modules()
        if isinstance(each, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - all BatchNorms
        and each.running_mean is not None
    )
    prefix, layer = next(layers, ("", None))
    if layer is None:
        return None
    seen: list[tuple[Tensor, Tensor]] = []

    def count(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        flat = given[0].flatten(2) if given[0].dim() > 2 else given[0][..., None]
        seen.append((flat.mean(2), flat.var(2, correction=0)))

    hook = layer.register_forward_pre_hook(count)
    try:
        with torch.no_grad():
            run()
    finally:
        hook.remove()
    start = f"{prefix}." if prefix else ""
    names = (f"{start}running_mean", f"{start}running_var")
    return Counts(names, *seen[0]) if seen else None
