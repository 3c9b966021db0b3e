"""What the gate sees of a round, before the merge: every update's model on one probe set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedgaze.federate.gate.marks import (
    Predict,
    Sought,
    Sweep,
    chances_of,
    make_sweep,
    pull_of,
    seek,
)
from fedgaze.federate.look import Look, Probe

__all__ = ["Seen", "Sight", "Trial"]

CLASSES = 6
"""From how many classes the images come on which marks are tried, two each at most."""


@dataclass(frozen=True, eq=False)
class Trial:
    """The images on which marks are tried, and the marks: drawn anew each round.

    Attributes:
        sweep: The marks.
        images: ``(M, C, H, W)``.
        labels: ``(M,)``.
    """

    sweep: Sweep
    images: Tensor
    labels: Tensor

    @classmethod
    def drawn(cls, probe: Probe, seed: int) -> "Trial":
        """Draw classes, images and marks.

        Args:
            probe: The images.
            seed: Of the draw; whoever knows it knows what will be tried.
        """
        draw = torch.Generator().manual_seed(seed)
        labels = probe.labels.cpu()
        classes = labels.unique()
        classes = classes[torch.randperm(len(classes), generator=draw)[:CLASSES]]
        chosen = [(labels == each).nonzero()[:, 0] for each in classes]
        two = [each[torch.randperm(len(each), generator=draw)[:2]] for each in chosen]
        index = torch.cat(two).to(probe.labels.device)
        _, channels, height, width = probe.images.shape
        sweep = make_sweep((channels, height, width), seed)
        return cls(sweep, probe.images[index], probe.labels[index])

    def sought(self, predict: Predict) -> Sought:
        """Seek the patch that pulls a model most."""
        return seek(predict, self.sweep, self.images, self.labels)

    def pull(self, predict: Predict, found: Sequence[Sought]) -> Tensor:
        """How far patches that were found pull a model, each towards its target: ``(K,)``."""
        before = chances_of(predict, self.images)
        patches = [each.patch for each in found]
        pulls = pull_of(predict, patches, self.images, self.labels, before)
        return pulls[torch.arange(len(found)), torch.tensor([each.target for each in found])]


@dataclass(frozen=True, eq=False)
class Sight:
    """What the server saw of one model.

    Attributes:
        look: Its maps on the probe set, and what they measure.
        sought: The patch that pulls it most.
        pulls: How far the patches found for the updates pull it, ``(K,)``; NaN where none was.
    """

    look: Look
    sought: Sought
    pulls: Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """All updates of a round, in the order of their clients.

    Attributes:
        clients: Their numbers, K.
        vectors: Their steps, trained minus received weights, ``(K, D)`` float32.
        sights: What the server saw of each; None where it did not look, or could not.
        received: What it saw of the weights that went out; None as above.
        profiles: What each client says of its own maps, by name; empty where it says nothing.
    """

    clients: tuple[int, ...]
    vectors: Tensor
    sights: Sequence[Sight | None]
    received: Sight | None
    profiles: Sequence[Mapping[str, Any]]

    @property
    def looked(self) -> bool:
        """Whether the server saw anything."""
        return self.received is not None and any(each is not None for each in self.sights)

    @property
    def labels(self) -> Tensor:
        """The probe's classes, ``(N,)``."""
        return self._received.look.probe.labels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self._received.look.explanation.logits.shape[1]

    @property
    def _received(self) -> Sight:
        if self.received is None:
            raise ValueError("the server did not look")
        return self.received

    @cached_property
    def chances(self) -> Tensor:
        """The probabilities of the probe's images, ``(K, N, classes)``; NaN where not seen."""
        return self._each(lambda sight: sight.look.explanation.logits.float().softmax(1))

    @cached_property
    def known(self) -> Tensor:
        """How well each update knows each image: the probability of its class, ``(K, N)``."""
        index = self.labels.view(1, -1, 1).expand(len(self.clients), -1, 1)
        return self.chances.gather(2, index)[..., 0]

    @cached_property
    def maps(self) -> Tensor:
        """The raw maps, ``(K, N, h, w)``; NaN where not seen."""
        return self._each(lambda sight: sight.look.explanation.raw.float())

    @property
    def received_maps(self) -> Tensor:
        """Those of the weights that went out, ``(N, h, w)``."""
        return self._received.look.explanation.raw.float()

    @cached_property
    def changes(self) -> Tensor:
        """How far changes of whole images pull each update, ``(K, Q, classes)``."""
        return self._each(lambda sight: sight.sought.changes)

    @cached_property
    def pulls(self) -> Tensor:
        """How far the patch found for each update pulls each, ``(K, K)``: row k is of update k."""
        return self._each(lambda sight: sight.pulls)

    def measured(self, name: str) -> Tensor:
        """A measure of the maps, ``(K, N)``; NaN where not seen or not defined."""
        unknown = torch.full_like(self.labels, torch.nan, dtype=torch.float)
        return self._each(lambda sight: sight.look.measures.get(name, unknown).float())

    def _each(self, part: Callable[[Sight], Tensor]) -> Tensor:
        missing = torch.full_like(part(self._received), torch.nan)
        return torch.stack([missing if each is None else part(each) for each in self.sights])
