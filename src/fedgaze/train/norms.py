"""Which of a model's state belongs to its normalisation layers."""

import re

from torch import nn

__all__ = ["normalisation"]

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
