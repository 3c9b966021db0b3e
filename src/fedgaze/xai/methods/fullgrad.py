"""FullGrad: the gradients of the image and of every bias, which add up to the score."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.methods.cam import spatial, wide
from fedgaze.xai.runner import Runner

__all__ = ["full_grad", "full_gradients"]

RESCALINGS = ("channel", "layer")

_AFFINE = (
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
_NORM = signature(F.batch_norm)
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def full_grad(runner: Runner, *, rescale: str = "channel") -> Tensor:
    """Add up where the image and the biases of all layers speak for the score.

    ``psi(dS/dx x) + sum_l sum_c psi(f_lc)``: Srinivas and Fleuret, "Full-Gradient Representation
    for Neural Network Visualization", NeurIPS 2019, Section 4. ``f_l`` are a layer's
    bias-gradients, see `full_gradients`, c its channels, and psi takes absolute values, brings them
    linearly to [0, 1] and to the size of the image, bilinearly. Biases of layers without positions
    have no place in the map, nor those of layers whose positions are tokens in a row.

    The authors' code scales a layer's channels together and not each by itself, as the formula
    says, and interpolates with aligned corners; pytorch-grad-cam scales each channel, by the
    maximum left after subtracting the minimum plus 1e-7, and finds convolutions and BatchNorm in
    two dimensions only by their exact types.

    Args:
        runner: The model and images.
        rescale: What is brought to [0, 1]: each ``"channel"``, or a ``"layer"`` as a whole.

    Returns:
        ``(N, S, *size)``, not negative.

    Raises:
        FedgazeError: There is no such way to rescale, or BatchNorm has no statistics of its own.
    """
    if rescale not in RESCALINGS:
        raise FedgazeError(
            f"rescale is {rescale!r}; allowed are {', '.join(RESCALINGS)}"
            f"{nearest(str(rescale), RESCALINGS)}"
        )
    size = tuple(runner.images.shape[2:])

    def shown(term: Tensor) -> Tensor:
        if term.dim() != len(size) + 2:
            return term.new_zeros(len(term), *size)
        strength = term.abs()
        every = spatial(term) if rescale == "channel" else tuple(range(1, term.dim()))
        least = strength.amin(every, keepdim=True)
        spread = strength.amax(every, keepdim=True) - least
        scaled = (strength - least) / torch.where(spread > 0, spread, 1)
        # Interpolation is linear: once for the sum is as good as once a channel.
        total = scaled.sum(1, keepdim=True)
        resized: Tensor = F.interpolate(total, size, mode=_MODES[len(size)])
        return resized.squeeze(1)

    gradients, biases = full_gradients(runner, shown)
    products = gradients * wide(runner.images)[:, None]
    return biases + shown(products.flatten(0, 1)).view_as(biases)


def full_gradients(runner: Runner, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradients of the score to the image and, times the biases, to all biases.

    In a network of rectifiers ``S(x) = sum dS/dx x + sum_l sum f_l`` (the paper's Proposition 2),
    where ``f_l = dS/dz_l b_l`` at each position of a layer's output ``z_l``. Biases are those of
    linear layers and convolutions and, implicitly, ``beta - mu gamma / sigma`` of BatchNorm with
    its statistics mu and sigma² (the paper's Section 3.2 on implicit biases). The paper also gives
    activations that are curved or saturate (GELU, ReLU6) an implicit bias, which is left out here
    as in its authors' code: of networks with these, with LayerNorm, or that multiply features with
    one another (squeeze and excitation, attention), a part of the score is missing.

    Biases are found where functions such as ``conv2d`` are called, so that it does not matter which
    module calls them, or how often; gradients are reduced on the way back and not kept.

    Args:
        runner: The model and images.
        reduce: From the ``f_l`` of a layer, ``(m, K, *s)`` or ``(m, K)``, in float32 at least, to
            what is added up over the layers, ``(m, ...)``.

    Returns:
        ``dS/dx`` ``(N, S, C, *size)`` and the sum ``(N, S, ...)`` of what was reduced.

    Raises:
        FedgazeError: BatchNorm has no statistics of its own, the model is float16, or a part of it
            is TorchScript.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in runner.model.modules()):
        raise FedgazeError(
            "a part of the model is TorchScript, in which fullgrad cannot find biases; give the "
            "model without torch.jit"
        )
    if runner.images.dtype == torch.float16:
        raise FedgazeError(
            "fullgrad adds up gradients on their way back, and those of float16 are too small; "
            "use the model in float32 or bfloat16"
        )
    watch = _Biases(runner, reduce)

    @contextmanager
    def watching() -> Iterator[None]:
        nonlocal watch
        # Another one for each pass: of one that runs out of memory, nothing may remain.
        watch = _Biases(runner, reduce)
        with watch:
            try:
                yield
            finally:
                watch.over = True

    gradients: list[Tensor] = []
    totals: list[Tensor] = []
    for _, _, g in runner.gradients(None, 1, watching):
        gradients.append(wide(g))
        # Where no bias has a part in the score.
        nothing = torch.zeros_like(reduce(wide(g[:, 0])))
        columns = [watch.totals.get(column, nothing) for column in range(g.shape[1])]
        totals.append(torch.stack(columns, dim=1))
    return torch.cat(gradients), torch.cat(totals)


class _Biases(TorchFunctionMode):
    """Sees functions that add a bias, and what gradients their outputs get."""

    def __init__(self, runner: Runner, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._runner = runner
        self.totals: dict[int, Tensor] = {}
        self.over = False
        self._reduce = reduce

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        bias = _bias(func, args, kwargs)
        if bias is not None and output.requires_grad:
            # Seen there before anything that follows changes the output in place.
            output.register_hook(self._hook(bias, last=func is F.linear))
        return output

    def _hook(self, bias: Tensor, *, last: bool) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if self.over:
                return
            g = wide(gradient)
            # Channels stand second, but for linear layers, where they stand last.
            g = g.movedim(-1, 1) if last else g
            found = self._reduce(g * bias.to(g).view(-1, *[1] * (g.dim() - 2)))
            column = self._runner.column
            known = self.totals.get(column)
            self.totals[column] = found if known is None else known + found

        return hook


def _bias(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """What a function adds to each channel, ``(K,)``; None if nothing."""
    if func in _AFFINE:
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        return bias if isinstance(bias, Tensor) else None
    if func is not F.batch_norm:
        return None
    given = _NORM.bind(*args, **kwargs).arguments
    mean, variance = given["running_mean"], given["running_var"]
    if mean is None or variance is None:
        raise FedgazeError(
            "fullgrad needs BatchNorm with statistics of its own: this model's take those of the "
            "batch, and add no fixed bias"
        )
    scale = (wide(variance) + given.get("eps", 1e-5)).rsqrt()
    if given.get("weight") is not None:
        scale = scale * given["weight"]
    shift: Tensor = -wide(mean) * scale
    if given.get("bias") is not None:
        shift = shift + given["bias"]
    return shift
