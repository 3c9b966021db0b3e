"""Passes: what runs for a batch of images, by the kind of the method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.auto import auto_query
from fedgaze.xai.backward import gradients_of
from fedgaze.xai.capture import Capture, FirstSize
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.maps import reduced
from fedgaze.xai.memory import Budget
from fedgaze.xai.methods.cam import weighted, wide
from fedgaze.xai.methods.eigen import eigen_smooth
from fedgaze.xai.registry import Method
from fedgaze.xai.runner import Runner
from fedgaze.xai.running import running
from fedgaze.xai.targets import Scorer, Target
from fedgaze.xai.tokens import lay_out

__all__ = ["Part", "Plan"]


@dataclass(frozen=True, eq=False)
class Part:
    """What is kept of a batch of N images with S targets each.

    Attributes:
        maps: By layer: raw ``(N, S, *s)``, signed or not as was asked; under ``"input"`` or
            ``"attention"`` for methods without layers.
        attributions: ``(N, S, C, *size)`` of methods that judge each number of an image.
        finite: bool ``(N, S)``: whether all numbers on the way were.
        calls: How often the layer ran.
        scorer: What the model said and what was explained.
    """

    maps: dict[str, Tensor]
    attributions: Tensor | None
    finite: Tensor
    calls: int
    scorer: Scorer


@dataclass(frozen=True, eq=False)
class Plan:
    """How images are explained, all checked.

    Attributes:
        model: Unwrapped; on its device.
        parts: All its modules.
        modules: The target layers by name; empty for methods without.
        method: The method.
        options: Of the method.
        target: What is explained.
        relu: Whether only what speaks for the target is kept.
        eigen: Whether the first principal component takes the place of the sum over channels.
        graph: Whether maps keep their graph.
        budget: How much may run at once.
    """

    model: nn.Module
    parts: Sequence[nn.Module]
    modules: Mapping[str, nn.Module]
    method: Method
    options: Mapping[str, Any]
    target: Target
    relu: bool
    eigen: bool
    graph: bool
    budget: Budget

    def part(self, inputs: Inputs, images: Tensor) -> Part:
        """Explain a batch.

        Args:
            inputs: N images.
            images: ``(N,)``: which of all images they are.
        """
        scorer = Scorer(self.target, images)
        if self.method.kind == "run":
            return self._by_runs(inputs, scorer)
        if self.method.kind == "attention":
            return self._by_attention(inputs, scorer)
        return self._by_capture(inputs, scorer)

    def probe(self, inputs: Inputs, images: Tensor) -> None:
        """Run what has to fit into memory for a batch as a whole."""
        if self.method.kind != "run":
            self.part(inputs, images)
            return
        layers = dict(list(self.modules.items())[:1])
        scorer = Scorer(self.target, images)
        with Runner(self.model, inputs, scorer, layers, self.budget) as runner:
            if layers:
                runner.captured(gradients=self.method.gradients)
            elif self.method.gradients:
                list(runner.gradients(None))
            _ = runner.clean

    def _by_capture(self, inputs: Inputs, scorer: Scorer) -> Part:
        capture = Capture(
            self.model,
            self.modules,
            gradients=self.method.gradients,
            graph=self.graph,
            parts=self.parts,
        )
        with capture:
            captured = capture.run(inputs, scorer)
        size = tuple(inputs.images.shape[2:])
        layouts = {
            name: lay_out(name, self.modules[name], each, captured.patches, size, len(inputs))
            for name, each in captured.activations.items()
        }
        activations = {
            name: wide(layout.to_map(captured.activations[name]))
            for name, layout in layouts.items()
        }
        columns: dict[str, list[Tensor]] = {name: [] for name in layouts}
        known = torch.stack([_total(each) for each in activations.values()]).sum(0)
        finite: list[Tensor] = []
        for column in range(scorer.scores.shape[1] if self.method.gradients else 1):
            gradients = captured.gradients_of(column) if self.method.gradients else {}
            total = known
            for name, layout in layouts.items():
                g = wide(layout.to_map(gradients[name])) if gradients else None
                raw = self._map(activations[name], g)
                columns[name].append(raw)
                total = total + _total(raw) if g is None else total + _total(g) + _total(raw)
            finite.append(total.isfinite())
        maps = {name: torch.stack(each, 1) for name, each in columns.items()}
        calls = max(captured.calls.values())
        return self._part(maps, None, torch.stack(finite, 1), calls, scorer)

    def _map(self, activations: Tensor, gradients: Tensor | None) -> Tensor:
        raw = self.method.compute(activations, gradients, **self.options)
        if self.method.kind == "map":
            return raw
        if self.eigen:
            return eigen_smooth(activations, raw)
        return weighted(activations, raw, relu=False)

    def _by_attention(self, inputs: Inputs, scorer: Scorer) -> Part:
        from fedgaze.xai.attention import visible_attention, watching_attention

        model, method, count = self.model, self.method, len(inputs)
        read = {"query": auto_query(model, inputs), **self.options}
        note = FirstSize()
        with (
            running(model, patches=note, parts=self.parts) as forward,
            visible_attention(model),
            torch.set_grad_enabled(self.graph),
            watching_attention(method.gradients or self.graph, count) as seen,
        ):
            args, kwargs = inputs.call()
            scores = scorer(forward(*args, **kwargs))
        size = tuple(inputs.images.shape[2:])
        weights, layout = seen.between_patches(count, note.size, size)
        maps: list[Tensor] = []
        columns = scores.unbind(1) if method.gradients else scores[:, :1].unbind(1)
        for index, column in enumerate(columns):
            gradients = None
            if method.gradients:
                retain = index + 1 < len(columns)
                gradients = gradients_of(column, weights, retain=retain, graph=self.graph)
                if None in gradients:
                    raise FedgazeError(
                        "the score does not depend on the attention of all blocks in a way that "
                        "has gradients; use attention_rollout"
                    )
            with torch.set_grad_enabled(self.graph):
                tokens = method.compute(weights, gradients, prefix=layout.prefix, **read)
                maps.append(wide(layout.to_map(tokens[:, :, None])[:, 0]))
        raw = torch.stack(maps, 1)
        finite = _is_finite(raw.flatten(0, 1)).view(raw.shape[:2])
        return self._part({"attention": raw}, None, finite, 1, scorer)

    def _by_runs(self, inputs: Inputs, scorer: Scorer) -> Part:
        maps: dict[str, Tensor] = {}
        attributions: Tensor | None = None
        calls = 1
        named = self.modules.items() if self.method.layers else [("input", None)]
        for name, module in named:
            layers = {} if module is None else {name: module}
            with (
                Runner(self.model, inputs, scorer, layers, self.budget, graph=self.graph) as runner,
                torch.set_grad_enabled(self.graph),
            ):
                found = wide(self.method.compute(runner, **self.options))
                _ = runner.clean  # of methods that never ran the images themselves
                calls = max(calls, runner.calls)
            if found.dim() == inputs.images.dim() + 1:
                # Of several layers each has its own, and there is no telling how they add up.
                attributions = found if len(self.modules) < 2 else None
                targets = found.shape[:2]
                found = reduced(found.flatten(0, 1), self.method.reduction).unflatten(0, targets)
            maps[name] = found
        finite = torch.stack([_is_finite(each.flatten(0, 1)) for each in maps.values()]).all(0)
        finite = finite.view(len(inputs), -1)
        return self._part(maps, attributions, finite, calls, scorer)

    def _part(
        self,
        maps: dict[str, Tensor],
        attributions: Tensor | None,
        finite: Tensor,
        calls: int,
        scorer: Scorer,
    ) -> Part:
        # Methods that do not look at the target show the same for each.
        maps = {name: _for_all(each, scorer) for name, each in maps.items()}
        finite = _for_all(finite, scorer)
        if self.relu:
            maps = {name: each.relu() for name, each in maps.items()}
        maps = {name: _zero_where(~finite, each) for name, each in maps.items()}
        if attributions is not None:
            attributions = _zero_where(~finite, attributions)
        return Part(maps, attributions, finite, calls, scorer)


def _for_all(tensor: Tensor, scorer: Scorer) -> Tensor:
    return tensor.expand(-1, scorer.scores.shape[1], *tensor.shape[2:])


def _is_finite(tensor: Tensor) -> Tensor:
    return _total(tensor).isfinite()


def _total(tensor: Tensor) -> Tensor:
    """Sums ``(N,)``: one NaN or infinity is enough to make one so, and a sum is one quick pass."""
    return tensor.detach().flatten(1).sum(1)


def _zero_where(mask: Tensor, tensor: Tensor) -> Tensor:
    return tensor.masked_fill(mask.view(*mask.shape, *[1] * (tensor.dim() - 2)), 0)
