"""The runner: a model run again and again on variants of images, within a budget of memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.backward import gradients_of
from fedgaze.xai.capture import Capture, Captured
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.memory import DEFAULT_MEMORY, Budget, Chunks, is_out_of_memory
from fedgaze.xai.outputs import class_scores
from fedgaze.xai.running import frozen, running, twice_differentiable
from fedgaze.xai.targets import Scorer
from fedgaze.xai.tokens import Layout, lay_out, main_tensor, with_main

__all__ = ["Make", "MapPair", "Runner"]

Make = Callable[[Tensor, Tensor], Tensor]
"""``(n (m,), v (m,)) -> (m, ...)``: variant ``v`` of image ``n``, for m pairs at once."""

# On a CPU more variants at once are no faster, and its libraries take as much again uncounted.
_CPU_MEMORY = 128 * 2**20


class MapPair(NamedTuple):
    """Of a layer: activations ``(N, K, *s)`` and gradients ``(N, S, K, *s)``; None if not asked."""

    activations: Tensor
    gradients: Tensor | None


class Runner:
    """What a method of the kind ``"run"`` is given: the model, to run on whatever it makes.

    Nothing is kept of a run but what is returned; the model is left as it was found when the
    ``with`` block ends.

    Args:
        model: The model, unwrapped.
        inputs: N images with the model's other arguments.
        scorer: For these images.
        layers: The layer that is explained, by name; empty where the method explains the input.
        budget: How much may run at once.
        graph: Whether gradients keep their graph (for training with them).

    Attributes:
        images: ``(N, C, *size)``.
        model: The model.
        calls: How often the layer ran; what is explained is its last call.
        column: Which of the S scores is on its way back, for what watches `gradients`.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        scorer: Scorer,
        layers: Mapping[str, nn.Module],
        budget: Budget,
        graph: bool = False,
    ) -> None:
        self.model = model
        self.images = inputs.images if graph else inputs.images.detach()
        self.calls = 1
        self.column = 0
        self._inputs = inputs
        self._scorer = scorer
        self._layers = layers
        self._budget = budget
        self._graph = graph
        self._layout: Layout | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._forward = self._stack.enter_context(running(self.model))
        self._stack.enter_context(twice_differentiable(self._graph))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The name of the layer that is explained; none where the method explains the input."""
        return tuple(self._layers)

    @property
    def clean(self) -> Tensor:
        """``(N, S)``: the scores of the images themselves."""
        self._settle()
        return self._scorer.scores

    @property
    def logits(self) -> Tensor:
        """``(N, classes)``: what the model says to the images themselves."""
        self._settle()
        return self._scorer.logits

    @property
    def classes(self) -> Tensor | None:
        """``(N, S)``: the explained classes; None where a function is explained."""
        self._settle()
        return self._scorer.classes

    def scores(self, make: Make, count: int, *, probability: bool = False) -> Tensor:
        """Scores of changed images.

        Args:
            make: Makes variants ``(m, C, *size)``.
            count: How many variants an image has.
            probability: Whether scores that are logits of classes become their probabilities.

        Returns:
            ``(N, S, count)``.
        """
        self._settle()

        def run(n: Tensor, v: Tensor) -> Tensor:
            with torch.no_grad():
                outputs = self._run(make(n, v), n)
                return self._scorer.again(outputs, n, probability=probability)

        return self._collect(("scores",), run, count)

    def logits_at(self, make: Make, count: int) -> Tensor:
        """What the model says to changed images: ``(N, count, classes)``; see `scores`."""
        self._settle()

        def run(n: Tensor, v: Tensor) -> Tensor:
            with torch.no_grad():
                return class_scores(self._run(make(n, v), n), len(n))

        return self._collect(("logits",), run, count).movedim(1, 2)

    def gradients(
        self,
        make: Make | None,
        count: int = 1,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Gradients of the scores at changed images.

        Args:
            make: As for `scores`; None for the images themselves.
            count: How many variants an image has.
            within: Makes a context for each pass, there and back.

        Yields:
            ``n (m,), v (m,), g (m, S, C, *size)``: of which image and variant, and its gradients.

        Raises:
            FedgazeError: The score does not depend on the image in a way that has gradients.
        """
        itself = make is None and count == 1

        def run(n: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if not itself:
                self._settle()
            with torch.set_grad_enabled(self._graph):
                variants = self.images[n] if make is None else make(n, v)
            if not (self._graph and variants.requires_grad):
                variants = variants.detach().requires_grad_()
            with torch.enable_grad(), within():
                scores = self._score(self._run(variants, n), n)
                return n, v, self._columns(scores, variants)

        with nullcontext() if self._graph else frozen(self.model):
            if itself:
                # One pass, which also finds out what is explained; who cuts it cuts the images.
                yield run(*self._items(0, len(self), 1))
                return
            chunks = self._chunks(("gradients", within is nullcontext), run)
            yield from chunks.over(
                len(self) * count, lambda start, stop: run(*self._items(start, stop, count))
            )

    def captured(self, *, gradients: bool = True) -> MapPair:
        """Activations and gradients of the layer, channels first, tokens laid out as a grid."""
        found = self._capture(gradients=gradients)
        return self._pair(found, self.clean.shape[1] if gradients else 0, len(self))

    def captured_at(
        self, make: Make, count: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, MapPair]]:
        """Activations and gradients of the layer at changed images, a chunk at a time.

        Args:
            make: As for `scores`.
            count: How many variants an image has.

        Yields:
            ``n (m,), v (m,)``: of which image and variant; ``(m, S)``: its scores; and as of
            `captured` for m images.
        """
        self._settle()

        def run(n: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, MapPair]:
            with torch.set_grad_enabled(self._graph):
                variants = self._inputs.variants(make(n, v), n)
            held: list[Tensor] = []

            def score(outputs: Any) -> Tensor:
                held.append(self._scorer.again(outputs, n))
                return held[-1]

            found = self._capture(gradients=True, inputs=variants, score=score)
            pair = self._pair(found, held[-1].shape[1], len(n))
            return n, v, held[-1] if self._graph else held[-1].detach(), pair

        chunks = self._chunks(("captured", *self._layers), run)
        yield from chunks.over(
            len(self) * count, lambda start, stop: run(*self._items(start, stop, count))
        )

    def curvature(self) -> tuple[Tensor, Tensor, Tensor]:
        """Activations ``A (N, K, *s)``, gradients g and ``d(g . A)/dA``, both ``(N, S, K, *s)``."""
        found = self._capture(gradients=True, retain=True)
        ((name, activations),) = found.activations.items()
        laid = self._lay_out(found)
        pairs = [found.curvature_of(column) for column in range(self.clean.shape[1])]
        first = torch.stack([laid.to_map(g[name]) for g, _ in pairs], 1)
        second = torch.stack([laid.to_map(h[name]) for _, h in pairs], 1)
        return laid.to_map(activations), first, second

    def tail_scores(self, make: Make, count: int) -> Tensor:
        """Scores after changed activations of the layer. What lies below runs for one image.

        Args:
            make: Makes changed activations ``(m, K, *s)``.
            count: How many variants an image has.

        Returns:
            ``(N, S, count)``.
        """
        self._settle()
        layout = self._layout or self._lay_out(self._capture(gradients=False))
        (layer,) = self._layers.values()
        alone = True

        def run(n: Tensor, v: Tensor) -> Tensor:
            nonlocal alone
            with torch.no_grad():
                changed = make(n, v)
                seen = 0

                def swap(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                    nonlocal seen
                    seen += 1
                    tensor = main_tensor(output)
                    # Of a layer that is used several times the last output is explained.
                    if tensor is None or seen < self.calls:
                        return output
                    return with_main(output, layout.from_map(changed.to(tensor), tensor))

                rows = n[:1] if alone else n
                with running(self.model, [(layer, swap)]) as forward:
                    try:
                        args, kwargs = self._inputs.call(self.images[rows], rows)
                        return self._scorer.again(forward(*args, **kwargs), n)
                    except (RuntimeError, FedgazeError) as error:
                        if not alone or len(n) == 1 or is_out_of_memory(error):
                            raise
                # Something of the one image below meets the many above, as in DenseNet.
                alone = False
                return run(n, v)

        return self._collect(("tail", *self._layers), run, count, one_image=True)

    def scores_of(self, logits: Tensor) -> Tensor:
        """``(N, S)``: the scores of what the model might have said, with their graph.

        Args:
            logits: ``(N, classes)``.
        """
        self._settle()
        rows = torch.arange(len(self), device=logits.device)
        return self._scorer.again(logits, rows)

    def noise(self, v: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Standard normal numbers ``(m, *shape)`` that depend on the variant and nothing else.

        So a result is the same however the images are batched. By default of the images' shape.
        """
        which, inverse = torch.unique(v, return_inverse=True)
        shape = tuple(self.images.shape[1:]) if shape is None else shape
        drawn = [self.generator(int(each)) for each in which.tolist()]
        made = [
            torch.randn(shape, generator=each, device=self.images.device, dtype=torch.float32)
            for each in drawn
        ]
        return torch.stack(made)[inverse].to(self.images.dtype)

    def generator(self, seed: int = 0) -> torch.Generator:
        """A new source of random numbers on the images' device."""
        return torch.Generator(self.images.device).manual_seed(0xFED6 + seed)

    def _settle(self) -> None:
        if self._scorer.settled is None:
            with torch.no_grad():
                self._scorer(self._run(self.images))

    def _score(self, outputs: Any, rows: Tensor) -> Tensor:
        first = self._scorer.settled is None
        return self._scorer(outputs) if first else self._scorer.again(outputs, rows)

    def _run(self, images: Tensor, rows: Tensor | None = None) -> Any:
        args, kwargs = self._inputs.call(images, rows)
        return self._forward(*args, **kwargs)

    def _columns(self, scores: Tensor, variants: Tensor) -> Tensor:
        columns = scores.unbind(1)
        last = len(columns) - 1
        found: list[Tensor] = []
        for index, column in enumerate(columns):
            retain = index < last
            self.column = index
            (gradient,) = gradients_of(column, [variants], retain=retain, graph=self._graph)
            if gradient is None:
                raise FedgazeError(
                    "the score does not depend on the image in a way that has gradients: the model "
                    "or the target detaches it"
                )
            found.append(gradient)
        return torch.stack(found, dim=1)

    def _capture(
        self,
        *,
        gradients: bool,
        retain: bool = False,
        inputs: Inputs | None = None,
        score: Callable[[Any], Tensor] | None = None,
    ) -> Captured:
        capture = Capture(
            self.model,
            self._layers,
            gradients=gradients,
            graph=self._graph,
            retain=retain,
        )
        rows = torch.arange(len(self), device=self.images.device)
        with capture:
            return capture.run(
                self._inputs if inputs is None else inputs,
                score or (lambda outputs: self._score(outputs, rows)),
            )

    def _pair(self, found: Captured, columns: int, count: int) -> MapPair:
        """Activations and the gradients of so many columns of scores; none if there are none."""
        ((name, activations),) = found.activations.items()
        laid = self._lay_out(found, count)
        maps = [laid.to_map(found.gradients_of(column)[name]) for column in range(columns)]
        return MapPair(laid.to_map(activations), torch.stack(maps, 1) if maps else None)

    def _lay_out(self, found: Captured, count: int | None = None) -> Layout:
        ((name, activations),) = found.activations.items()
        self.calls = found.calls[name]
        size = tuple(self.images.shape[2:])
        self._layout = lay_out(
            name,
            self._layers[name],
            activations,
            found.patches,
            size,
            len(self) if count is None else count,
        )
        return self._layout

    def _collect(
        self,
        key: tuple[Any, ...],
        run: Callable[[Tensor, Tensor], Tensor],
        count: int,
        *,
        one_image: bool = False,
    ) -> Tensor:
        """Scores ``(N, S, count)`` of all variants, a chunk at a time."""
        chunks = self._chunks(key, run, most=count if one_image else 1, on_cpu=_CPU_MEMORY)
        total = len(self) * count
        step = count if one_image else total
        parts: list[Tensor] = []
        for begin in range(0, total, step):

            def work(start: int, stop: int, begin: int = begin) -> Tensor:
                return run(*self._items(begin + start, begin + stop, count))

            parts += chunks.over(step, work)
        scores: Tensor = torch.cat(parts).unflatten(0, (len(self), count))
        return scores.movedim(1, 2)

    def _chunks(
        self,
        key: tuple[Any, ...],
        run: Callable[[Tensor, Tensor], object],
        *,
        most: int = 1,
        on_cpu: int = DEFAULT_MEMORY,
    ) -> Chunks:
        budget, device = self._budget, self.images.device
        if budget.memory is None and device.type == "cpu":
            budget = budget._replace(memory=on_cpu)
        first = torch.zeros(1, dtype=torch.long, device=device)
        # Each score has a gradient of its own.
        what = (tuple(self.images.shape[1:]), self.images.dtype, self.clean.shape[1])
        return budget.chunks(
            self.model,
            (*key, *what),
            lambda many: run(first.expand(many), first.expand(many)),
            most,
        )

    def _items(self, start: int, stop: int, count: int) -> tuple[Tensor, Tensor]:
        items = torch.arange(start, stop, device=self.images.device)
        return items // count, items % count
