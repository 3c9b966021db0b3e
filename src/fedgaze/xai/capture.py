"""Capture: one forward pass that keeps what the target layers said, and their gradients."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.backward import gradients_of
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.running import frozen, running, twice_differentiable
from fedgaze.xai.sparse import sparse_ways_back
from fedgaze.xai.tokens import main_tensor, with_main

__all__ = ["Capture", "Captured", "FirstSize"]


class FirstSize:
    """A forward hook that notes the positions ``(h, w)`` of the first output that it sees."""

    size: tuple[int, ...] | None = None

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """See the class."""
        if self.size is None and isinstance(output, Tensor):
            self.size = tuple(output.shape[2:])


class Captured:
    """What one forward pass left.

    Attributes:
        activations: By layer, in the order in which the layers ran: ``(N, K, h, w)``, or whatever
            the layer returns; detached, unless the graph was asked for.
        calls: How often each layer ran; what is kept is its last call.
        patches: The size of the first output of `fedgaze.xai.tokens.patch_layers`, or None.
    """

    def __init__(
        self,
        held: dict[str, Tensor],
        scores: Tensor,
        calls: dict[str, int],
        patches: tuple[int, ...] | None,
        *,
        graph: bool,
        retain: bool,
    ) -> None:
        self.activations = held if graph else {name: each.detach() for name, each in held.items()}
        self.calls = calls
        self.patches = patches
        self._held = held
        self._columns = (scores,) if scores.dim() == 1 else scores.unbind(1)
        self._graph = graph
        self._retain = retain
        self._first: dict[str, Tensor] | None = None

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Of the sum of the (first) scores, by layer, in the shapes of the activations.

        Those of a float16 model are float32.
        """
        return self.gradients_of(0)

    def gradients_of(self, column: int) -> dict[str, Tensor]:
        """Of the sum of the scores in a column. Ask for the columns in their order, each once.

        Raises:
            FedgazeError: A layer has no gradient.
        """
        if column == 0 and self._first is not None:
            return self._first
        more = self._retain or column + 1 < len(self._columns)
        held = list(self._held.values())
        found = gradients_of(self._columns[column], held, retain=more, graph=self._graph)
        named: dict[str, Tensor] = {}
        for name, gradient in zip(self._held, found, strict=True):
            if gradient is None:
                raise FedgazeError(
                    f"the score does not depend on layer {name!r} in a way that has gradients: the "
                    "model does not use its output, or detaches what follows"
                )
            named[name] = gradient
        if column == 0:
            self._first = named
        return named

    def curvature_of(self, column: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients g, and the products ``d(g . A)/dA`` of the Hessian with the activations."""
        first = gradients_of(self._columns[column], list(self._held.values()), graph=True)
        gradients: dict[str, Tensor] = {}
        products: dict[str, Tensor] = {}
        for (name, held), gradient in zip(self._held.items(), first, strict=True):
            if gradient is None:
                raise FedgazeError(f"the score does not depend on layer {name!r}")
            product = None
            # Where the way to the score is linear, the gradient is a constant without a graph.
            if gradient.requires_grad:
                with torch.inference_mode(mode=False), torch.enable_grad():
                    along = (gradient * held.detach()).sum()
                product = torch.autograd.grad(along, held, retain_graph=True, allow_unused=True)[0]
            gradients[name] = gradient.detach()
            products[name] = torch.zeros_like(held) if product is None else product.detach()
        return gradients, products

    def has_way_back(self) -> bool:
        """Whether each layer has gradients."""
        try:
            self.gradients_of(0)
        except FedgazeError:
            return False
        return True


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
        gradients: Whether gradients are wanted; without them nothing has a graph.
        graph: Whether activations and gradients keep their graph, back to parameters and images
            (for training with them).
        retain: Whether the way back may be gone more than once, as `Captured.curvature_of` does.
        parts: All modules of the model, if the caller has them.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).train()
    >>> with Capture(model, {"0": model[0]}) as capture:
    ...     captured = capture.run(torch.ones(1, 1, 4, 4), lambda logits: logits[:, 1])
    >>> torch.equal(captured.gradients["0"].flatten(), model[2].weight[1])
    True
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        *,
        gradients: bool = True,
        graph: bool = False,
        retain: bool = False,
        parts: Sequence[nn.Module] | None = None,
    ) -> None:
        self._model = model
        self._layers = layers
        self._wants_gradients = gradients
        self._graph = graph
        self._retain = retain
        self._parts = parts
        self._stack = ExitStack()
        self._above = ExitStack()
        self._clear()

    def __enter__(self) -> Self:
        hooks = [(layer, partial(self._keep, name)) for name, layer in self._layers.items()]
        run = running(self._model, hooks, patches=self._note, parts=self._parts)
        self._forward = self._stack.enter_context(run)
        self._stack.enter_context(twice_differentiable(self._graph or self._retain))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        del self._forward  # which knows of this object

    def run(self, images: Tensor | Inputs, score: Callable[[Any], Tensor]) -> Captured:
        """Run the model once and go back from its scores to the layers.

        A model that runs its target layer in a ``no_grad`` block of its own is run a second time,
        with its parameters frozen and gradient mode on, so that the graph outlives the block.

        Args:
            images: ``(N, C, H, W)``, on the model's device; or all arguments of the model.
            score: From the model's output to the scores, ``(N,)``, or ``(N, S)`` for several
                targets an image.

        Raises:
            FedgazeError: A layer did not run, returned no numbers, has no gradient or was
                overwritten.
        """
        try:
            captured = self._captured(images, score, grad_below=self._graph)
            if self._wants_gradients and not (self._graph or captured.has_way_back()):
                del captured
                with frozen(self._model):
                    captured = self._captured(images, score, grad_below=True)
                    captured.gradients_of(0)
            for name, held in self._held.items():
                if held._version != self._versions[name]:  # noqa: SLF001
                    raise FedgazeError(
                        f"the output of layer {name!r} is overwritten in place elsewhere in the "
                        "model, with which it shares memory; choose the layer before or after it"
                    )
            return captured
        finally:
            self._clear()

    def _clear(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._patches = FirstSize()

    def _captured(
        self, images: Tensor | Inputs, score: Callable[[Any], Tensor], *, grad_below: bool
    ) -> Captured:
        self._clear()
        args, kwargs = images.call() if isinstance(images, Inputs) else ([images], {})
        with torch.set_grad_enabled(grad_below), ExitStack() as self._above:
            outputs = self._forward(*args, **kwargs)
        for name in self._layers:
            if name not in self._held:
                raise FedgazeError(
                    f"layer {name!r} did not run, at least not as a module of its own; choose one "
                    "that runs when the model is called"
                )
        with torch.set_grad_enabled(self._wants_gradients or self._graph):
            return Captured(
                self._held,
                score(outputs),
                self._calls,
                self._patches.size,
                graph=self._graph,
                retain=self._retain,
            )

    def _keep(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """Forward hook: keep the output and hand on a clone, which in-place work may overwrite."""
        tensor = main_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            what = type(output).__name__ if tensor is None else tensor.dtype
            raise FedgazeError(
                f"layer {name!r} returns {what}; allowed is a layer that returns a feature map "
                "(N, K, h, w) or tokens (N, T, K)"
            )
        if self._wants_gradients:
            if torch.is_inference_mode_enabled() or tensor.is_inference():
                raise FedgazeError(
                    f"layer {name!r} runs in the model's own inference_mode block, where nothing "
                    "has gradients; use no_grad there, or choose a layer after it"
                )
            torch.set_grad_enabled(True)
            if not (self._held or self._graph or self._retain):
                modules = self._model.modules() if self._parts is None else self._parts
                self._above.enter_context(sparse_ways_back(modules))
            # One that an earlier layer feeds stays in the graph, or that had no gradient.
            if not ((self._held or self._graph) and tensor.requires_grad):
                tensor = tensor.detach().requires_grad_()
        # Taken out first, so that the layers stand in the order of their last calls.
        self._held.pop(name, None)
        self._held[name] = tensor
        self._versions[name] = tensor._version  # noqa: SLF001
        self._calls[name] = self._calls.get(name, 0) + 1
        return with_main(output, tensor.clone())

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._patches(module, inputs, output)
