"""A map that knows nothing: what every method has to beat."""

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.methods.cam import spatial, weighted, wide

__all__ = ["random_map"]

OVER = ("positions", "channels")


def random_map(
    activations: Tensor,
    gradients: Tensor | None = None,  # noqa: ARG001 - the arguments that every map method has
    *,
    generator: torch.Generator | None = None,
    over: str = "positions",
) -> Tensor:
    """A map of random numbers.

    Args:
        activations: ``(N, K, *s)``.
        gradients: Not used.
        generator: Where all the randomness comes from; torch's own if None.
        over: ``"positions"``: each position is drawn from [0, 1), whatever the activations.
            ``"channels"``: each channel's weight is drawn from [-1, 1), so that the map still shows
            where the layer responds: pytorch-grad-cam's RandomCAM.

    Returns:
        ``(N, *s)``, in float32 at least; signed if over channels.

    Raises:
        FedgazeError: There is no such ``over``.

    >>> make = torch.Generator().manual_seed(0)
    >>> random_map(torch.zeros(1, 3, 4), generator=make)
    tensor([[0.4963, 0.7682, 0.0885, 0.1320]])
    """
    if over not in OVER:
        raise FedgazeError(
            f"random numbers over {over!r}; allowed are {', '.join(OVER)}{nearest(str(over), OVER)}"
        )
    a = wide(activations)
    device = a.device if generator is None else generator.device
    shape = (
        (len(a), *a.shape[2:]) if over == "positions" else (*a.shape[:2], *[1] * len(spatial(a)))
    )
    drawn = torch.rand(shape, generator=generator, dtype=a.dtype, device=device).to(a.device)
    return drawn if over == "positions" else weighted(a, 2 * drawn - 1, relu=False)
