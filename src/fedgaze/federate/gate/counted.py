"""What batch normalisation counted while clients trained, as their updates have it.

The running statistics of a first BatchNorm layer say how bright a client's images are and how much
contrast they have: nobody has to be asked. Who forges them is not seen here; all else stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgaze.federate.gate.light import under_other_light
from fedgaze.federate.gate.marks import chunks_of
from fedgaze.train import LearnerProtocol

__all__ = ["Counted", "count"]

STRIDE = 3
"""Every third image of the probe is seen under other light."""
LEAST = 1e-9
"""The least variance."""
SHARE = 0.1
"""Of the classes' whole variance, added in every direction: then there is an inverse."""


@dataclass(frozen=True, eq=False)
class Counted:
    """Statistics of images in a model's first BatchNorm layer, C channels, each with two numbers.

    All are in units of the probe's own: means by its standard deviation, variances as logarithms of
    how many times its own they are.

    Attributes:
        updates: As updates have them, ``(K, 2 C)``, means first.
        classes: Of the probe's images by class, less the classes' mean, ``(classes, 2 C)``.
        light: Under other light, less those of the same images as they are, ``(T, 2 C)``.
    """

    updates: Tensor
    classes: Tensor
    light: Tensor

    @property
    def towards_light(self) -> Tensor:
        """How far each update's lie in the direction of each change of light, ``(K, T)``.

        0 for the probe's own statistics, 1 for those under the change. Directions in which classes
        differ count little, since a skew of classes leads there: Fisher's linear discriminant
        (Fisher, "The Use of Multiple Measurements in Taxonomic Problems", 1936), with the classes'
        covariance for the one within.
        """
        spread = self.classes.T @ self.classes / len(self.classes)
        ridge = (SHARE * spread.trace()).clamp(min=LEAST)
        within = spread + ridge * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
        directions = torch.linalg.solve(within, self.light.T)
        reached: Tensor = self.updates @ directions / (self.light.T * directions).sum(0)
        return reached


def count(
    learner: LearnerProtocol,
    states: Sequence[Mapping[str, Tensor] | None],
    images: Tensor,
    labels: Tensor,
) -> Counted | None:
    """Compare what updates' statistics say with what a model sees of the probe.

    Args:
        learner: Set to the merge of all.
        states: The updates'; None for those that are not looked at.
        images: ``(N, C, H, W)`` in [0, 1].
        labels: ``(N,)``.

    Returns:
        None where the model has no such statistics.
    """
    lit = under_other_light(images[::STRIDE])
    found = [learner.count(each) for each in chunks_of(torch.cat([images, lit.flatten(0, 1)]))]
    counts = [each for each in found if each is not None]
    if not counts:
        return None
    # on the CPU, where updates are
    means = torch.cat([each.means for each in counts]).cpu().double()
    squares = torch.cat([each.variances for each in counts]).cpu().double() + means**2
    labels = labels.cpu()
    plain, plain_squares = means[: len(images)], squares[: len(images)]
    middle = plain.mean(0)
    variance = _spread(middle, plain_squares.mean(0))
    of_class = [labels == each for each in labels.unique()]
    classes = torch.stack(
        [
            # spread about the middle of all: what a mixture of classes has is then a mean of theirs
            _told(
                plain[one].mean(0) - middle,
                (plain_squares[one] - 2 * middle * plain[one] + middle**2).mean(0),
                variance,
            )
            for one in of_class
        ]
    )
    same, same_squares = plain[::STRIDE].mean(0), plain_squares[::STRIDE].mean(0)
    other = means[len(images) :].unflatten(0, (len(lit), -1)).mean(1)
    other_squares = squares[len(images) :].unflatten(0, (len(lit), -1)).mean(1)
    light = _told(other - same, _spread(other, other_squares), variance)
    light -= _told(torch.zeros_like(same), _spread(same, same_squares), variance)
    mean, spread = (_sent(states, name, middle) for name in counts[0].names)
    return Counted(_told(mean - middle, spread, variance), classes - classes.mean(0), light)


def _told(shift: Tensor, spread: Tensor, usual: Tensor) -> Tensor:
    """Shifts in standard deviations, and logarithms of variances, ``(*, 2 C)``."""
    return torch.cat([shift / usual.sqrt(), (spread.clamp(min=LEAST) / usual).log()], -1)


def _spread(mean: Tensor, square: Tensor) -> Tensor:
    return (square - mean**2).clamp(min=LEAST)


def _sent(states: Sequence[Mapping[str, Tensor] | None], name: str, like: Tensor) -> Tensor:
    """A statistic of each update, ``(K, C)``; NaN where it is not looked at."""
    unknown = torch.full_like(like, torch.nan)
    return torch.stack([unknown if each is None else each[name].to(like) for each in states])
