"""Networks and truths in NumPy for the methods that run a model again and again."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


class Staged(nn.Module):
    """Two stages in float64, of which the first keeps the size of the image, and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Sequential(nn.Conv2d(6, channels, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.head(self.last(self.pool(self.first(x))).tanh().mean((2, 3)))
        return seen


@pytest.fixture
def staged() -> Callable[..., Staged]:
    def make(channels: int = 5, seed: int = 0x5C) -> Staged:
        torch.manual_seed(seed)
        model = Staged(channels).double().eval()
        with torch.no_grad():
            model.head.weight.mul_(20)  # so that scores differ by more than rounding
        return model

    return make


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    def make(count: int = 2, seed: int = 0x5D) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, 8, 10, generator=generator, dtype=torch.float64)

    return make


@pytest.fixture
def activations_of() -> Callable[..., Array]:
    """Activations ``(N, K, *s)`` by a plain hook."""

    def read(layer: nn.Module, model: nn.Module, images: Tensor) -> Array:
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
        with torch.no_grad():
            model(images)
        handle.remove()
        return kept[-1].numpy()

    return read


@pytest.fixture
def logit() -> Callable[..., float]:
    """What a model says for a class to one image ``(C, H, W)``."""

    def score(model: nn.Module, image: Array, label: int) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(image)[None])[0, label])

    return score


@pytest.fixture
def grown() -> Callable[..., Array]:
    """Bilinear enlargement with half-pixel centres, pixel by pixel."""

    def grow(small: Array, size: tuple[int, int]) -> Array:
        large = np.zeros(size)
        for i in range(size[0]):
            for j in range(size[1]):
                y = min(max((i + 0.5) * small.shape[0] / size[0] - 0.5, 0), small.shape[0] - 1)
                x = min(max((j + 0.5) * small.shape[1] / size[1] - 0.5, 0), small.shape[1] - 1)
                top, left = int(y), int(x)
                down = min(top + 1, small.shape[0] - 1)
                right = min(left + 1, small.shape[1] - 1)
                v, u = y - top, x - left
                above = (1 - u) * small[top, left] + u * small[top, right]
                below = (1 - u) * small[down, left] + u * small[down, right]
                large[i, j] = (1 - v) * above + v * below
        return large

    return grow
