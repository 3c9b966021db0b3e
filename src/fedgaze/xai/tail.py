"""The tail: what a model makes of activations that somebody else wrote."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.xai.classes import Function
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.memory import Budget, Chunks
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.outputs import class_scores
from fedgaze.xai.runner import Runner
from fedgaze.xai.targets import Scorer, Settled, Target

__all__ = ["LayerRuns"]

_BATCH = 16


@dataclass(frozen=True, eq=False)
class LayerRuns:
    """Runs of a model up to a layer, and from it on.

    Attributes:
        model: Unwrapped.
        inputs: N images.
        layers: The one layer by name.
        function: From the model's output to scores ``(m, S)``; None for the logits of all classes.
        batch_size: How many images, or variants of images, run at once; None for what fits.
    """

    model: nn.Module
    inputs: Inputs
    layers: dict[str, nn.Module]
    function: Callable[[Any], Tensor] | None = None
    batch_size: int | None = None

    def activations(self) -> Tensor:
        """``(N, K, *s)``, as the model wrote them."""
        found = self._in_batches(lambda runner, _: runner.captured(gradients=False).activations)
        return torch.cat(list(found))

    def contributions(self, raw: Tensor, vectors: Tensor) -> Tensor:
        """What the layers above make of each concept alone: ``f(H_j W_j) - f(0)``, ``(N, k, S)``.

        Args:
            raw: H, ``(N, k, *s)``.
            vectors: W, ``(k, K)``.
        """
        concepts = raw.shape[1]
        spread = vectors.view(*vectors.shape, *[1] * (raw.dim() - 2))

        def run(runner: Runner, start: int) -> Tensor:
            def alone(n: Tensor, v: Tensor) -> Tensor:
                # After the last concept comes the one that is nowhere.
                which = v.clamp(max=concepts - 1)
                there = (v < concepts).view(-1, *[1] * (spread.dim() - 1))
                return raw[start + n, which][:, None] * spread[which] * there

            scores = runner.tail_scores(alone, concepts + 1).movedim(1, 2)
            return scores[:, :-1] - scores[:, -1:]

        return torch.cat([wide(each) for each in self._in_batches(run)])

    def _in_batches(self, run: Callable[[Runner, int], Tensor]) -> Iterator[Tensor]:
        budget = Budget(self.batch_size)

        def work(start: int, stop: int) -> Tensor:
            rows = torch.arange(start, stop, device=self.inputs.images.device)
            target = _AllClasses() if self.function is None else Function(self.function)
            scorer = Scorer(target, rows)
            batch = self.inputs.take(start, stop)
            with Runner(self.model, batch, scorer, self.layers, budget) as runner:
                return run(runner, start)

        return Chunks(self.batch_size or _BATCH).over(len(self.inputs), work)


class _AllClasses(Target):
    """Every class of a classifier."""

    def settle(self, outputs: Any, images: Tensor) -> Settled:  # noqa: ARG002
        return Settled(lambda outputs, rows: class_scores(outputs, len(rows)))
