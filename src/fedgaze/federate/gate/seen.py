"""What the gate sees of a round, before the merge: every update's model on one probe set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedgaze.federate.gate.counted import Counted
from fedgaze.federate.gate.marks import (
    Found,
    Predict,
    Sweep,
    chances_of,
    make_sweep,
    pull_of,
    seek_patch,
    seek_pattern,
)
from fedgaze.federate.gate.merges import Certainty, Merges
from fedgaze.federate.gate.peers import others
from fedgaze.federate.look import Look, Probe

__all__ = ["Seen", "Sight", "Trial", "shows_something"]

CLASSES = 4
"""From how many classes the images come on which marks are tried, two each at most."""


@dataclass(frozen=True, eq=False)
class Trial:
    """The images on which marks are sought and tried: drawn anew each round.

    Attributes:
        sweep: Where the search for patches begins.
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

    def sought(self, predict: Predict) -> tuple[Found, Found]:
        """Seek the patch and the faint pattern that pull a model most."""
        return (
            seek_patch(predict, self.sweep, self.images, self.labels),
            seek_pattern(predict, self.images, self.labels),
        )

    def pulls(self, predict: Predict, found: Sequence[Found]) -> Tensor:
        """How far marks that were found pull a model, each towards its target: ``(Q,)``."""
        before = chances_of(predict, self.images)
        marks = [each.mark for each in found]
        pulls = pull_of(predict, marks, self.images, self.labels, before)
        return pulls[torch.arange(len(found)), torch.tensor([each.target for each in found])]


@dataclass(frozen=True, eq=False)
class Sight:
    """What the server saw of one model.

    Attributes:
        look: Its maps on the probe set, and what they measure.
        pulls: How far the patches found for the round's updates pull it, ``(K,)``, and the faint
            patterns: ``(2, K)``.
    """

    look: Look
    pulls: Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """All updates of a round, in the order of their clients.

    Attributes:
        clients: Their numbers, K.
        vectors: Their steps, trained minus received weights, ``(K, D)`` float32.
        moved: How far each tensor of the state moved, by norm, ``(K, L)``.
        sights: What the server saw of each; None where it did not look, or could not.
        received: What the weights that went out showed; None where it did not look.
        profiles: What each client says of its own maps, by name; empty where it says nothing.
        found: The patch and the faint pattern that were found for each update; those of the first
            that was seen, where one was not.
        merges: The merge with all of them, and without each; None where the server does not look,
            or they are fewer than two.
        counted: What batch normalisation counted; None as merges, and where there is none.
    """

    clients: tuple[int, ...]
    vectors: Tensor
    moved: Tensor
    sights: Sequence[Sight | None]
    received: Look | None
    profiles: Sequence[Mapping[str, Any]]
    found: Sequence[tuple[Found, Found]] = ()
    merges: Merges | None = None
    counted: Counted | None = None

    @property
    def looked(self) -> bool:
        """Whether the server saw anything."""
        return self.received is not None and any(each is not None for each in self.sights)

    @property
    def labels(self) -> Tensor:
        """The probe's classes, ``(N,)``."""
        return self._received.probe.labels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self._received.explanation.logits.shape[1]

    @cached_property
    def of_class(self) -> Tensor:
        """Which image is of which class, ``(N, classes)``: 1 or 0."""
        classes = torch.arange(self.classes, device=self.labels.device)
        return (self.labels[:, None] == classes).float()

    @property
    def _received(self) -> Look:
        if self.received is None:
            raise ValueError("the server did not look")
        return self.received

    @cached_property
    def chances(self) -> Tensor:
        """The probabilities of the probe's images, ``(K, N, classes)``; NaN where not seen."""
        return self._each(lambda look: look.explanation.logits.float().softmax(1))

    @cached_property
    def known(self) -> Tensor:
        """How well each update knows each image: the probability of its class, ``(K, N)``."""
        index = self.labels.view(1, -1, 1).expand(len(self.clients), -1, 1)
        return self.chances.gather(2, index)[..., 0]

    @cached_property
    def maps(self) -> Tensor:
        """The raw maps, ``(K, N, h, w)``; NaN where not seen."""
        return self._each(lambda look: look.explanation.raw.float())

    @property
    def received_maps(self) -> Tensor:
        """Those of the weights that went out, ``(N, h, w)``."""
        return self._received.explanation.raw.float()

    @cached_property
    def middle(self) -> Tensor:
        """The coordinate-wise median of the others' steps, ``(K, D)`` float64; NaN for one."""
        vectors, count = self.vectors.double(), len(self.clients)
        if count < 2:
            return torch.full_like(vectors, torch.nan)
        return torch.stack([vectors[others(count, k)].median(0).values for k in range(count)])

    @cached_property
    def pulls(self) -> Tensor:
        """How far each mark pulls each update, ``(K, 2, K)``: ``[k, 0, j]`` by the patch of j."""
        missing = torch.full((2, len(self.clients)), torch.nan, device=self.labels.device)
        return torch.stack([missing if each is None else each.pulls for each in self.sights])

    def merged(self, part: Callable[[Certainty], Tensor]) -> Tensor:
        """What each update changes of the merge: ``part(together) - part(without it)``.

        Args:
            part: Of how sure a merge is, ``(*)``.

        Returns:
            ``(K, *)``; NaN for who is in no merge, which are all where there is none.
        """
        if self.merges is None:
            unknown = torch.full((len(self.labels),), torch.nan)
            shape = part(Certainty(unknown)).shape
            return torch.full((len(self.clients), *shape), torch.nan)
        whole = part(self.merges.together)
        missing = torch.full_like(whole, torch.nan)
        rest = [missing if each is None else part(each) for each in self.merges.without]
        return whole - torch.stack(rest)

    def measured(self, name: str) -> Tensor:
        """A measure of the maps, ``(K, N)``; NaN where not seen or not defined."""
        unknown = torch.full_like(self.labels, torch.nan, dtype=torch.float)
        return self._each(lambda look: look.measures.get(name, unknown).float())

    def _each(self, part: Callable[[Look], Tensor]) -> Tensor:
        missing = torch.full_like(part(self._received), torch.nan)
        return torch.stack([missing if each is None else part(each.look) for each in self.sights])


def shows_something(look: Look | None) -> bool:
    """Whether there is anything to see: a model whose output is no number shows nothing."""
    return look is not None and bool(look.explanation.logits.isfinite().all())
