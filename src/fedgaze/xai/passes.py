"""Passes: what runs for a batch of images, by the kind of the method."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.xai.capture import Capture
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.maps import reduced
from fedgaze.xai.methods.cam import weighted, wide
from fedgaze.xai.methods.eigen import eigen_smooth
from fedgaze.xai.registry import Method
from fedgaze.xai.runner import Budget, Runner
from fedgaze.xai.targets import Scorer, Target
from fedgaze.xai.tokens import lay_out, patch_layers

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
            _ = runner.clean

    def _by_capture(self, inputs: Inputs, scorer: Scorer) -> Part:
        capture = Capture(
            self.model,
            self.modules,
            gradients=self.method.gradients,
            graph=self.graph,
            patches=patch_layers(self.model),
        )
        with capture:
            captured = capture.run(inputs, scorer)
        size = tuple(inputs.images.shape[2:])
        columns: list[dict[str, Tensor]] = []
        finite: list[Tensor] = []
        activations: dict[str, Tensor] = {}
        layouts = {
            name: lay_out(name, self.modules[name], each, captured.patches, size, len(inputs))
            for name, each in captured.activations.items()
        }
        for name, each in captured.activations.items():
            activations[name] = wide(layouts[name].to_map(each))
        for column in range(scorer.scores.shape[1]):
            gradients = captured.gradients_of(column) if self.method.gradients else {}
            maps: dict[str, Tensor] = {}
            fine = torch.ones_like(scorer.scores[:, column], dtype=torch.bool)
            for name, A in activations.items():
                g = wide(layouts[name].to_map(gradients[name])) if gradients else None
                maps[name] = self._map(A, g)
                for tensor in (A, g, maps[name]):
                    if tensor is not None:
                        fine &= _is_finite(tensor)
            columns.append(maps)
            finite.append(fine)
        stacked = {name: torch.stack([maps[name] for maps in columns], 1) for name in activations}
        calls = max(captured.calls.values())
        return self._part(stacked, None, torch.stack(finite, 1), calls, scorer)

    def _map(self, activations: Tensor, gradients: Tensor | None) -> Tensor:
        raw = self.method.compute(activations, gradients, **self.options)
        if self.method.kind == "map":
            return raw
        if self.eigen:
            return eigen_smooth(activations, raw)
        return weighted(activations, raw, relu=False)

    def _by_attention(self, inputs: Inputs, scorer: Scorer) -> Part:
        raise NotImplementedError

    def _by_runs(self, inputs: Inputs, scorer: Scorer) -> Part:
        maps: dict[str, Tensor] = {}
        attributions: Tensor | None = None
        calls = 1
        named = self.modules.items() if self.method.layers else [("input", None)]
        for name, module in named:
            layers = {} if module is None else {name: module}
            with Runner(self.model, inputs, scorer, layers, self.budget, self.graph) as runner:
                found = wide(self.method.compute(runner, **self.options))
                _ = runner.clean  # of methods that never ran the images themselves
                calls = max(calls, runner.calls)
            if found.dim() == inputs.images.dim() + 1:
                attributions = found
                found = reduced(found.flatten(0, 1), self.method.reduction)
                found = found.unflatten(0, attributions.shape[:2])
            maps[name] = found
        finite = torch.stack([_is_finite(each.flatten(0, 1)) for each in maps.values()]).all(0)
        return self._part(maps, attributions, finite.view(scorer.scores.shape), calls, scorer)

    def _part(
        self,
        maps: dict[str, Tensor],
        attributions: Tensor | None,
        finite: Tensor,
        calls: int,
        scorer: Scorer,
    ) -> Part:
        if self.relu:
            maps = {name: each.relu() for name, each in maps.items()}
        maps = {name: _zero_where(~finite, each) for name, each in maps.items()}
        if attributions is not None:
            attributions = _zero_where(~finite, attributions)
        return Part(maps, attributions, finite, calls, scorer)


def _is_finite(tensor: Tensor) -> Tensor:
    # One NaN or infinity is enough to make a sum so, and a sum is one quick pass.
    return tensor.detach().flatten(1).sum(1).isfinite()


def _zero_where(mask: Tensor, tensor: Tensor) -> Tensor:
    return torch.where(mask.view(*mask.shape, *[1] * (tensor.dim() - 2)), 0, tensor)
