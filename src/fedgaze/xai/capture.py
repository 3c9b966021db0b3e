"""Capture: one forward pass that keeps what the target layers said, and their gradients."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.running import frozen, running

__all__ = ["Capture", "Captured"]


@dataclass(frozen=True, eq=False)
class Captured:
    """What one forward pass left.

    Attributes:
        activations: By layer, in the order in which the layers ran: ``(N, K, h, w)``, detached.
        gradients: Of the sum of the scores, by layer, in the same shapes. Those of a float16 model
            are float32.
        calls: How often each layer ran; what is kept is its last call.
    """

    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    calls: dict[str, int]


class Capture:
    """Runs a model once and keeps activations and gradients of layers.

    Below the first target layer that runs no graph is built: its hook detaches the output, asks it
    for gradients and turns gradient mode on from there, whatever mode surrounds the call. From the
    scores `torch.autograd.grad` goes back to the layers and no further: no ``.grad`` is touched.
    The hooks are there within the ``with`` block; after it, also after an exception, the model and
    all modes are as they were (see `running`).

    A model that another thread trains meanwhile is not protected from that: explain a copy of it.

    Args:
        model: Any module.
        layers: Modules of it, by name.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).train()
    >>> with Capture(model, {"0": model[0]}) as capture:
    ...     captured = capture.run(torch.ones(1, 1, 4, 4), lambda logits: logits[:, 1])
    >>> torch.equal(captured.gradients["0"].flatten(), model[2].weight[1])
    True
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._model = model
        self._layers = layers
        self._stack = ExitStack()
        self._held: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._calls: dict[str, int] = {}

    def __enter__(self) -> Self:
        hooks = [(layer, partial(self._keep, name)) for name, layer in self._layers.items()]
        self._forward = self._stack.enter_context(running(self._model, hooks))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(self, images: Tensor, score: Callable[[Any], Tensor]) -> Captured:
        """Run the model once and go back from its scores to the layers.

        A model that runs its target layer in a ``no_grad`` block of its own is run a second time,
        with its parameters frozen and gradient mode on, so that the graph outlives the block.

        Args:
            images: ``(N, C, H, W)``, on the model's device.
            score: From the model's output to the scores ``(N,)``.

        Raises:
            FedgazeError: A layer did not run, returned no numbers, has no gradient or was
                overwritten.
        """
        try:
            gradients = self._backward(self._scores(images, score, grad_below=False))
            if None in gradients:
                with frozen(self._model):
                    gradients = self._backward(self._scores(images, score, grad_below=True))
            return self._captured(gradients)
        finally:
            self._held = {}

    def _scores(
        self, images: Tensor, score: Callable[[Any], Tensor], *, grad_below: bool
    ) -> Tensor:
        self._held, self._versions, self._calls = {}, {}, {}
        with torch.set_grad_enabled(grad_below):
            outputs = self._forward(images)
        for name in self._layers:
            if name not in self._held:
                raise FedgazeError(
                    f"layer {name!r} did not run, at least not as a module of its own; choose one "
                    "that runs when the model is called"
                )
        with torch.enable_grad():
            return score(outputs)

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Forward hook: keep the output and hand on a clone, which in-place work may overwrite."""
        if isinstance(output, tuple) and output:
            first = self._keep(name, module, inputs, output[0])
            return getattr(output, "_make", tuple)([first, *output[1:]])
        if not isinstance(output, Tensor) or not output.is_floating_point():
            what = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise FedgazeError(
                f"layer {name!r} returns {what}; allowed is a layer that returns a feature map "
                "(N, K, h, w)"
            )
        if torch.is_inference_mode_enabled() or output.is_inference():
            raise FedgazeError(
                f"layer {name!r} runs in the model's own inference_mode block, where nothing has "
                "gradients; use no_grad there, or choose a layer after it"
            )
        torch.set_grad_enabled(True)
        # A layer that an earlier one feeds stays in the graph, or the earlier one had no gradient.
        if not (self._held and output.requires_grad):
            output = output.detach().requires_grad_()
        # Taken out first, so that the layers stand in the order of their last calls.
        self._held.pop(name, None)
        self._held[name] = output
        self._versions[name] = output._version  # noqa: SLF001
        self._calls[name] = self._calls.get(name, 0) + 1
        return output.clone()

    def _backward(self, scores: Tensor) -> list[Tensor | None]:
        held = list(self._held.values())
        if not scores.requires_grad:
            return [None] * len(held)
        if torch.float16 not in {tensor.dtype for tensor in (scores, *held)}:
            ones = torch.ones_like(scores)
            return list(torch.autograd.grad(scores, held, ones, allow_unused=True))
        # float16 ends at 6e-8 and at 65504: start high and come down until nothing overflows.
        scale = 2.0**15 if scores.dtype == torch.float16 else 2.0**24
        while True:
            seed = torch.full_like(scores, scale)
            found = torch.autograd.grad(scores, held, seed, retain_graph=True, allow_unused=True)
            if scale == 1 or all(g is None or bool(g.isfinite().all()) for g in found):
                return [None if g is None else g.float() / scale for g in found]
            scale = max(1.0, scale / 2**6)

    def _captured(self, gradients: list[Tensor | None]) -> Captured:
        found: dict[str, Tensor] = {}
        for (name, tensor), gradient in zip(self._held.items(), gradients, strict=True):
            if gradient is None:
                raise FedgazeError(
                    f"the score does not depend on layer {name!r} in a way that has gradients: the "
                    "model does not use its output, or detaches what follows"
                )
            if tensor._version != self._versions[name]:  # noqa: SLF001
                raise FedgazeError(
                    f"the output of layer {name!r} is overwritten in place elsewhere in the model, "
                    "with which it shares memory; choose the layer before or after it"
                )
            found[name] = gradient
        return Captured({name: t.detach() for name, t in self._held.items()}, found, self._calls)
